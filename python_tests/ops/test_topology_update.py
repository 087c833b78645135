import pytest
import torch
from helpers import random_csr
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext import ops
from fullspectrum_ext.reference import topology as reference

OP = torch.ops.fullspectrum.topology_update.default


def random_update(rows, cols, density, drop, grow, seed=0, index=torch.int32, device="cpu"):
    """A topology; some of its entries; some positions that are not stored, or are dropped."""
    crow_indices, col_indices, _, mask, _ = random_csr(
        rows, cols, density, index=index, seed=seed, device=device
    )
    generator = torch.Generator().manual_seed(seed)
    nnz = col_indices.numel()
    dropped = torch.randperm(nnz, generator=generator)[: round(drop * nnz)].sort().values
    dropped = dropped.to(device)
    free = ~mask.flatten()
    free[mask.flatten().nonzero().flatten()[dropped]] = True
    places = free.nonzero().flatten()
    chosen = torch.randperm(places.numel(), generator=generator)[: round(grow * places.numel())]
    return crow_indices, col_indices, dropped, places[chosen.to(device)].sort().values


def assert_update(found, expected, index):
    assert found.crow_indices.tolist() == expected[0].tolist()
    assert found.col_indices.tolist() == expected[1].tolist()
    assert found.source.tolist() == expected[2].tolist()
    assert found.added == int((expected[2] < 0).sum())
    assert found.crow_indices.dtype == found.col_indices.dtype == index
    assert found.source.dtype == torch.int64


def test_a_case_worked_by_hand(device):
    # [[a . b .], [. . . .], [. c d e]]: a goes; (0, 1), (1, 3) come; d, at (2, 2), goes and comes
    crow_indices = torch.tensor([0, 2, 2, 5], device=device)
    col_indices = torch.tensor([0, 2, 1, 2, 3], device=device)
    drop = torch.tensor([0, 3], device=device)
    grow = torch.tensor([1, 7, 10], device=device)

    update = ops.topology_update(crow_indices, col_indices, drop, grow, 4)

    assert update.crow_indices.tolist() == [0, 2, 3, 6]
    assert update.col_indices.tolist() == [1, 2, 3, 1, 2, 3]
    assert update.source.tolist() == [-1, 1, -1, 2, 3, 4]
    assert update.added == 2


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["i32", "i64"])
@pytest.mark.parametrize(
    "case",
    [
        (0, 3, 0.5, 0, 0),
        (3, 0, 0.5, 0, 0),
        (1, 1, 1.0, 1.0, 1.0),
        (13, 7, 0.5, 0.0, 0.0),
        (13, 7, 0.0, 0.0, 1.0),
        (13, 7, 1.0, 1.0, 0.0),
        (41, 67, 0.1, 0.3, 0.03),
        (300, 40, 0.2, 0.5, 0.1),
        (300, 40, 0.5, 1.0, 1.0),
    ],
    ids=str,
)
def test_updates_give_the_reference(case, index, device):
    arguments = random_update(*case, index=index, device=device)
    found = ops.topology_update(*arguments, case[1])
    assert_update(found, reference.topology_update(*arguments, case[1]), index)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 150),
    cols=st.integers(0, 30),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    drop=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    grow=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_update_gives_the_reference(rows, cols, density, drop, grow, seed):
    arguments = random_update(rows, cols, density, drop, grow, seed)
    found = ops.topology_update(*arguments, cols, validate=True)
    assert_update(found, reference.topology_update(*arguments, cols), torch.int32)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_reference(threads):
    arguments = random_update(1000, 50, 0.2, 0.4, 0.1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = ops.topology_update(*arguments, 50)
    finally:
        torch.set_num_threads(before)
    assert_update(found, reference.topology_update(*arguments, 50), torch.int32)


def test_opcheck(device):
    torch.library.opcheck(OP, (*random_update(9, 11, 0.3, 0.5, 0.2, device=device), 11))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_values_are_carried(dtype, device):
    crow_indices, col_indices, drop, grow = random_update(9, 11, 0.3, 0.5, 0.2, device=device)
    old = torch.arange(1, col_indices.numel() + 1, device=device).to(dtype)

    source = ops.topology_update(crow_indices, col_indices, drop, grow, 11).source
    new = ops.carry(old, source, fill=1)

    expected = [old[s].item() if s >= 0 else torch.tensor(1).to(dtype).item() for s in source]
    assert new.tolist() == expected
    assert new.dtype == dtype


def test_an_empty_topology_carries_the_fill():
    assert ops.carry(torch.ones(0), torch.tensor([-1, -1]), fill=2).tolist() == [2.0, 2.0]


# ---- what to drop --------------------------------------------------------------------------------


def test_the_last_of_equal_magnitudes_are_dropped(device):
    values = torch.tensor([1.0, -1.0, 2.0, 1.0, -0.0, 0.0, -1.0], device=device)
    found = [ops.smallest_magnitudes(values, k).tolist() for k in range(8)]
    assert found == [
        [],
        [5],
        [4, 5],
        [4, 5, 6],
        [3, 4, 5, 6],
        [1, 3, 4, 5, 6],
        [0, 1, 3, 4, 5, 6],
        [0, 1, 2, 3, 4, 5, 6],
    ]


def test_nan_and_infinity_are_dropped_last(device):
    values = torch.tensor([torch.nan, 1e38, torch.inf, -torch.nan, 0.0], device=device)
    assert ops.smallest_magnitudes(values, 3).tolist() == [1, 3, 4]
    assert ops.smallest_magnitudes(values, 5).tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(-3, 3), max_size=40),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.float16]),
)
def test_the_drop_is_that_of_a_stable_sort(values, share, dtype):
    k = round(share * len(values))
    found = ops.smallest_magnitudes(torch.tensor(values, dtype=dtype), k)
    ranked = sorted(range(len(values)), key=lambda i: (abs(values[i]), -i))
    assert found.tolist() == sorted(ranked[:k])


