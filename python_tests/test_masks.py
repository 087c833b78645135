import copy
import io
import os
import pickle

import pytest
import safetensors.torch
import torch
from rich.console import Console
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fullspectrum_ext as fs
from fullspectrum_ext import _files
from fullspectrum_ext.masks import FORMAT, MaskSet


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture
def masks(model):
    return MaskSet({
        "0.weight": torch.rand(4, 1, 3, 3) < 0.5,
        "3.weight": torch.rand(3, 16) < 0.5,
    })


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_counts_by_hand():
    masks = MaskSet({"a": torch.tensor([[1.0, 0.0], [1.0, 1.0]]), "b": torch.tensor([[0, 0]])})

    assert list(masks) == ["a", "b"]
    assert masks["a"].dtype == torch.bool
    assert (masks.nnz, masks.numel, masks.density, masks.sparsity) == (3, 6, 0.5, 0.5)
    assert repr(masks) == "MaskSet(2 layers, 3 of 6 weights kept, sparsity 0.5000)"


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
def test_zeros_and_ones_of_any_dtype(dtype):
    bits = torch.tensor([[1, 0, 1]])
    assert MaskSet({"a": bits.to(dtype)}) == MaskSet({"a": bits.bool()})


def test_does_not_alias_what_it_was_made_from():
    bits = torch.ones(2, 2, dtype=torch.bool)
    masks = MaskSet({"a": bits})
    bits[0, 0] = False
    assert masks.nnz == 4


@pytest.mark.parametrize(
    ("mapping", "error", "match"),
    [
        ({}, ValueError, "at least one mask"),
        ([1], TypeError, "expected a mapping"),
        ({"fc": [1, 0]}, TypeError, r"masks\['fc'\]: expected a torch.Tensor, got list"),
        ({"fc": torch.tensor([0.0, 0.5])}, ValueError, r"masks\['fc'\]: .* got 0.5"),
        ({"fc": torch.tensor([0.0, float("nan")])}, ValueError, r"masks\['fc'\]: .* got nan"),
        ({"fc": torch.tensor([0, -1])}, ValueError, r"masks\['fc'\]: .* got -1"),
        ({3: torch.ones(2)}, TypeError, "expected parameter names, got 3"),
    ],
)
def test_refuses(mapping, error, match):
    with pytest.raises(error, match=match):
        MaskSet(mapping)


def test_equality_and_digest_look_at_names_shapes_and_bits():
    one = MaskSet({"a": torch.tensor([[1, 0]]), "b": torch.tensor([[1]])})
    assert one == MaskSet({"b": one["b"], "a": one["a"]})
    others = [
        MaskSet({"a": torch.tensor([[0, 1]]), "b": one["b"]}),
        MaskSet({"a": torch.tensor([[1], [0]]), "b": one["b"]}),
        MaskSet({"c": one["a"], "b": one["b"]}),
        MaskSet({"a": one["a"]}),
    ]
    assert all(one != other for other in others)
    assert len({masks.digest() for masks in [one, *others]}) == 5
    assert one.digest() == MaskSet({"b": one["b"], "a": one["a"]}).digest()
    assert one != {"a": one["a"], "b": one["b"]}


def test_digest_does_not_change_between_versions():
    masks = MaskSet({"a": torch.tensor([[1, 0, 1]])})
    assert masks.digest() == "a587f766810ee7536c72de5eeeb58db9b01c05174029654084a50ecf79ea5e1c"


