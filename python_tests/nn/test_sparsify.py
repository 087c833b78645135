import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fullspectrum_ext.nn import (
    MaskedConv2d,
    MaskedLinear,
    SparseConv2d,
    SparseLinear,
    densify,
    load_sparse_state_dict,
    sparsify,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


MASKED = ("conv.weight", "head.0.weight", "head.2.weight")


def masks_of(model, density=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(model.get_parameter(name).shape, generator=generator) < density
        for name in MASKED
    }


def applied(model, masks):
    """The dense model with its removed weights set to zero."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model


def images(batch=6):
    return torch.randn(batch, 1, 4, 4)


# ---- sparsify and densify ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "conv", "linear"),
    [
        ("sparse", SparseConv2d, SparseLinear),
        ("masked", MaskedConv2d, MaskedLinear),
        ("auto", MaskedConv2d, MaskedLinear),  # all of them are small
    ],
)
def test_the_masked_layers_and_only_those_are_replaced(backend, conv, linear):
    model = Net().eval()
    masks = masks_of(model)
    dense = applied(model, masks)
    others = {"norm": model.norm, "head": model.head, "head.1": model.head[1]}

    result = sparsify(model, masks, backend=backend)

    assert result is model
    kinds = [type(model.get_submodule(n)) for n in ("conv", "head.0", "head.2")]
    assert kinds == [conv, linear, linear]
    assert all(model.get_submodule(name) is module for name, module in others.items())
    assert not any(module.training for module in model.modules())
    x = images()
    torch.testing.assert_close(model(x), dense(x), rtol=1e-5, atol=1e-6)


def test_densify_is_the_inverse():
    model = Net()
    masks = masks_of(model)
    dense = applied(model, masks)
    for backend in ("sparse", "masked"):
        back = densify(sparsify(copy.deepcopy(model), masks, backend=backend))
        assert [type(m) for m in back.modules()] == [type(m) for m in dense.modules()]
        assert back.state_dict().keys() == dense.state_dict().keys()
        for key, tensor in dense.state_dict().items():
            assert torch.equal(back.state_dict()[key], tensor)
        assert str(back) == str(dense)


def test_a_convolution_keeps_all_that_it_is():
    dense = nn.Conv2d(
        4, 6, (3, 2), 2, 1, (1, 2), groups=2, bias=False, padding_mode="reflect"
    )  # fmt: skip
    mask = torch.rand(dense.weight.shape) < 0.5
    expected = applied(nn.Sequential(dense), {"0.weight": mask})
    sparse = sparsify(nn.Sequential(copy.deepcopy(dense)), {"0.weight": mask}, backend="sparse")

    x = torch.randn(2, 4, 7, 8)
    torch.testing.assert_close(sparse(x), expected(x), rtol=1e-5, atol=1e-5)
    assert str(densify(sparse)) == str(nn.Sequential(dense))


def test_densify_keeps_a_layer_in_all_its_places():
    sparse = sparsify(nn.Linear(3, 3), {"weight": torch.eye(3)}, backend="sparse")
    model = densify(nn.Sequential(sparse, nn.ReLU(), sparse))
    assert isinstance(model[0], nn.Linear)
    assert model[2] is model[0]


def test_a_model_that_is_itself_a_layer():
    mask = torch.eye(3, dtype=torch.bool)
    sparse = sparsify(nn.Linear(3, 3), {"weight": mask}, backend="sparse")
    assert isinstance(sparse, SparseLinear)
    assert isinstance(densify(sparse), nn.Linear)
    loaded = load_sparse_state_dict(nn.Linear(3, 3), sparse.state_dict())
    assert torch.equal(loaded.to_dense(), sparse.to_dense())


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16], ids=str
)
def test_masks_of_zeros_and_ones_in_any_dtype(dtype):
    model = nn.Sequential(nn.Linear(4, 4))
    sparsify(model, {"0.weight": torch.eye(4).to(dtype)}, backend="sparse")
    assert model[0].nnz == 4


def test_frozen_weights_stay_frozen_and_layers_can_be_masked_again():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.requires_grad_(False)
    sparsify(model, {"0.weight": torch.ones(4, 4)}, backend="masked")
    sparsify(model, {"0.weight": torch.eye(4)}, backend="sparse")
    assert model[0].nnz == 4
    assert not model[0].values.requires_grad
    assert model[0].bias.requires_grad
    assert not densify(model)[0].weight.requires_grad


def test_no_random_number_is_drawn():
    model = Net()
    masks = masks_of(model)
    state = torch.get_rng_state()
    densify(sparsify(model, masks, backend="sparse"))
    assert torch.equal(state, torch.get_rng_state())


# ---- refusals ------------------------------------------------------------------------------------


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight


class Odd(nn.Linear):
    pass


def hooked():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *_: None)
    return model


def pruned():
    model = nn.Sequential(nn.Linear(4, 4))
    prune.random_unstructured(model[0], "weight", 0.5)
    return model


def sparse():
    return sparsify(nn.Sequential(nn.Linear(4, 4)), {"0.weight": EYE}, backend="sparse")


def linears():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


EYE = torch.eye(4)


@pytest.mark.parametrize(
    ("build", "masks", "error", "message"),
    [
        (linears, {"2.weight": EYE}, ValueError, "2.weight.*no parameter of this name"),
        (linears, {"0.bias": EYE[0]}, ValueError, "expected the weight of .*got 'bias' of Linear"),
        (linears, {"0.weight": EYE[:3]}, ValueError, r"weight's shape \(4, 4\), got \(3, 4\)"),
        (linears, {"0.weight": EYE * 0.5}, ValueError, "expected zeros and ones, got 0.5"),
        (linears, {"0.weight": EYE - 2 * EYE}, ValueError, "expected zeros and ones, got -1"),
        (linears, {"0.weight": EYE * float("nan")}, ValueError, "expected zeros and ones, got nan"),
        (linears, {"0.weight": EYE * 0}, ValueError, "0.weight.*keeps none of the 16 weights"),
        (linears, {"0.weight": [[1]]}, TypeError, "expected a torch.Tensor, got list"),
        (linears, [EYE], TypeError, "masks: expected a mapping of names to tensors, got list"),
        (Shared, {"a.weight": EYE}, ValueError, "a.weight.*shared between 2 places"),
        (lambda: Odd(4, 4), {"weight": EYE}, ValueError, "got 'weight' of Odd"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), {"0.weight": EYE}, ValueError, "is lazy"),
        (
            lambda: nn.Linear(4, 4, device="meta"),
            {"weight": EYE},
            ValueError,
            "meta device and holds",
        ),
        (lambda: nn.LayerNorm(4), {"weight": EYE[0]}, ValueError, "'weight' of LayerNorm"),
        (hooked, {"0.weight": EYE}, ValueError, "its layer has hooks"),
        (pruned, {"0.weight": EYE}, ValueError, r"no parameter.*call its remove\(\) first"),
        (sparse, {"0.weight": EYE}, ValueError, r"sparse already: call densify\(\) first"),
    ],
)
def test_bad_masks_are_refused_and_change_nothing(build, masks, error, message):
    model = build()
    modules = list(model.modules())
    if isinstance(masks, dict) and build is linears:
        masks = {"1.weight": EYE, **masks}  # a good one first must not be applied either
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if "1." in n}

    with pytest.raises(error, match=message):
        sparsify(model, masks)

    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    for name, weight in weights.items():
        assert torch.equal(model.get_parameter(name), weight)


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match="backend: expected one of auto, .*, got 'fast'"):
        sparsify(linears(), {}, backend="fast")
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got int"):
        sparsify(3, {})
    masks = {"0.weight": EYE}
    with pytest.raises(ValueError, match="backend: .* in one only are: 0.weight, 1.weight"):
        sparsify(linears(), masks, backend={"1.weight": "sparse"})
    with pytest.raises(ValueError, match=r"backend\['0.weight'\]: .* masked, got 'auto'"):
        sparsify(linears(), masks, backend={"0.weight": "auto"})
    with pytest.raises(ValueError, match="example: .*'auto' only, got backend='masked'"):
        sparsify(linears(), masks, backend="masked", example=torch.ones(2, 4))
    with pytest.raises(TypeError, match="example: expected a tensor or a tuple .*, got list"):
        sparsify(linears(), masks, example=[1.0])
    with pytest.raises(ValueError, match="example: the model cannot be run with it: .*2x5"):
        sparsify(linears(), masks, example=torch.ones(2, 5))


def test_an_empty_layer_where_it_is_allowed():
    model = sparsify(linears(), {"0.weight": EYE * 0}, backend="sparse", allow_empty=True)
    x = torch.ones(2, 4)
    torch.testing.assert_close(model[0](x), model[0].bias.expand(2, 4))
    model(x).sum().backward()


# ---- training ------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


def train(model, optimizer, steps=20):
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x = torch.randn(16, 1, 4, 4, generator=generator, dtype=torch.float64)
        target = torch.randint(5, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sparse_and_masked_training_agree_and_keep_the_mask(optimizer):
    start = Net().double()
    masks = masks_of(start)
    trained = {}
    for backend in ("sparse", "masked"):
        model = sparsify(copy.deepcopy(start), masks, backend=backend)
        train(model, optimizer)
        trained[backend] = densify(model).state_dict()

    for key, tensor in trained["sparse"].items():
        torch.testing.assert_close(tensor, trained["masked"][key], rtol=1e-8, atol=1e-9)
    for name, mask in masks.items():
        for state in trained.values():
            assert bool((state[name][~mask] == 0).all())
            moved = (state[name] != start.get_parameter(name))[mask]
            assert moved.double().mean() > 0.8  # a unit that never fires stays


# ---- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sparse", "masked"])
def test_a_sparse_state_dict_loads_into_a_fresh_dense_model_bit_for_bit(backend, tmp_path):
    sparse = sparsify(Net(), masks_of(Net()), backend=backend)
    sparse(images())  # moves the running statistics of the normalisation
    sparse.eval()
    torch.save(sparse.state_dict(), tmp_path / "sparse.pt")

    state = torch.load(tmp_path / "sparse.pt", weights_only=True)
    loaded = load_sparse_state_dict(Net(), state).eval()

    x = images()
    assert torch.equal(loaded(x), sparse(x))
    assert str(loaded) == str(sparse)
    for key, tensor in sparse.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


def test_a_dense_state_dict_loads_as_ever():
    source = Net().eval()
    loaded = load_sparse_state_dict(Net(), source.state_dict()).eval()
    x = images()
    assert torch.equal(loaded(x), source(x))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("head.0.col_indices", None, "missing keys head.0.col_indices"),
        (
            "head.0.col_indices",
            lambda t: t + 64,
            r"0.col_indices: expected values in \[0, 64\)",
        ),
        ("head.0.crow_indices", lambda t: t[:-1], "head.0.crow_indices: expected rows .* 33"),
        ("head.0.values", lambda t: "pickle", "head.0.values: expected a torch.Tensor, got str"),
        ("head.0.bias", None, "missing keys 'head.0.bias'"),
        ("head.0.bias", lambda t: t[:-1], r"expected shape \(32,\) for 'head.0.bias'"),
        ("conv.mask", lambda t: t[:1], r"conv.weight.*shape \(4, 1, 3, 3\), got \(1, 1, 3, 3\)"),
        ("conv.mask", lambda t: t * 2, "conv.weight.*expected zeros and ones, got 2"),
        ("norm.bias", lambda t: None, r"expected shape \(4,\) for 'norm.bias', got NoneType"),
        ("extra", lambda t: torch.ones(1), "unexpected keys 'extra'"),
        ("tail.crow_indices", lambda t: torch.ones(1), "tail.weight.*no parameter of this name"),
    ],
)
def test_a_wrong_state_dict_is_refused_and_changes_nothing(key, change, message):
    backends = {name: "masked" if "conv" in name else "sparse" for name in MASKED}
    state = dict(sparsify(Net(), masks_of(Net()), backend=backends).state_dict())
    if change is None:
        del state[key]
    else:
        state[key] = change(state.get(key))
    model = Net()
    modules = list(model.modules())
    before = copy.deepcopy(model.state_dict())

    with pytest.raises((ValueError, TypeError), match=message):
        load_sparse_state_dict(model, state)

    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_a_layer_on_the_meta_device_is_refused():
    with pytest.raises(ValueError, match="meta device and holds nothing: call"):
        sparsify(nn.Linear(4, 4, device="meta"), {"weight": EYE})