def test_the_smallest_of_many_are_those_of_a_stable_sort():
    values = torch.randn(100_000).mul_(20).round_()  # with ties, in several chunks
    for k in (1, 40_000, 99_999):
        order = values.abs().argsort(descending=True, stable=True)[100_000 - k :]
        assert torch.equal(ops.smallest_magnitudes(values, k), order.sort().values)


def test_opcheck_of_the_smallest(device):
    scores = torch.tensor([1.0, 0.5, 2.0, 0.5], device=device)
    torch.library.opcheck(torch.ops.fullspectrum.bottomk_positions.default, (scores, 3))


@pytest.mark.parametrize("count", [-1, 3])
def test_the_smallest_are_at_most_all(count, device):
    with pytest.raises(RuntimeError, match=f"number of scores, 2, got {count}"):
        torch.ops.fullspectrum.bottomk_positions.default(torch.ones(2, device=device), count)


# ---- refusals ------------------------------------------------------------------------------------


def good():
    return {
        "crow_indices": torch.tensor([0, 1, 2]),
        "col_indices": torch.tensor([0, 3]),
        "drop": torch.tensor([1]),
        "grow": torch.tensor([2, 7]),
        "cols": 4,
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grow": torch.tensor([0, 2])}, ValueError, "grow: expected positions .* got 1 others"),
        ({"grow": torch.tensor([2, 8])}, ValueError, r"grow: expected values in \[0, 8\), .* to 8"),
        ({"grow": torch.tensor([2, 2])}, ValueError, "grow: expected values that rise strictly"),
        ({"grow": torch.tensor([2.0])}, TypeError, "grow: expected int64, got torch.float32"),
        ({"grow": [2]}, TypeError, "grow: expected a torch.Tensor, got list"),
        ({"drop": torch.tensor([-1])}, ValueError, r"drop: expected values in \[0, 2\), got -1"),
        ({"drop": torch.tensor([1, 0])}, ValueError, "drop: expected values that rise strictly"),
        ({"drop": torch.tensor([True])}, TypeError, "drop: expected int64, got torch.bool"),
        ({"drop": torch.tensor([[1]])}, ValueError, "drop: expected one dimension"),
        ({"drop": torch.tensor([1], device="meta")}, ValueError, "drop is on meta but"),
        ({"cols": -1}, ValueError, "cols: expected at least 0, got -1"),
        (
            {"cols": 3, "grow": torch.tensor([2]), "validate": True},
            ValueError,
            "col_indices.*got 3",
        ),
    ],
)
def test_bad_arguments_are_refused(change, error, message, device):
    ops.topology_update(**good())
    with pytest.raises(error, match=message):
        ops.topology_update(**{**good(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": torch.tensor([1, 0])}, r"drop must rise strictly within \[0, 2\)"),
        ({"grow": torch.tensor([8])}, r"grow must rise strictly within \[0, 8\)"),
        ({"cols": 3, "grow": torch.tensor([2])}, r"col_indices must lie in \[0, 3\), got 3"),
    ],
)
def test_the_cpu_kernel_refuses_what_would_touch_foreign_memory(change, message):
    with pytest.raises(RuntimeError, match=message):
        OP(*{**good(), **change}.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": torch.tensor([1], dtype=torch.int32)}, "drop must be int64, contiguous"),
        ({"drop": torch.tensor([0, 1, 2])}, "drop must hold at most 2 entries, got 3"),
        ({"cols": -1}, "cols must not be negative, got -1"),
    ],
)
def test_the_operator_itself_refuses_bad_arguments(change, message, device):
    arguments = {**good(), **change}
    arguments = [v.to(device) if torch.is_tensor(v) else v for v in arguments.values()]
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments)


@pytest.mark.parametrize(
    ("values", "k", "error", "message"),
    [
        ([1.0], 1, TypeError, "values: expected a torch.Tensor, got list"),
        (torch.tensor([1, 2]), 1, TypeError, "values: expected float32, .* got torch.int64"),
        (torch.ones(2, 2), 1, ValueError, r"values: expected one dimension, got shape \(2, 2\)"),
        (torch.ones(2), 3, ValueError, r"k: expected an int in \[0, 2\], got 3"),
    ],
)
def test_bad_drops_are_refused(values, k, error, message):
    with pytest.raises(error, match=message):
        ops.smallest_magnitudes(values, k)
