"""What holds for every method: counts, repeatability, an untouched model, errors in words."""

import copy
import random

import networks
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fullspectrum_ext as fs
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning import methods, prune, register_pruner
from fullspectrum_ext.pruning.base import _METHODS
from fullspectrum_ext.pruning.batches import Batches

METHODS = [
    "er",
    "erk",
    "force",
    "grasp",
    "itersnip",
    "magnitude",
    "pags",
    "phew",
    "ramanujan",
    "random",
    "snip",
    "synflow",
    "taylor1",
    "uniform",
]
QUICK = {"synflow": {"rounds": 5}, "pags": {"candidates": 2}}


def run(method, model, *, image=False, **arguments):
    defaults = {"data": networks.digits(image=image), "seed": 1, **QUICK.get(method, {})}
    return prune(model, method, **{**defaults, **arguments})


def test_every_method_is_tested_here():
    assert methods() == METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("image", [False, True], ids=["mlp", "conv"])
def test_counts_are_exact(method, image):
    model = networks.conv_net() if image else networks.mlp()
    weights = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    total = sum(weight.numel() for weight in weights.values())
    for sparsity in (0, 0.5, 0.9, 0.99, 0.999):
        masks = run(method, model, image=image, sparsity=sparsity, allow_collapse=True)
        assert masks.nnz == round((1 - sparsity) * total)
        assert {name: mask.shape for name, mask in masks.items()} == {
            name: weight.shape for name, weight in weights.items()
        }
        assert list(masks) == list(weights)


@pytest.mark.parametrize("method", METHODS)
def test_a_residual_network_with_inplace_operations(method):
    model = build_model("resnet20", (1, 8, 8), 10, seed=0)
    masks = run(method, model, image=True, sparsity=0.9)
    assert len(masks) == 20
    assert masks.nnz == round(0.1 * masks.numel)
    assert run(method, model, image=True, sparsity=0.9) == masks


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_exact_when_all_scores_are_equal(method):
    model = networks.mlp()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    for sparsity in (0, 0.5, 0.9, 0.99, 0.999):
        masks = run(method, model, sparsity=sparsity, allow_collapse=True)
        assert masks.nnz == round((1 - sparsity) * 50200)


def state_of(model):
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in model.named_parameters()
        },
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "random": torch.get_rng_state(),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_the_model_and_the_random_state_are_left_alone(method, mode):
    model = networks.conv_net()
    batches = networks.digits(image=True)
    nn.functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    model[3].weight.requires_grad_(False)
    model.train(mode != "eval")
    loader = DataLoader(
        TensorDataset(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])),
        batch_size=32,
        shuffle=True,
    )
    before = state_of(model)

    with torch.set_grad_enabled(mode != "no_grad"):
        run(method, model, data=loader, sparsity=0.5)

    after = state_of(model)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert after["modes"] == before["modes"]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_masks(method):
    model = networks.mlp()
    assert run(method, model, sparsity=0.5) == run(method, model, sparsity=0.5)


@pytest.mark.parametrize("method", ["random", "uniform", "er", "erk", "itersnip", "force", "phew"])
def test_another_seed_gives_other_masks(method):
    model = networks.mlp()
    assert run(method, model, sparsity=0.9) != run(method, model, sparsity=0.9, seed=2)


def test_without_a_seed_torchs_own_decides():
    model = networks.mlp()
    torch.manual_seed(5)
    one = prune(model, "random", sparsity=0.9)
    assert prune(model, "random", sparsity=0.9) == one
    torch.manual_seed(6)
    assert prune(model, "random", sparsity=0.9) != one
    again = prune(model, "random", sparsity=0.9, seed=one.meta["seed"])
    assert again == one


def test_density_is_the_other_way_to_say_sparsity():
    model = networks.mlp()
    assert prune(model, "magnitude", density=0.25) == prune(model, "magnitude", sparsity=0.75)


def test_meta_says_how_the_masks_were_made(tmp_path):
    masks = run("synflow", networks.mlp(), sparsity=0.75)
    assert masks.meta == {
        "method": "synflow",
        "density": 0.25,
        "scope": "global",
        "seed": 1,
        "options": {"rounds": 5},
    }
    masks.save(tmp_path / "masks.safetensors")
    assert MaskSet.load(tmp_path / "masks.safetensors").meta == masks.meta


