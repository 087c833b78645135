import json
import math
import os
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from fullspectrum_ext import checkpoints
from fullspectrum_ext._layers import read_layer, state_dict_layers, stored_layers
from fullspectrum_ext.checkpoints import open_checkpoint

SHAPES = {"a.weight": (6, 8), "b.conv.weight": (4, 3, 2, 2), "c.weight": (5, 6)}


@pytest.fixture(params=["small file", "mapped anew"])
def mapping(request, monkeypatch):
    """Both ways to read a file of torch.save: kept mapped, and mapped anew for each tensor."""
    if request.param == "mapped anew":
        monkeypatch.setattr(checkpoints, "_SMALL", 0)


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.fixture
def masks(weights):
    return {name: weight.abs() > 0.7 for name, weight in weights.items()}


def layers_of(path):
    checkpoint = open_checkpoint(path)
    found = stored_layers(checkpoint.headers)
    return {name: read_layer(name, layer, checkpoint) for name, layer in found.items()}


def assert_holds(path, weights, masks):
    found = layers_of(path)
    assert list(found) == list(weights)
    for name, layer in found.items():
        assert torch.equal(layer.mask, masks[name]), name
        assert torch.equal(layer.weight, weights[name] * masks[name]), name


def zeroed(weights, masks):
    return {name: weights[name] * masks[name] for name in weights}


def torch_pruned(weights, masks):
    state = {}
    for name, weight in weights.items():
        state |= {f"{name}_orig": weight, f"{name}_mask": masks[name].float()}
    return state


def parametrized(weights, masks):
    state = {}
    for name, weight in weights.items():
        layer, parameter = name.rsplit(".", 1)
        state[f"{layer}.parametrizations.{parameter}.original"] = weight
        state[f"{layer}.parametrizations.{parameter}.0.mask"] = masks[name]
        state[f"{layer}.parametrizations.{parameter}.0.dense_grad"] = weight.clone()
    return state


def beside(weights, masks):
    return weights | {f"{name}_mask": mask for name, mask in masks.items()}


def rigl_torch(weights, masks):
    lists = [None if name == "c.weight" else mask for name, mask in masks.items()]
    plain = weights | {"c.weight": weights["c.weight"] * masks["c.weight"]}
    return {"model": plain, "pruner": {"S": [0.5], "backward_masks": lists}, "optimizer": {}}


def bits_of(mask):
    packed = np.packbits(mask.numpy(), axis=-1, bitorder="little")
    return torch.from_numpy(packed)


def compressed(weights, masks):
    """As compressed-tensors writes it: 2:4 keeps [rows, values] and [2, 1] sizes, others a list."""
    state = {}
    for i, (name, weight) in enumerate(weights.items()):
        prefix = name if i == 0 else name.removesuffix(".weight")
        sizes = torch.tensor(weight.shape)
        state[f"{prefix}.compressed"] = weight[masks[name]]
        state[f"{prefix}.bitmask"] = bits_of(masks[name])
        state[f"{prefix}.shape"] = sizes.reshape(-1, 1) if i == 2 else sizes
        state[f"{prefix}.row_offsets"] = torch.zeros(weight.shape[0], dtype=torch.int64)
    return state


