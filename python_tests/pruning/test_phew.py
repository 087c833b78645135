"""PHEW: one path by hand, the chances of a step, and walks written out one by one."""

import bisect
import itertools

import networks
import pytest
import torch
from torch import nn

from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.experiments.models.layers import MaxPool
from fullspectrum_ext.pruning import phew as phew_module
from fullspectrum_ext.pruning import prune
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
        on, positions, arrived = layer.step(units, chances, to=to)
        assert bool(on.all())
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
    layer = phew_module._Layer(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), 2)
    chances = torch.tensor([0.0, 0.5, 0.99])
    on, positions, arrived = layer.step(torch.tensor([0, 1, 0]), chances.double(), to=True)
    assert on.tolist() == [True, False, True]
    assert positions.tolist() == [0, 2]
    assert arrived.tolist() == [0, 1]


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


def test_layers_that_are_not_known_to_be_a_chain_are_refused():
    model = build_model("resnet20", (1, 8, 8), 10, seed=0)
    with pytest.raises(ValueError, match="not known to form a chain, .* pass chain=True"):
        prune(model, "phew", sparsity=0.9)
    assert prune(model, "phew", sparsity=0.9, chain=True).sparsity == pytest.approx(0.9, abs=1e-5)
    parallel = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])
    parallel[1] = nn.Linear(7, 4)
    with pytest.raises(ValueError, match=r"chain: 1.weight has 7 taps, which the 4 outputs"):
        prune(parallel, "phew", sparsity=0.5, chain=True)
    empty = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 0), nn.Linear(0, 2))
    with pytest.raises(ValueError, match=r"chain: 1.weight has no weights to walk through"):
        prune(empty, "phew", sparsity=0.5, chain=True)
    grouped = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 4, groups=2))
    with pytest.raises(ValueError, match=r"chain: .* grouped convolution"):
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
