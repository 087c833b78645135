import pickle

import pytest
import torch

from fullspectrum_ext.experiments.checkpoint import load_checkpoint, load_tensors, save_checkpoint

STATE = {
    "config": "abcd",
    "method": "dense",
    "seed": 0,
    "masks": "ef",
    "pruning_seconds": 0.5,
    "epoch": 3,
    "model": {"weight": torch.arange(3.0)},
    "optimizer": {"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 0.1}]},
    "scheduler": {"last_epoch": 3},
    "generator": torch.Generator().get_state(),
    "hook": None,
    "stage": 0,
    "kept": None,
    "seconds": 1.5,
}


class _Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_comes_back_whole(tmp_path):
    path = tmp_path / "x.pt"

    save_checkpoint(path, STATE)
    state = load_checkpoint(path, method="dense", seed=0)

    assert state["epoch"] == 3
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    assert torch.equal(state["generator"], STATE["generator"])
    assert state["optimizer"]["param_groups"] == [{"lr": 0.1}]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path, fraction):
    path = tmp_path / "x.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])

    with pytest.raises(ValueError, match=r"x\.pt: not"):
        load_checkpoint(path)


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle"])
def test_a_hostile_checkpoint_runs_no_code(tmp_path, how):
    path, trace = tmp_path / "x.pt", tmp_path / "trace"
    content = {"model": _Hostile(trace)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")

    with pytest.raises(ValueError, match=r"x\.pt: not loaded: it holds more than tensors"):
        load_tensors(path)

    assert not trace.exists()
    # The same file does run code where nothing forbids it, so the check above can fail.
    if how == "pickle":
        pickle.loads(path.read_bytes())["model"].close()
        assert trace.exists()


def test_anothers_checkpoint_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    save_checkpoint(path, STATE)
    with pytest.raises(ValueError, match=r"x\.pt: expected method 'snip', got 'dense'"):
        load_checkpoint(path, method="snip")
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"x\.pt: not a checkpoint of `fullspectrum train`"):
        load_checkpoint(path)
