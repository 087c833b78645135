"""PHEW: one path by hand, the chances of a step, and walks written out one by one."""

import bisect
import copy
import itertools
import warnings

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fullspectrum_ext._layers import prunable_weights
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.experiments.models.layers import MaxPool
from fullspectrum_ext.pruning import phew as phew_module
from fullspectrum_ext.pruning import prune
from fullspectrum_ext.pruning.links import INPUT, OUTPUT, traced_links
from fullspectrum_ext.spectral.paths import effective_masks


def test_the_only_path_by_hand():
    # Weights that are not zero: 0 -> 1 -> 2 -> 0, and one (value 9) that no walk can reach, for
    # what leads to it is zero and what leads on from it too.
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.zero_()
        model[0].weight[1, 0] = 0.01
        model[2].weight[2, 1] = -0.02
        model[2].weight[0, 0] = 9.0
        model[4].weight[0, 2] = 0.01
    for seed in range(5):
        masks = prune(model, "phew", density=3 / 21, seed=seed)
        assert [mask.nonzero().tolist() for mask in masks.values()] == [
            [[1, 0]],
            [[2, 1]],
            [[0, 2]],
        ]
    # one more: what no walk has reached follows by its size
    assert prune(model, "phew", density=4 / 21)["2.weight"].nonzero().tolist() == [[0, 0], [2, 1]]


@pytest.mark.parametrize("to", [True, False], ids=["to", "fro"])
def test_a_step_is_taken_in_proportion_to_the_weight(to):
    weight = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]], [[[0.0, 4.0]], [[-5.0, 5.0]]]])
    layer = phew_module._Layer(weight, 2)
    chances = torch.rand(40000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for unit in (0, 1):
        units = torch.full((40000,), unit)
        aims = chances * layer.total(units, to=to)
        positions, arrived = layer.step(units, aims, to=to)
        leading = weight.abs()[:, unit] if to else weight.abs()[unit]  # [arrives at, 1, places]
        expected = (leading / leading.sum()).flatten()
        where = torch.zeros_like(weight)
        (where[:, unit] if to else where[unit]).copy_(leading)
        counts = torch.bincount(positions, minlength=8).double() / 40000
        assert torch.equal(counts > 0, where.flatten() > 0)
        torch.testing.assert_close(
            counts[where.flatten() > 0], expected[expected > 0].double(), rtol=0, atol=0.0125
        )
        from_position = positions // 4 if to else positions // 2 % 2
        assert torch.equal(from_position, arrived)


def test_a_walk_stops_where_nothing_leads_on():
    layers = {"a": phew_module._Layer(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), 2)}
    units, chances = torch.tensor([0, 1, 0]), torch.tensor([0.0, 0.5, 0.99]).double()
    ((name, walks, positions, arrived),) = phew_module._steps(
        layers, [("a", 0)], units, chances, to=True
    )
    assert name == "a"
    assert walks.tolist() == [0, 2]
    assert positions.tolist() == [0, 2]
    assert arrived.tolist() == [0, 1]