FORMATS = {
    "sparse-bitmask": compressed,
    "zeros": zeroed,
    "torch.nn.utils.prune": torch_pruned,
    "torch.ao": parametrized,
    "mask beside": beside,
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
@pytest.mark.usefixtures("mapping")
def test_every_way_to_keep_masks(tmp_path, weights, masks, form, suffix):
    state = {"a.bias": torch.ones(6), "bn.weight": torch.ones(4), **FORMATS[form](weights, masks)}
    path = tmp_path / f"x.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"epoch": 1, "model": {"state_dict": state, "other": 3}}, path)
    checkpoint = open_checkpoint(path)

    found = layers_of(path)

    assert set(checkpoint) == set(state)
    assert set(found) == set(weights)
    for name, layer in found.items():
        assert torch.equal(layer.mask, masks[name])
        assert torch.equal(layer.weight, weights[name] * masks[name])


def test_what_torch_itself_writes(tmp_path):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    expected = {}
    for i in (0, 1):
        torch_prune.l1_unstructured(model[i], "weight", amount=0.5)
        expected[f"{i}.weight"] = model[i].weight.detach().clone()
    torch.save(model.state_dict(), tmp_path / "x.pth", _use_new_zipfile_serialization=False)

    found = layers_of(tmp_path / "x.pth")

    assert {name: layer.weight.tolist() for name, layer in found.items()} == {
        name: weight.tolist() for name, weight in expected.items()
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shape", None, r"expected c\.shape beside its bitmask, found none"),
        ("shape", torch.tensor([5]), r"expected a shape of two or four sizes, got \(5,\)"),
        ("shape", torch.tensor([6, 6]), r"expected a bitmask of uint8 \(6, 1\), got .*\(5, 1\)"),
        ("bitmask", torch.zeros(5, 1), r"expected a bitmask of uint8 .*, got torch\.float32"),
        ("compressed", torch.zeros(2), r"expected a value for each of the \d+ bits, got 2"),
        ("compressed", torch.zeros(2).int(), r"expected weights of floating point, got torch\.int"),
    ],
)
def test_damaged_bitmasks_are_refused(weights, masks, field, value, message):
    state = compressed(weights, masks)
    state.pop(f"c.{field}")
    if value is not None:
        state[f"c.{field}"] = value

    with pytest.raises(ValueError, match=f"c.weight: {message}"):
        state_dict_layers(state)


@pytest.mark.usefixtures("mapping")
def test_rigl_torch_keeps_its_masks_in_a_list(tmp_path, weights, masks):
    torch.save(rigl_torch(weights, masks), tmp_path / "x.pt")
    assert_holds(tmp_path / "x.pt", weights, masks)

    content = rigl_torch(weights, masks)
    content["pruner"]["backward_masks"].pop()
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: pruner\.backward_masks: expected .* a\.weight"):
        open_checkpoint(tmp_path / "x.pt")


def test_open_lth_keeps_masks_in_a_file_of_their_own(tmp_path, weights, masks):
    torch.save(weights, tmp_path / "model.pth")
    torch.save({name: mask.float() for name, mask in masks.items()}, tmp_path / "mask.pth")

    assert_holds(tmp_path, weights, masks)
    assert_holds(tmp_path / "model.pth", weights, masks)

    torch.save({"d.weight": torch.ones(2, 2)}, tmp_path / "mask.pth")
    with pytest.raises(ValueError, match=r"mask\.pth: .* got one of 'd\.weight'"):
        open_checkpoint(tmp_path)


