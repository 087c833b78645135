"""The controls of docs/dynamic_study: random topologies like a given one."""

import importlib.util
import pathlib
import random

import pytest
import torch

FILE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "dynamic_study" / "controls.py"


@pytest.fixture(scope="module")
def controls():
    spec = importlib.util.spec_from_file_location("controls", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (17, 31), (40, 8)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_random_topologies_have_the_degrees_or_the_edges_of_the_one_they_are_like(
    controls, shape, density
):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    weight = torch.where(mask, torch.arange(1.0, mask.numel() + 1).view(shape), 0.0)
    draw = random.Random(1)
    rewired, anywhere = controls.rewired(mask, draw), controls.anywhere(mask, draw)
    assert torch.equal(rewired.sum(0), mask.sum(0))
    assert torch.equal(rewired.sum(1), mask.sum(1))
    assert int(anywhere.sum()) == int(mask.sum())
    if shape == (17, 31) and density in {0.1, 0.5}:
        assert not torch.equal(rewired, mask)
        assert not torch.equal(anywhere.sum(0), mask.sum(0))
    moved = controls.placed(weight, mask, rewired, draw)
    assert torch.equal(moved != 0, rewired)
    assert torch.equal(moved[rewired].sort().values, weight[mask])


def test_trades_reach_every_topology_of_the_degrees_alike(controls):
    # three rows and columns of one edge each: the six permutations
    counts = {}
    for seed in range(600):
        found = controls.rewired(torch.eye(3).bool(), random.Random(seed))
        places = tuple(found.int().argmax(1).tolist())
        counts[places] = counts.get(places, 0) + 1
    assert len(counts) == 6
    assert max(abs(count - 100) for count in counts.values()) < 40