@pytest.mark.parametrize("method", [m for m in METHODS if m not in {"pags", "ramanujan"}])
def test_inverted_it_keeps_the_lowest_scores_as_many_in_each_layer(method):
    model = networks.mlp()
    masks, inverted = (
        run(method, model, sparsity=0.8, invert=flag, allow_collapse=True) for flag in (False, True)
    )
    for name, mask in masks.items():
        assert int(inverted[name].sum()) == int(mask.sum())
        overlap = int((inverted[name] & mask).sum())
        assert overlap == max(2 * int(mask.sum()) - mask.numel(), 0)
    assert inverted.meta == {**masks.meta, "invert": True}
    if method == "magnitude":
        for name, mask in inverted.items():
            sizes = model.get_parameter(name).detach().abs()
            assert bool((sizes[mask][:, None] <= sizes[~mask].min()).all())


@pytest.mark.parametrize("method", ["pags", "ramanujan"])
def test_masks_without_scores_cannot_be_inverted(method):
    with pytest.raises(ValueError, match=f"invert: method '{method}' makes masks without scores"):
        run(method, networks.mlp(), sparsity=0.8, invert=True)


def test_include_and_exclude():
    model = networks.mlp()
    every = ["0.weight", "2.weight", "4.weight"]
    assert list(prune(model, "magnitude", sparsity=0.5)) == every
    assert list(prune(model, "magnitude", sparsity=0.5, include="0")) == every[:1]
    assert list(prune(model, "magnitude", sparsity=0.5, include=["0*", "4.w*"])) == every[::2]
    masks = prune(model, "magnitude", sparsity=0.5, exclude=["4"])
    assert list(masks) == every[:2]
    assert masks.nnz == 49200 // 2


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, ValueError, "exactly one of them, got neither"),
        ({"sparsity": 0.5, "density": 0.5}, ValueError, "exactly one of them, got both"),
        ({"sparsity": -0.1}, ValueError, r"sparsity: expected a fraction in \[0, 1\), got -0.1"),
        ({"sparsity": 1.0}, ValueError, r"sparsity: .* got 1.0"),
        ({"sparsity": 95}, ValueError, r"sparsity: .* got 95"),
        ({"sparsity": float("nan")}, ValueError, r"sparsity: .* got nan"),
        ({"density": 0.0}, ValueError, r"density: expected a fraction in \(0, 1\], got 0.0"),
        ({"density": 1.5}, ValueError, r"density: .* got 1.5"),
        ({"density": float("nan")}, ValueError, r"density: .* got nan"),
        ({"sparsity": "0.9"}, TypeError, "sparsity: expected a number, got str"),
        ({"sparsity": True}, TypeError, "sparsity: expected a number, got bool"),
        ({"sparsity": 0.5, "method": "snap"}, ValueError, "no 'snap'; did you mean 'snip'"),
        ({"sparsity": 0.5, "method": "xxxxxxx"}, ValueError, "no 'xxxxxxx'; Known: er, erk,"),
        (
            {"sparsity": 0.5, "round": 3},
            TypeError,
            "has no option 'round'; it has none",
        ),
        (
            {"sparsity": 0.5, "method": "synflow", "round": 3},
            TypeError,
            r"no option 'round' \(did you mean 'rounds'\?\); it has rounds, input_shape",
        ),
        ({"sparsity": 0.5, "scope": "net"}, ValueError, "scope: expected one of 'global', 'layer'"),
        (
            {"sparsity": 0.5, "method": "erk", "scope": "global"},
            ValueError,
            "scope: expected one of 'erk' for method 'erk', got 'global'",
        ),
        ({"sparsity": 0.5, "seed": 1.5}, TypeError, "seed: expected an integer, got float"),
        ({"sparsity": 0.5, "seed": -1}, ValueError, r"seed: expected an integer in \[0, 2"),
        (
            {"sparsity": 0.5, "include": "fc*"},
            ValueError,
            "include: the pattern 'fc.' matches",
        ),
        ({"sparsity": 0.5, "exclude": "fc"}, ValueError, "exclude: the pattern 'fc' matches none"),
        ({"sparsity": 0.5, "exclude": "*"}, ValueError, "no layer is left to prune"),
        ({"sparsity": 0.5, "method": "snip"}, ValueError, "data: this method scores on data"),
        ({"sparsity": 0.5, "method": "synflow"}, ValueError, "input_shape: .* needs the shape"),
        (
            {"sparsity": 0.5, "method": "synflow", "rounds": 0, "input_shape": (64,)},
            ValueError,
            "rounds: expected an integer >= 1, got 0",
        ),
        (
            {"sparsity": 0.5, "method": "force", "rounds": 0, "data": networks.digits()},
            ValueError,
            "rounds: expected an integer >= 1, got 0",
        ),
        (
            {"sparsity": 0.5, "method": "itersnip", "batches_per_round": 0},
            ValueError,
            "batches_per_round: expected at least 1, got 0",
        ),
        ({"sparsity": 0.5, "method": "force"}, ValueError, "data: this method scores on data"),
        ({"sparsity": 0.5, "method": "grasp"}, ValueError, "data: this method scores on data"),
        (
            {"sparsity": 0.5, "method": "grasp", "temperature": "hot"},
            TypeError,
            "temperature: expected a number, got str",
        ),
        (
            {"sparsity": 0.5, "method": "grasp", "temperature": 0},
            ValueError,
            "temperature: expected a number above 0, got 0",
        ),
        (
            {"sparsity": 0.5, "method": "phew", "scope": "layer"},
            ValueError,
            "scope: expected one of 'global' for method 'phew'",
        ),
        ({"sparsity": 0.5, "data": 3}, TypeError, "data: expected an iterable of batches"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        prune(networks.mlp(), **{"method": "magnitude", **arguments})


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ([], ValueError, "data: expected at least one batch, got none"),
        ([torch.ones(3)], TypeError, r"data: expected batches .* got Tensor"),
        ([(torch.ones(3, 64), [1, 2, 3])], TypeError, "data: .* got a tuple of Tensor, list"),
        (TensorDataset(torch.ones(3, 64)), TypeError, "got the data set TensorDataset; wrap it"),
    ],
)
def test_bad_data(data, error, match):
    with pytest.raises(error, match=match):
        prune(networks.mlp(), "snip", sparsity=0.5, data=data)