@pytest.mark.parametrize("to", [True, False], ids=["to", "fro"])
def test_several_layers_that_lead_on_are_taken_in_proportion_to_their_weights(to):
    weights = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]), torch.tensor([[4.0, 3.0]])
    layers = {
        name: phew_module._Layer(weight if to else weight.T, (weight if to else weight.T).shape[1])
        for name, weight in zip("abc", weights, strict=True)
    }
    chances = torch.rand(40000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # unit 0 is their first one but for c, whose second one it is; d has no such unit
    ways = [("a", 0), ("b", 0), ("c", 1), ("a", -1)]
    found = {}
    for name, walks, positions, _ in phew_module._steps(
        layers, ways, torch.zeros(40000, dtype=torch.int64), chances, to=to
    ):
        for position in positions.tolist():
            found[name, position] = found.get((name, position), 0) + 1
        assert len(walks) == len(positions)
    assert sum(found.values()) == 40000
    assert set(found) == {("a", 0), ("a", 1), ("c", 1)}
    for key, share in {("a", 0): 1 / 6, ("a", 1): 2 / 6, ("c", 1): 3 / 6}.items():
        assert found[key] / 40000 == pytest.approx(share, abs=0.0125)


def written_out(model, count, seed):
    """Walks one after the other, in Python; the random numbers are drawn in the same order."""
    generator = torch.Generator().manual_seed(seed)
    layers, units = [], None
    for weight in (p.detach().double().abs() for p in model.parameters() if p.dim() > 1):
        inputs = weight.shape[1] if units is None else units
        layers.append(weight.reshape(weight.shape[0], inputs, -1))
        units = weight.shape[0]
    starts = layers[0].shape[1], layers[-1].shape[0]
    order: dict = {}  # (layer, position) in the order in which they are first taken
    walked = 0
    while len(order) < count:
        walks = max(128, (count - len(order)) // len(layers)) // 2
        drawn = [
            [torch.rand(walks, generator=generator, dtype=torch.float64).tolist() for _ in layers]
            for _ in ("to", "fro")
        ]
        for walk in range(walks):
            for way in (0, 1):
                unit = (walked + walk) % starts[way]
                numbers = range(len(layers)) if way == 0 else reversed(range(len(layers)))
                for step, number in enumerate(numbers):
                    layer = layers[number]
                    leading = layer[:, unit] if way == 0 else layer[unit]
                    sums = list(itertools.accumulate(leading.flatten().tolist()))
                    taken = bisect.bisect_right(sums, drawn[way][step][walk] * sums[-1])
                    other, place = divmod(taken, layer.shape[2])
                    key = (number, other, unit, place) if way == 0 else (number, unit, other, place)
                    order.setdefault(key, len(order))
                    unit = other
        walked += walks
    masks = [torch.zeros(layer.shape, dtype=torch.bool) for layer in layers]
    for number, *position in list(order)[:count]:
        masks[number][tuple(position)] = True
    return torch.cat([mask.flatten() for mask in masks])


@pytest.mark.parametrize("image", [False, True], ids=["mlp", "conv"])
def test_against_walks_written_out(image):
    model = networks.conv_net() if image else networks.mlp()
    masks = prune(model, "phew", sparsity=0.95, seed=3)
    expected = written_out(model, masks.nnz, 3)
    assert torch.equal(torch.cat([mask.flatten() for mask in masks.values()]), expected)


@pytest.mark.parametrize("image", [False, True], ids=["mlp", "conv"])
def test_all_that_is_kept_lies_on_whole_paths(image):
    model = networks.conv_net() if image else networks.mlp()
    masks = prune(model, "phew", sparsity=0.97, seed=0)
    on_paths = effective_masks(dict(masks))
    assert masks.nnz - sum(int(mask.sum()) for mask in on_paths.values()) < 3  # of the last walk
    # each side's units are begun at in turn
    first, *_, last = masks.values()
    assert bool(first.flatten(2 if image else 1).any(0).any(-1).all())
    assert bool(last.any(dim=1).all())


def test_walks_pass_through_layers_that_are_not_pruned():
    model = networks.mlp()
    masks = prune(model, "phew", sparsity=0.9, exclude="2", seed=0)
    assert list(masks) == ["0.weight", "4.weight"]
    assert masks.nnz == 2020
    assert prune(model, "phew", sparsity=0.9, include="2", seed=0).nnz == 3000


class Block(nn.Module):
    """A residual block; where it has more channels than inputs, these are padded with zeros."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.a, self.b = nn.Conv2d(inputs, outputs, 1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.more = outputs - inputs

    def forward(self, x):
        around = F.pad(x, (0, 0, 0, 0, self.more - 1, 1)) if self.more else x
        return F.relu(around + self.b(self.a(x).relu()))


def residual():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    return nn.Sequential(nn.Conv2d(1, 3, 1), Block(3, 3), Block(3, 5), head)


def test_which_layer_feeds_which_in_a_residual_network():
    model = residual()
    links = traced_links(model, dict(prunable_weights(model)))
    assert links.inputs == {
        "0.weight": 1,
        **{"1.a.weight": 3, "1.b.weight": 3, "2.a.weight": 3, "2.b.weight": 5, "3.2.weight": 5},
    }
    assert links.after == {
        INPUT: {"0.weight": 0},
        "0.weight": {"1.a.weight": 0, "2.a.weight": 0, "3.2.weight": 1},
        "1.a.weight": {"1.b.weight": 0},
        "1.b.weight": {"2.a.weight": 0, "3.2.weight": 1},
        "2.a.weight": {"2.b.weight": 0},
        "2.b.weight": {"3.2.weight": 0},
        "3.2.weight": {OUTPUT: 0},
    }
    assert (links.first_units, links.outputs) == (1, 2)
    assert links.before("3.2.weight") == {"0.weight": 1, "1.b.weight": 1, "2.b.weight": 0}


def test_the_only_path_around_the_blocks_by_hand():
    model = residual()
    weights = dict(prunable_weights(model))
    with torch.no_grad():
        for weight in weights.values():
            weight.zero_()
        weights["0.weight"][2, 0] = 0.1
        weights["3.2.weight"][1, 3] = 0.1  # unit 2, one further after the zeros
        weights["1.a.weight"][0, 1] = 9.0  # from a unit that nothing leads to
        weights["2.b.weight"][0, 0] = 9.0
    masks = prune(model, "phew", density=2 / masks_total(weights), allow_collapse=True, seed=0)
    kept = {name: mask.nonzero().tolist() for name, mask in masks.items() if mask.any()}
    assert kept == {"0.weight": [[2, 0, 0, 0]], "3.2.weight": [[1, 3]]}


def masks_total(weights):
    return sum(weight.numel() for weight in weights.values())


@pytest.mark.parametrize("name", ["resnet20", "wrn-22-2"])
def test_all_that_is_kept_of_a_residual_network_lies_on_whole_paths(name):
    model = build_model(name, (3, 8, 8), 10, seed=0)
    masks = prune(model, "phew", sparsity=0.99, seed=0)
    assert masks.nnz == round(0.01 * masks.numel)
    assert masks == prune(model, "phew", sparsity=0.99, seed=0)
    # by the flow through the network of absolute values, on an image large enough for all places
    model = copy.deepcopy(model).double().eval()
    weights = [model.get_parameter(weight) for weight in masks]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
        for weight, mask in zip(weights, masks.values(), strict=True):
            weight.mul_(mask)
    output = model(torch.ones(1, 3, 32, 32, dtype=torch.float64)).sum()
    flows = torch.autograd.grad(output, weights)
    dead = sum(
        int((mask & (flow == 0)).sum()) for mask, flow in zip(masks.values(), flows, strict=True)
    )
    assert dead < len(masks)  # of the last walk


class Passes(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between, second=None):
        super().__init__()
        self.between = between
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Linear(4, 3) if second is None else second

    def forward(self, x):
        return self.b(self.between(self.a(x)))


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.mean((2, 3)),
        lambda x: F.max_pool2d(x, 4).view(x.size(0), -1),
        lambda x: torch.flatten(F.gelu(x[:, :, :1, 3:]) + 1, 1),
        lambda x: F.pad(x[:, :, :1, :1], (0, 0, 0, 0)).reshape(x.shape[0], -1),
    ],
    ids=["mean", "view", "slice", "pad"],
)
def test_units_are_followed_through(between):
    model = Passes(between)
    assert model(torch.rand(2, 2, 4, 4)).shape == (2, 3)
    links = traced_links(model, dict(prunable_weights(model)))
    assert links.after["a.weight"] == {"b.weight": 0}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Passes(lambda x: x.mean(1)), "at 'mean' there is mean, through which units cannot be"),
        (Passes(lambda x: x[:, 1:]), "at 'getitem' there is getitem"),
        (Passes(lambda x: x * x.sigmoid()), "at 'mul' there is mul"),
        (Passes(lambda x: x + x.flip(1)), "at 'flip' there is flip"),
        (Passes(lambda x: x + F.pad(x[:, :, :1], (0, 0, 0, 1, 0, 1))), "a sum of different sizes"),
        (Passes(lambda x: x if x.sum() > 0 else -x), "torch.fx cannot trace the model: "),
        (Passes(nn.PixelShuffle(2)), "at 'between' there is PixelShuffle"),
        (Passes(nn.Identity(), nn.Conv2d(4, 4, 1, groups=2)), "b.weight is that of a grouped conv"),
        (Passes(nn.Identity(), nn.Conv2d(6, 4, 1)), "b.weight has 6 taps, which the 4 outputs of"),
        (
            nn.Sequential(Passes(F.relu, nn.Conv2d(4, 3, 1)), nn.Softmax2d(), nn.Bilinear(1, 1, 1)),
            "Bil",
        ),
        (
            Passes(lambda x: x, nn.Sequential(nn.Linear(4, 3), nn.Flatten(), nn.Linear(6, 2))),
            "a flatt",
        ),
        (build_model("vit", (1, 8, 8), 10, seed=0), "torch.fx cannot trace the model"),
        (nn.LSTM(3, 4), ""),
    ],
)
def test_what_units_cannot_be_followed_through_is_named(model, words):
    with pytest.raises(ValueError, match=f"'phew' walks .*, but cannot here: .*{words}"):
        prune(model, "phew", sparsity=0.5)


def test_a_layer_that_is_used_twice_or_never_is_named():
    class Half(Passes):
        def forward(self, x):
            return self.a(x).mean((2, 3))

    model = Half(nn.Identity())
    with pytest.raises(ValueError, match=r"the model's forward does not come to b.weight"):
        traced_links(model, dict(prunable_weights(model)))
    model = nn.Sequential(nn.Linear(4, 4))
    twice = nn.Sequential(model, model)
    with pytest.raises(ValueError, match=r"0.0.weight is used twice"):
        prune(twice, "phew", sparsity=0.5)


def test_a_model_whose_output_is_not_that_of_its_layers_is_refused():
    class Around(Passes):
        def forward(self, x):
            self.b(self.a(x))
            return x

    with pytest.raises(ValueError, match="no layer leads from the input to the output"):
        prune(Around(nn.Identity()), "phew", sparsity=0.5)


def test_a_layer_that_leads_nowhere_ends_a_walk():
    class Aside(Passes):
        def forward(self, x):
            self.b(self.a(x))
            return self.between(x)

    model = Aside(nn.Conv2d(2, 3, 1))
    masks = prune(model, "phew", density=0.8, seed=0)
    assert masks.nnz == round(0.8 * masks.numel)
    assert all(bool(mask.any()) for mask in masks.values())


def test_chains_that_cannot_be_are_refused():
    model = build_model("resnet20", (1, 8, 8), 10, seed=0)
    assert prune(model, "phew", sparsity=0.9, chain=True).sparsity == pytest.approx(0.9, abs=1e-5)
    parallel = nn.ModuleList([nn.Linear(8, 4), nn.Linear(7, 4)])
    with pytest.raises(ValueError, match=r"cannot here: 1.weight has 7 taps, which the 4 outputs"):
        prune(parallel, "phew", sparsity=0.5, chain=True)
    with warnings.catch_warnings(action="ignore"):  # of torch, for there is nothing to initialise
        empty = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 0), nn.Linear(0, 2))
    with pytest.raises(ValueError, match=r"cannot here: 1.weight has no weights to walk through"):
        prune(empty, "phew", sparsity=0.5, chain=True)
    grouped = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 4, groups=2))
    with pytest.raises(ValueError, match=r"1.weight is that of a grouped convolution"):
        prune(grouped, "phew", sparsity=0.5, chain=True)


def test_the_pools_of_vgg_are_links_of_a_chain():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), MaxPool(), nn.Flatten(), nn.Linear(64, 3)
    )
    masks = prune(model, "phew", sparsity=0.9, seed=0)
    assert masks.nnz == 23
    assert all(bool(mask.any()) for mask in masks.values())


def test_the_last_weights_do_not_take_forever():
    model = networks.mlp()
    with torch.no_grad():
        model[2].weight[:50] *= 1e-9  # which a walk takes next to never
    masks = prune(model, "phew", sparsity=0.05, seed=0)
    assert masks.nnz == 47690
