import math
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext import ops
from fullspectrum_ext.reference import projection as reference

PROJECT = torch.ops.fullspectrum.project_scores_.default


def drawn(kind, size, generator):
    """Scores that differ; with many ties; all equal; as they are after a step of ProbMask."""
    normal = torch.randn(size, generator=generator, dtype=torch.float64)
    if kind == "normal":
        return normal
    if kind == "ties":
        return (2 * normal).round() / 4
    if kind == "equal":
        return torch.full_like(normal, 0.7)
    if kind == "negative":
        return -normal.abs()
    if kind == "wide":
        return 1e3 * normal
    return normal.clamp(0, 1) + 6e-3 * normal.sign()


KINDS = ["normal", "ties", "equal", "negative", "wide", "trained"]


def assert_projected(scores, budget, tolerance=1e-9):
    """The result is that of the sort-based solver, and meets the conditions of the problem."""
    found = [score.clone() for score in scores]
    threshold = ops.project_scores_(found, budget)
    expected = reference.project_scores(scores, budget)
    for tensor, right in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor, right, rtol=0, atol=tolerance)
    assert threshold.dtype == torch.float64
    assert threshold.shape == ()
    total = sum(float(tensor.double().sum()) for tensor in found)
    size = sum(tensor.numel() for tensor in scores)
    rounding = tolerance * max(size, 1)
    assert total <= budget + rounding
    if threshold > 0:
        assert total == pytest.approx(budget, abs=rounding)
    else:
        assert threshold == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_case_worked_by_hand(dtype, device):
    # between the kinks 0 and 0.25 all of 1.5, 0.75 and 0.5 but the first fall: 1 + 1.25 - 2v = 2
    a = torch.tensor([[1.5, 0.75], [-1.0, 0.0]], dtype=dtype, device=device)
    b = torch.tensor([0.5], dtype=dtype, device=device)
    threshold = ops.project_scores_([a, b], 2)
    assert float(threshold) == pytest.approx(0.125, abs=1e-12)
    assert a.flatten().tolist() == pytest.approx([1.0, 0.625, 0.0, 0.0], abs=1e-12)
    assert b.tolist() == pytest.approx([0.375], abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 1e-3, 0.05, 0.5, 0.97, 1, 2])
def test_all_cases_give_the_reference(kind, share, device):
    generator = torch.Generator().manual_seed(1)
    scores = [drawn(kind, size, generator).to(device) for size in (0, 1, 2503, 64, 997)]
    assert_projected(scores, share * 3565)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    share=st.floats(0, 1.2),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
)
def test_any_scores_give_the_reference(sizes, share, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = [drawn(kind, size, generator) for size in sizes]
    assert_projected(scores, share * sum(sizes))
    assert_projected([score.float() for score in scores], share * sum(sizes), 1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-5, 5, width=32) | st.sampled_from([0.0, -0.0, 1.0, 1e-45]), max_size=40),
    st.integers(0, 45),
)
def test_whole_budgets_and_edges(scores, budget):
    assert_projected([torch.tensor(scores, dtype=torch.float64)], budget)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8), st.floats(0.1, 8))