def test_apply_zeroes_the_pruned_weights_and_nothing_else(model, masks):
    model(torch.randn(5, 1, 4, 4)).sum().backward()
    with torch.no_grad():  # a diverged weight under the mask becomes zero too
        model[3].weight[~masks["3.weight"]] = float("nan")
    before, gradients = snapshot(model), [p.grad.clone() for p in model.parameters()]

    masks.apply(model)

    for name, tensor in model.state_dict().items():
        if name in masks:
            assert (tensor[~masks[name]] == 0).all()
            assert torch.equal(tensor[masks[name]], before[name][masks[name]])
        else:
            assert torch.equal(tensor, before[name])
    assert all(
        torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), gradients, strict=True)
    )
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"4.weight": torch.ones(3, 16)}, "no parameter '4.weight'"),
        (
            {"3.weight": torch.ones(16, 3)},
            r"has shape \(3, 16\), but its mask \(16, 3\)",
        ),
    ],
)
def test_apply_refuses_before_it_changes_anything(model, masks, wrong, match):
    before = snapshot(model)
    with pytest.raises(ValueError, match=match):
        MaskSet({"0.weight": masks["0.weight"], **wrong}).apply(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_save_and_load(masks, tmp_path):
    masks = MaskSet({**masks, "scalar shapes": torch.ones(()), "none": torch.ones(0, 3)})
    masks.meta["method"] = "by hand"
    path = tmp_path / "masks.safetensors"

    masks.save(path)
    loaded = MaskSet.load(path)

    assert loaded == masks
    assert list(loaded) == list(masks)
    assert loaded.meta == {"method": "by hand"}
    assert loaded.digest() == masks.digest()
    assert path.stat().st_size < masks.numel // 8 + 1000
    assert os.listdir(tmp_path) == ["masks.safetensors"]
    content = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == content


def test_an_interrupted_save_leaves_the_old_file(masks, tmp_path, monkeypatch):
    path = tmp_path / "masks.safetensors"
    masks.save(path)

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(_files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        MaskSet({"other": torch.ones(1)}).save(path)

    assert MaskSet.load(path) == masks
    assert os.listdir(tmp_path) == ["masks.safetensors"]


class Hostile:
    def __reduce__(self):
        return (os.abort, ())


def damaged_files(masks, path):
    masks.save(path)
    whole = path.read_bytes()
    yield b""
    yield whole[:7]
    yield whole[: len(whole) // 2]
    yield whole[:-1]
    yield b"\xff" * 64
    yield pickle.dumps(Hostile())
    yield safetensors.torch.save({"0": torch.ones(2)})
    one = {"0": torch.zeros(1, dtype=torch.uint8)}
    meta = '"meta": {}'
    yield safetensors.torch.save(
        {"1": torch.ones(2)}, metadata={FORMAT: f'{{"shapes": [], {meta}}}'}
    )
    wrong = ['[["a", [9]]]', '[["a", [-1]]]', '[["a", [2.5]]]', '[["a", "b"]]', '[["a"]]']
    for shapes in [*wrong, "[]", "7", "{", "[" * 99999]:
        yield safetensors.torch.save(
            one, metadata={FORMAT: f'{{"shapes": {shapes}, "meta": {{}}}}'}
        )


def test_damaged_and_foreign_files_are_refused_by_name(masks, tmp_path):
    path = tmp_path / "masks.safetensors"
    for content in list(damaged_files(masks, path)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"masks\.safetensors: expected masks written by"):
            MaskSet.load(path)
    with pytest.raises(FileNotFoundError):
        MaskSet.load(tmp_path / "absent")


def test_table(masks):
    console = Console(width=100, file=io.StringIO())
    console.print(masks.table())
    text = console.file.getvalue()
    assert "4 x 1 x 3 x 3" in text
    assert f"{masks.nnz} / {masks.numel}" in text


def test_from_a_plain_model(model, masks):
    masks.apply(model)
    assert MaskSet.from_model(model) == masks
    assert MaskSet.from_state_dict(model.state_dict()) == masks


def test_a_dense_layer_is_all_true(model):
    assert MaskSet.from_model(model).density == 1


def test_from_torch_prune_after_several_rounds(model):
    layer = model[3]
    prune.l1_unstructured(layer, "weight", amount=10)
    prune.random_unstructured(layer, "weight", amount=20)
    prune.random_unstructured(layer, "bias", amount=1)
    expected = layer.weight_mask.bool()
    with torch.no_grad():  # a kept weight that is zero is kept all the same
        layer.weight_orig[expected] = 0

    for masks in (MaskSet.from_model(model), MaskSet.from_state_dict(model.state_dict())):
        assert sorted(masks) == ["0.weight", "3.weight"]
        assert torch.equal(masks["3.weight"], expected)
        assert int(masks["3.weight"].count_nonzero()) == 18
        assert masks["0.weight"].all()


class Fixed(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


def test_from_a_parametrized_model(model, masks):
    parametrize.register_parametrization(model[3], "weight", Fixed(masks["3.weight"]))
    for found in (MaskSet.from_model(model), MaskSet.from_state_dict(model.state_dict())):
        assert sorted(found) == ["0.weight", "3.weight"]
        assert torch.equal(found["3.weight"], masks["3.weight"])


@pytest.mark.parametrize("backend", ["sparse", "masked"])
def test_from_the_layers_of_this_package(backend):
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    masks = MaskSet({"0.weight": torch.rand(4, 5) < 0.5, "2.weight": torch.rand(2, 4) < 0.5})
    model = fs.sparsify(model, masks, backend=backend)
    with torch.no_grad():  # a stored weight that is zero is there all the same
        for parameter in model.parameters():
            parameter.zero_()
    assert MaskSet.from_model(model) == masks


def sparse_state(mask):
    model = nn.Sequential(nn.Linear(*mask.T.shape))
    return fs.sparsify(model, {"0.weight": mask}, backend="sparse").state_dict()


def test_from_the_state_dict_of_a_sparse_layer():
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    state = sparse_state(mask)
    state.pop("0.in_features", None)
    with pytest.raises(ValueError, match="sparse layer '0' does not say how many inputs it has"):
        MaskSet.from_state_dict(state)
    state["0.in_features"] = torch.tensor(5)
    assert torch.equal(MaskSet.from_state_dict(state)["0.weight"], mask)
    state["0.in_features"] = torch.tensor(3)  # fewer than the largest index asks for
    with pytest.raises(ValueError, match=r"state: 0: col_indices: expected values in \[0, 3\)"):
        MaskSet.from_state_dict(state)


def test_a_mask_that_is_not_the_weights(model):
    model[3].register_buffer("mask", torch.ones(7))  # a causal mask, say
    assert MaskSet.from_model(model)["3.weight"].all()
    assert MaskSet.from_state_dict(model.state_dict())["3.weight"].all()
    with pytest.raises(ValueError, match=r"fc.weight: expected a mask of the weight's shape"):
        MaskSet.from_state_dict({"fc.weight_orig": torch.ones(2), "fc.weight_mask": torch.ones(3)})


def test_reading_a_parametrized_model_leaves_it_alone():
    layer = parametrizations.spectral_norm(nn.Linear(6, 5))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    MaskSet.from_model(layer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert all(module.training for module in layer.modules())


def test_a_shared_parameter_is_named_once(model):
    twice = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    twice[1].weight = twice[0].weight
    assert list(MaskSet.from_model(twice)) == ["0.weight"]


def test_from_model_refuses():
    with pytest.raises(ValueError, match="expected a Linear, Conv2d or recurrent layer"):
        MaskSet.from_model(nn.ReLU())
    with pytest.raises(ValueError, match="1.weight is not initialised yet"):
        MaskSet.from_model(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))
    with pytest.raises(ValueError, match="found none"):
        MaskSet.from_state_dict({"bias": torch.ones(3)})


def test_can_be_copied(masks):
    assert copy.deepcopy(masks) == masks