@pytest.mark.parametrize("method", ["snip", "itersnip", "grasp"])
def test_bad_loss(method):
    with pytest.raises(ValueError, match=r"loss: expected a scalar tensor, got shape \(32, 10\)"):
        run(method, networks.mlp(), sparsity=0.5, loss=lambda outputs, targets: outputs)


@pytest.mark.parametrize("method", ["snip", "itersnip", "force", "grasp"])
def test_nan_data_is_refused_by_layer(method):
    inputs, targets = networks.digits()[0]
    with pytest.raises(ValueError, match=rf"'{method}': the scores of 0.weight hold NaN"):
        run(method, networks.mlp(), sparsity=0.5, data=(inputs * torch.nan, targets))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.two = nn.Linear(8, 8)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))


@pytest.mark.parametrize("method", METHODS)
def test_a_shared_weight_is_one_weight(method):
    data = [(torch.randn(16, 8), torch.randint(8, (16,)))]
    options = {"chain": True} if method == "phew" else {}
    masks = run(method, Twice(), data=data, sparsity=0.5, **options)
    assert list(masks) == ["one.weight"]
    assert masks.nnz == 32


def sparsified(backend):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    return fs.sparsify(model, {"0.weight": torch.ones(3, 3)}, backend=backend)


def models_that_cannot_be_pruned():
    pruned = nn.Sequential(nn.Linear(3, 3))
    torch_prune.identity(pruned[0], "weight")
    parametrized = nn.Sequential(nn.Linear(3, 3))
    parametrize.register_parametrization(parametrized[0], "weight", nn.Identity())
    broken = nn.Sequential(nn.Linear(3, 3))
    nn.init.constant_(broken[0].weight, torch.nan)
    return [
        (nn.Sequential(nn.ReLU(), nn.LayerNorm(3), nn.Embedding(3, 3)), "found none"),
        (nn.Sequential(nn.LazyLinear(3)), "0.weight is not initialised yet"),
        (pruned, "0.weight is parametrized, sparse or already under a mask"),
        (parametrized, "0.weight is parametrized, sparse or already under a mask"),
        *[
            (sparsified(backend), "0.weight is parametrized, sparse or already under a mask")
            for backend in ("sparse", "masked")
        ],
        (nn.Sequential(nn.Linear(3, 3, device="meta")), "0.weight is on the meta device"),
        (broken, "0.weight holds NaN or infinite values"),
    ]