def test_no_point_of_the_set_is_nearer(scores, budget):
    z = torch.tensor(scores, dtype=torch.float64)
    found = z.clone()
    ops.project_scores_([found], budget)
    nearest = scipy.optimize.minimize(
        lambda s: ((s - z.numpy()) ** 2).sum(),
        np.full(len(z), min(0.5, budget / len(z))),
        jac=lambda s: 2 * (s - z.numpy()),
        bounds=[(0, 1)] * len(z),
        constraints={"type": "ineq", "fun": lambda s: budget - s.sum()},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    distance = float(((found - z) ** 2).sum())
    assert distance <= nearest.fun + 1e-7


def test_ten_million_scores_agree_with_scipy():
    generator = torch.Generator().manual_seed(2)
    scores = [drawn("trained", size, generator) for size in (9_000_000, 1, 999_999)]
    budget = 500_000.5
    z = torch.cat(scores)

    def excess(v):
        return float((z - v).clamp_(0, 1).sum()) - budget

    expected = scipy.optimize.brentq(excess, 0, float(z.max()), xtol=1e-15, rtol=1e-14)
    threshold = float(ops.project_scores_(scores, budget))
    assert threshold == pytest.approx(expected, abs=1e-9)
    assert torch.equal(torch.cat(scores), (z - threshold).clamp_(0, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_same_bits_at_any_number_of_threads(kind, dtype):
    generator = torch.Generator().manual_seed(3)
    scores = [drawn(kind, size, generator).to(dtype) for size in (150_000, 40_001)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            copies = [score.clone() for score in scores]
            results.append((ops.project_scores_(copies, 9000), *copies))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert torch.equal(mine, theirs)
    assert_projected(scores, 9000, 1e-6 if dtype == torch.float32 else 1e-9)


SUMS = """
import torch, fullspectrum_ext as fs
scores = torch.linspace(-1, 2, 100_003).sin()
found = float(fs.ops.project_scores_([scores], 4000)).hex(), float(scores.double().sum()).hex()
"""


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_every_instruction_set_gives_the_same_bits(isa):
    here = {}
    exec(SUMS, here)
    result = subprocess.run(
        [sys.executable, "-P", "-c", SUMS + "print(found)"],
        env={**os.environ, "FULLSPECTRUM_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(here["found"])


def test_a_sample_unlike_the_whole_does_no_harm(device):
    # all that counts stands where a sample of one in a hundred is hardly taken
    scores = torch.zeros(9000, dtype=torch.float64)
    scores[5000:5050] = torch.linspace(0.1, 3, 50, dtype=torch.float64)
    assert_projected([scores.to(device)], 5)
    assert_projected([(1 - scores).to(device)], 100)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [5, 5000])
def test_what_is_not_finite_makes_everything_nan(bad, size, device):
    scores = [torch.rand(size, device=device), torch.rand(3, device=device)]
    scores[1][1] = bad
    assert ops.project_scores_(scores, 2.0).isnan()
    assert all(score.isnan().all() for score in scores)


def test_it_changes_parameters_and_records_nothing(device):
    parameter = torch.nn.Parameter(torch.ones(4, device=device))
    threshold = ops.project_scores_([parameter], 1.0)
    assert parameter.is_leaf
    assert parameter.tolist() == [0.25] * 4
    assert not threshold.requires_grad


def test_no_scores():
    assert ops.project_scores_([], 1.0) == 0


def test_opcheck(device):
    scores = [torch.rand(5, 7, device=device), torch.rand(4, device=device)]
    torch.library.opcheck(PROJECT, (scores, 3.0))


@pytest.mark.parametrize(
    ("scores", "budget", "error", "message"),
    [
        (torch.ones(2), 1, TypeError, "scores: expected a list of tensors, got one"),
        ([[1.0]], 1, TypeError, "scores: expected a torch.Tensor, got list"),
        ([torch.ones(2).half()], 1, TypeError, "scores: expected float32 or float64, got torch.fl"),
        ([torch.ones(2), torch.ones(2).double()], 1, TypeError, "scores is torch.float64 but"),
        ([torch.ones(2), torch.ones(2, device="meta")], 1, ValueError, "scores is on meta"),
        ([torch.ones(2, 3).T], 1, ValueError, "scores: expected contiguous tensors"),
        ([torch.ones(2)], "1", TypeError, "budget: expected a number, got str"),
        ([torch.ones(2)], True, TypeError, "budget: expected a number, got bool"),
        ([torch.ones(2)], -0.5, ValueError, "budget: expected a finite number of at least 0, got"),
        ([torch.ones(2)], math.nan, ValueError, "budget: expected a finite number of at least 0"),
        ([torch.ones(2)], math.inf, ValueError, "budget: expected a finite number of at least 0"),
    ],
)
def test_bad_arguments_are_refused(scores, budget, error, message):
    with pytest.raises(error, match=message):
        ops.project_scores_(scores, budget)


@pytest.mark.parametrize(
    ("scores", "budget", "message"),
    [
        ([torch.ones(2).half()], 1.0, "scores must be float32 or float64, got Half"),
        ([torch.ones(2), torch.ones(2).double()], 1.0, "scores is"),
        ([torch.ones(2, 3).T], 1.0, "scores must be contiguous"),
        ([torch.ones(2)], -1.0, "budget must be at least 0, got -1"),
        ([torch.ones(2)], math.nan, "budget must be at least 0, got"),
    ],
)
def test_the_operator_itself_refuses_bad_arguments(scores, budget, message, device):
    scores = [score.to(device) for score in scores]
    with pytest.raises(RuntimeError, match=message):
        PROJECT(scores, budget)
