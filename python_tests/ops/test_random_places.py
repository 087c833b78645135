import itertools
import math

import pytest
import torch
from helpers import random_csr
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext import ops
from fullspectrum_ext.reference import topology as reference

OP = torch.ops.fullspectrum.random_places.default


def topology(rows, cols, density, seed=0, index=torch.int32, device="cpu"):
    return random_csr(rows, cols, density, index=index, seed=seed, device=device)[:2]


def chi_square_bound(cells):
    """What the statistic of so many equally likely cells exceeds about once in 10^5 times."""
    return cells + 4.3 * math.sqrt(2 * cells) + 12  # after Laurent and Massart, generously


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["i32", "i64"])
@pytest.mark.parametrize(
    ("rows", "cols", "density"),
    [
        (0, 3, 0.5),
        (3, 0, 0.5),
        (1, 1, 0.0),
        (1, 1, 1.0),
        (13, 7, 1.0),
        (41, 67, 0.0),
        (41, 67, 0.4),
        (3, 5003, 0.1),
        (5003, 3, 0.5),
        (200, 97, 0.97),
    ],
)
def test_places_are_free_distinct_and_rise(rows, cols, density, index, device):
    fields = topology(rows, cols, density, index=index, device=device)
    free = reference.free_places(*fields, cols)
    for count in {0, 1, free.numel() // 3, free.numel() // 2 + 1, free.numel() - 1, free.numel()}:
        if 0 <= count <= free.numel():
            found = ops.random_places(*fields, cols, count, seed=count)
            assert found.shape == (count,)
            assert found.dtype == torch.int64
            assert bool((found[1:] > found[:-1]).all())
            assert bool(torch.isin(found, free).all())
    assert torch.equal(ops.random_places(*fields, cols, free.numel(), seed=1), free)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 150),
    cols=st.integers(0, 60),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0]),
    share=st.floats(0, 1),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_any_topology_gives_free_places(rows, cols, density, share, seed):
    fields = topology(rows, cols, density, seed=seed % 1000)
    free = reference.free_places(*fields, cols)
    count = round(share * free.numel())
    found = ops.random_places(*fields, cols, count, seed, validate=True)
    assert found.numel() == count
    assert torch.equal(found.unique(), found)
    assert bool(torch.isin(found, free).all())


def test_the_seed_decides_on_every_device_alike(device):
    fields = topology(300, 70, 0.2, device=device)
    found = [ops.random_places(*fields, 70, 40, seed).tolist() for seed in (7, 7, 8)]
    assert found[0] == found[1] != found[2]
    few = ops.random_places(*topology(2, 8, 0.0, device=device), 8, 6, seed=5)
    assert few.tolist() == FEW


FEW = [1, 6, 7, 10, 12, 14]  # on the CPU, in a CUDA kernel, and from release to release


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(threads):
    fields = topology(1000, 700, 0.1)
    before = torch.get_num_threads()
    expected = ops.random_places(*fields, 700, 20_000, seed=3)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(ops.random_places(*fields, 700, 20_000, seed=3), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_each_set_of_places_is_as_likely_as_any_other(count):
    crow_indices, col_indices = torch.tensor([0, 1, 1, 3]), torch.tensor([1, 0, 2])
    free = [0, 2, 3, 4, 5, 7]
    drawn = 6000
    sets = dict.fromkeys(itertools.combinations(free, count), 0)
    for seed in range(drawn):
        places = ops.random_places(crow_indices, col_indices, 3, count, seed)
        sets[tuple(places.tolist())] += 1
    expected = drawn / len(sets)
    statistic = sum((number - expected) ** 2 / expected for number in sets.values())
    assert statistic < chi_square_bound(len(sets) - 1)


@pytest.mark.parametrize("share", [0.02, 0.4, 0.7])
def test_places_spread_evenly_over_buckets_and_within_them(share):
    rows, cols = 100, 1000  # 22 buckets and a part of one
    fields = topology(rows, cols, 0.1)
    free = reference.free_places(*fields, cols)
    rank = torch.full((rows * cols,), -1)
    rank[free] = torch.arange(free.numel())
    count = round(share * free.numel())
    draws = 50
    number = torch.zeros(free.numel())
    for seed in range(draws):
        number[rank[ops.random_places(*fields, cols, count, seed)]] += 1
    assert number.sum() == draws * count
    for cells in (number.view(-1, 1), number[: len(number) // 997 * 997].view(-1, 997)):
        total = cells.sum(1)
        # without replacement, counts vary less than those of independent draws
        expected = total.mean()
        variance = expected * (1 - count / free.numel())
        statistic = float(((total - expected) ** 2 / variance).sum())
        assert statistic < chi_square_bound(len(total))
        assert statistic > len(total) - 4.3 * math.sqrt(2 * len(total))


def test_draws_of_neighbouring_seeds_have_nothing_in_common():
    fields = topology(64, 1024, 0.0)
    count = 4096  # of 65536: two draws share count^2 / 65536 = 256 places, give or take 15
    draws = [set(ops.random_places(*fields, 1024, count, seed).tolist()) for seed in range(20)]
    shared = [len(a & b) for a, b in itertools.combinations(draws, 2)]
    assert abs(sum(shared) / len(shared) - 256) < 5
    assert all(170 < number < 340 for number in shared)


def test_opcheck(device):
    torch.library.opcheck(OP, (*topology(9, 11, 0.3, device=device), 11, 5, 0))


def good():
    return {
        "crow_indices": torch.tensor([0, 1, 2]),
        "col_indices": torch.tensor([0, 3]),
        "cols": 4,
        "count": 6,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"count": 7}, ValueError, r"count: expected an int in \[0, 6\], got 7"),
        ({"count": -1}, ValueError, r"count: expected an int in \[0, 6\], got -1"),
        ({"count": 1.0}, TypeError, "count: expected an int, got float"),
        ({"seed": 2**63}, ValueError, "seed: expected an int in"),
        ({"seed": None}, TypeError, "seed: expected an int, got NoneType"),
        ({"cols": -1}, ValueError, "cols: expected at least 0, got -1"),
        ({"col_indices": [0, 3]}, TypeError, "col_indices: expected a torch.Tensor, got list"),
        ({"cols": 3, "count": 1, "validate": True}, ValueError, "col_indices.*got 3"),
    ],
)
def test_bad_arguments_are_refused(change, error, message, device):
    ops.random_places(**good())
    with pytest.raises(error, match=message):
        ops.random_places(**{**good(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 7}, r"count must lie in \[0, 6\], the number of places that are free, got 7"),
        ({"cols": -1}, "cols must not be negative, got -1"),
    ],
)
def test_the_operator_itself_refuses_bad_arguments(change, message, device):
    arguments = [v.to(device) if torch.is_tensor(v) else v for v in (good() | change).values()]
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments)


def test_the_cpu_kernel_refuses_what_would_touch_foreign_memory():
    with pytest.raises(RuntimeError, match=r"col_indices must lie in \[0, 3\), got 3"):
        OP(*(good() | {"cols": 3, "count": 1}).values())