@pytest.mark.parametrize(("model", "match"), models_that_cannot_be_pruned())
def test_models_that_cannot_be_pruned(model, match):
    with pytest.raises(ValueError, match=match):
        prune(model, "magnitude", sparsity=0.5)


def test_a_model_must_be_a_module():
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got dict"):
        prune({}, "magnitude", sparsity=0.5)


def test_collapse_is_refused_by_layer_unless_allowed():
    model = networks.mlp()
    nn.init.constant_(model[2].weight, 1e-6)
    with pytest.raises(ValueError, match=r"leaves no weight in 2\.weight; lower the sparsity"):
        prune(model, "magnitude", sparsity=0.8)
    masks = prune(model, "magnitude", sparsity=0.8, allow_collapse=True)
    assert [bool(mask.any()) for mask in masks.values()] == [True, False, True]
    assert masks.nnz == 10040


def test_scores_that_are_all_zero_are_named_as_the_cause_of_a_collapse():
    model = networks.conv_net()
    nn.init.zeros_(model[1].weight)  # as networks begin whose blocks are to do nothing at first
    with pytest.raises(
        ValueError, match=r"no weight in 3\.weight; every score in 3\.weight is zero"
    ):
        run("snip", model, image=True, sparsity=0.9)


def test_a_method_of_ones_own():
    @register_pruner("last")
    def last(context, *, offset=0):
        return {
            name: torch.arange(weight.numel()).reshape(weight.shape) + float(offset)
            for name, weight in context.weights.items()
        }

    try:
        masks = prune(nn.Linear(3, 2), "last", sparsity=0.5, offset=2)
        assert masks["weight"].int().tolist() == [[0, 0, 0], [1, 1, 1]]
        with pytest.raises(ValueError, match="'last' is already registered"):
            register_pruner("last")(lambda context: {})
    finally:
        del _METHODS["last"]


def labelled(count):
    """Batches in which every sample says which one it is."""
    numbers = torch.arange(count)
    return numbers.float().reshape(-1, 1), numbers


class Stream(IterableDataset):
    def __init__(self, count):
        self.inputs, self.targets = labelled(count)

    def __iter__(self):
        return iter(zip(self.inputs, self.targets, strict=True))


def sources(count, size):
    inputs, targets = labelled(count)
    batches = list(zip(inputs.split(size), targets.split(size), strict=True))
    return {
        "list": batches,
        "generator": iter(batches),
        "pair": (inputs, targets),
        "loader": DataLoader(TensorDataset(inputs, targets), batch_size=size),
        "stream": DataLoader(Stream(count), batch_size=size),
    }


@pytest.mark.parametrize("kind", ["list", "generator", "pair", "loader", "stream"])
def test_batches_read_in_order_twice_and_draw_really_shuffled(kind):
    source = Batches(sources(50, 8)[kind])
    for _ in range(2):
        assert torch.cat([targets for _, targets in source]).tolist() == list(range(50))

    generator = torch.Generator().manual_seed(0)
    draws = [source.draw(3, generator) for _ in range(3)]

    for drawn in draws:
        size = 50 if kind == "pair" else 8
        numbers = torch.cat([targets for _, targets in drawn]).tolist()
        assert [len(targets) for _, targets in drawn] == ([50] if kind == "pair" else [8, 8, 8])
        assert len(set(numbers)) == len(numbers) == min(3 * size, 50)
        assert numbers != sorted(numbers)
        assert all(torch.equal(inputs[:, 0].long(), targets) for inputs, targets in drawn)
    first, second, _ = (torch.cat([targets for _, targets in drawn]).tolist() for drawn in draws)
    assert first != second
    again = source.draw(3, torch.Generator().manual_seed(0))
    assert torch.cat([targets for _, targets in again]).tolist() == first


def test_python_and_numpy_are_not_drawn_from():
    before = random.getstate()
    run("random", networks.mlp(), sparsity=0.5)
    assert random.getstate() == before


def test_a_copy_of_the_model_gives_the_same_masks():
    model = networks.conv_net()
    twin = copy.deepcopy(model)
    one = run("snip", model, image=True, sparsity=0.9)
    assert run("snip", twin, image=True, sparsity=0.9) == one