def shards(folder, state, kind):
    """Write one tensor a file, and the index; return its path."""
    suffix = "safetensors" if kind == "safetensors" else "bin"
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = {
        name: f"{stem}-{i:05d}-of-{len(state):05d}.{suffix}" for i, name in enumerate(state, 1)
    }
    for name, file in names.items():
        save = safetensors.torch.save_file if kind == "safetensors" else torch.save
        save({name: state[name]}, folder / file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_shards_with_an_index(tmp_path, weights, masks, kind):
    index = shards(tmp_path, zeroed(weights, masks), kind)

    assert_holds(index, weights, masks)
    assert_holds(tmp_path, weights, masks)

    shard = next(iter(tmp_path.glob("*-00002-of-*")))
    shard.unlink()
    with pytest.raises(ValueError, match=rf"missing shards: {shard.name}"):
        open_checkpoint(tmp_path)


def test_shards_without_an_index(tmp_path, weights, masks):
    index = shards(tmp_path, zeroed(weights, masks), "safetensors")
    index.unlink()
    assert_holds(tmp_path, weights, masks)

    extra = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a.weight": weights["a.weight"]}, extra)
    with pytest.raises(ValueError, match=r"other\.safetensors: a\.weight is in another file"):
        open_checkpoint(tmp_path)
    extra.unlink()
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="missing shards: model-00003-of-00003.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "expected the index of a sharded checkpoint"),
        ("[]", "expected the index of a sharded checkpoint"),
        ('{"weight_map": {"a": "../../x.safetensors"}}', r"shards beside it, got \.\./\.\./x"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "duplicate names: a"),
        ('{"weight_map": {"z.weight": "x.safetensors"}}', "shards do not hold z.weight"),
    ],
)
def test_a_bad_index(tmp_path, weights, content, words):
    safetensors.torch.save_file(weights, tmp_path / "x.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=rf"index\.json: .*{words}"):
        open_checkpoint(tmp_path)


class Payload:
    """What a hostile file does when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path, weights):
    torch.save({**weights, "x": Payload(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: not loaded: .* could run code"):
        open_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_files_cut_short(tmp_path, weights, suffix, part):
    path = tmp_path / f"x.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(weights, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ValueError, match=rf"x\.{suffix}: not .*(damaged|cut short)"):
        open_checkpoint(path)


def test_duplicate_names(tmp_path):
    entry = '{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}'
    header = f'{{"a.weight":{entry},"a.weight":{entry}}}'.encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ValueError, match=r"x\.safetensors: .*duplicate names: a\.weight"):
        open_checkpoint(path)

    state = {"a.weight": torch.ones(2, 2), "a.weight_orig": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"a\.weight and a\.weight_orig are both a\.weight"):
        stored_layers(state)


def test_names_keep_the_order_of_the_file(tmp_path):
    state = {f"{i}.weight": torch.ones(2, 2) for i in (3, 11, 2)}
    torch.save(state, tmp_path / "x.pt")
    assert list(open_checkpoint(tmp_path / "x.pt")) == list(state)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        open_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="expected a checkpoint in this folder"):
        open_checkpoint(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected one index, got a\.safe.*, b\.safe"):
        open_checkpoint(tmp_path)


def test_masks_of_another_shape_and_weights_of_another_kind_are_refused():
    state = {"a.weight": torch.ones(2, 3), "a.weight_mask": torch.ones(3, 2)}
    with pytest.raises(ValueError, match=r"a\.weight: expected a mask of the weight's shape"):
        read_layer("a.weight", stored_layers(state)["a.weight"], state)
    for dtype in (torch.int8, torch.complex64, torch.bool):
        state = {"a.weight": torch.ones(2, 3, dtype=dtype)}
        with pytest.raises(ValueError, match=rf"a\.weight: .* floating point, got {dtype}"):
            read_layer("a.weight", stored_layers(state)["a.weight"], state)


@pytest.mark.parametrize("value", [0.5, math.nan, -1.0, 2.0])
def test_masks_of_other_values_than_zeros_and_ones_are_refused(value):
    state = {"a.weight": torch.ones(2, 3), "a.weight_mask": torch.ones(2, 3)}
    state["a.weight_mask"][1, 2] = value
    with pytest.raises(ValueError, match=r"a\.weight: expected a mask of zeros and ones"):
        read_layer("a.weight", stored_layers(state)["a.weight"], state)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("convert", [Tensor.to_sparse, Tensor.to_sparse_csr])
def test_torchs_own_sparse_tensors_are_weights(tmp_path, convert):
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    torch.save({"a.weight": convert(weight)}, tmp_path / "x.pt")
    state = open_checkpoint(tmp_path / "x.pt")
    assert state.headers["a.weight"].shape == (2, 3)
    layer = read_layer("a.weight", stored_layers(state)["a.weight"], state)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.mask, weight != 0)


def test_eight_bit_floats_are_weights():
    state = {"a.weight": torch.tensor([[1.0, 0.0]]).to(torch.float8_e4m3fn)}
    layer = read_layer("a.weight", stored_layers(state)["a.weight"], state)
    assert layer.weight.tolist() == [[1.0, 0.0]]
    assert layer.mask.tolist() == [[True, False]]


def test_a_lookup_reads_one_tensor(tmp_path, weights, monkeypatch):
    safetensors.torch.save_file(weights, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").unlink()

    assert checkpoint.headers["a.weight"].shape == (6, 8)
    assert checkpoint.headers["a.weight"].is_meta
    with pytest.raises(FileNotFoundError):
        checkpoint["a.weight"]
