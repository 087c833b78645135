import pytest
import safetensors.torch
import torch
from torch import nn

from fullspectrum_ext.experiments.state import read_state


@pytest.fixture
def state():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "net"])
def test_state_dicts_are_found_where_scripts_put_them(tmp_path, state, wrapper):
    file = tmp_path / "x.pth"
    torch.save(state if wrapper is None else {"epoch": 3, wrapper: state}, file)

    found = read_state(file)

    assert list(found) == list(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_safetensors_are_read(tmp_path, state):
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file(state, file)

    assert torch.equal(read_state(file)["0.weight"], state["0.weight"])


def test_extra_entries_are_left_out(tmp_path, state):
    torch.save({**state, "_extra_state": {"a": 1}}, tmp_path / "x.pt")

    assert list(read_state(tmp_path / "x.pt")) == list(state)


def test_files_without_a_state_dict_are_refused_by_name(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({"epoch": 1, "best": 0.5}, file)
    with pytest.raises(ValueError, match=r"x\.pt: expected a state dict .* the keys epoch, best"):
        read_state(file)
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match=r"x\.pt: expected a state dict .* got list"):
        read_state(file)
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"x\.safetensors: not a safetensors file"):
        read_state(file)
    with pytest.raises(FileNotFoundError, match="none"):
        read_state(tmp_path / "none.pt")
