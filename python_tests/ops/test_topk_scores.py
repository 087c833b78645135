import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext import ops
from fullspectrum_ext.reference import topk_scores as reference

MASKS = torch.ops.fullspectrum.topk_masks.default
TOPOLOGIES = torch.ops.fullspectrum.topk_topologies.default
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NAN, INF = torch.nan, torch.inf


def assert_masks(scores, counts):
    """Those of all together, and those of each tensor on its own."""
    found = ops.topk_masks(scores, sum(counts))
    expected = reference.topk_masks(scores, sum(counts))
    for mask, right in zip(found, expected, strict=True):
        assert mask.dtype == torch.bool
        assert torch.equal(mask, right)
    for score, count, mask in zip(scores, counts, ops.topk_masks(scores, counts), strict=True):
        assert torch.equal(mask, reference.topk_masks([score], count)[0])


def assert_topologies(scores, counts):
    found = ops.topk_topologies(scores, counts)
    for score, count, topology in zip(scores, counts, found, strict=True):
        (mask,) = reference.topk_masks([score], count)
        crow_indices, col_indices, _ = ops.csr_from_dense(mask.float(), mask)
        assert torch.equal(topology.crow_indices, crow_indices)
        assert torch.equal(topology.col_indices, col_indices)
        assert topology.crow_indices.dtype == topology.col_indices.dtype == torch.int32


def drawn(kind, shape, generator):
    """Scores that differ; with many ties; nearly all equal; with all that floats can be."""
    if kind == "normal":
        return torch.randn(shape, generator=generator)
    if kind == "ties":
        return torch.randint(-2, 3, shape, generator=generator) * -1.0  # -0 among them
    if kind == "equal":
        return (torch.rand(shape, generator=generator) < 0.01).float()
    special = torch.tensor([NAN, -NAN, INF, -INF, 0.0, -0.0, 1e-40, -1e-40, 3.0, -3.0])
    return special[torch.randint(len(special), shape, generator=generator)]


KINDS = ["normal", "ties", "equal", "special"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_case_worked_by_hand(dtype, device):
    a = torch.tensor([[1.0, -0.0, 7.0], [NAN, 0.0, 1.0]], dtype=dtype, device=device)
    b = torch.tensor([[-INF], [1.0]], dtype=dtype, device=device)

    assert [mask.int().tolist() for mask in ops.topk_masks([a, b], 4)] == [
        [[1, 0, 1], [0, 0, 1]],
        [[0], [1]],
    ]
    assert [mask.int().tolist() for mask in ops.topk_masks([a, b], [4, 1])] == [
        [[1, 1, 1], [0, 0, 1]],
        [[0], [1]],
    ]
    (first, second) = ops.topk_topologies([a, b], [2, 2])
    assert [field.tolist() for field in first] == [[0, 2, 2], [0, 2]]
    assert [field.tolist() for field in second] == [[0, 1, 2], [0, 0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.003, 0.3, 0.97, 1.0])
def test_all_cases_give_the_reference(kind, share, device):
    generator = torch.Generator().manual_seed(1)
    shapes = [(7, 1), (0, 5), (5, 0), (31, 67), (1, 1), (3, 900)]
    scores = [drawn(kind, shape, generator).to(device) for shape in shapes]
    counts = [round(share * score.numel()) for score in scores]
    assert_masks(scores, counts)
    assert_topologies(scores, counts)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), min_size=1, max_size=4),
    shares=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_scores_give_the_reference(shapes, shares, kind, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = [drawn(kind, shape, generator).to(dtype) for shape in shapes]
    counts = [round(share * score.numel()) for share, score in zip(shares, scores, strict=False)]
    assert_masks(scores, counts)
    assert_topologies(scores, counts)


@pytest.mark.parametrize("kind", ["normal", "ties", "special"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_many_chunks_give_the_reference_with_any_number_of_threads(kind, threads):
    generator = torch.Generator().manual_seed(2)
    scores = [drawn(kind, shape, generator) for shape in [(3, 50_000), (200_000, 1), (70, 3000)]]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_masks(scores, [9000, 77_777, 180_000])
        assert_topologies(scores, [9000, 77_777, 180_000])
    finally:
        torch.set_num_threads(before)


def test_a_sample_unlike_the_whole_does_no_harm(device):
    # nearly all of what is large stands where a sample of one in a hundred is hardly taken
    scores = torch.zeros(1, 9000)
    scores[0, 5000:5050] = torch.arange(50.0)
    scores = scores.to(device)
    for count in (1, 30, 50):
        assert_masks([scores], [count])
        assert_topologies([scores], [count])


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_every_instruction_set_gives_the_reference(isa):
    code = """
import test_topk_scores as tests, torch
generator = torch.Generator().manual_seed(3)
for kind in tests.KINDS:
    for dtype in (torch.float32, torch.float64):
        scores = [tests.drawn(kind, (90, 1001), generator).to(dtype)]
        tests.assert_masks(scores, [9000])
        tests.assert_topologies(scores, [9000])
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=os.path.dirname(__file__),
        env={**os.environ, "FULLSPECTRUM_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_scores_need_not_be_contiguous(device):
    scores = torch.randn(40, 30).to(device).T
    assert_masks([scores], [77])
    assert_topologies([scores], [77])


def test_no_scores_no_masks():
    assert ops.topk_masks([], 0) == []
    assert ops.topk_topologies([], []) == []


@pytest.mark.parametrize("together", [True, False])
def test_opcheck(together, device):
    scores = [torch.randn(5, 7).to(device), torch.randn(4, 3).to(device)]
    torch.library.opcheck(MASKS, (scores, [9] if together else [4, 5]))
    torch.library.opcheck(TOPOLOGIES, (scores, [4, 5]))


@pytest.mark.parametrize(
    ("scores", "counts", "error", "message"),
    [
        (torch.ones(2, 2), [1], TypeError, "scores: expected a list of tensors, got one"),
        ([[1.0]], [1], TypeError, "scores: expected a torch.Tensor, got list"),
        ([torch.ones(2, 2).int()], [1], TypeError, "scores: expected float32, .* got torch.int32"),
        ([torch.ones(2, 2), torch.ones(2, 2).double()], [1, 1], TypeError, "scores is torch.fl"),
        ([torch.ones(2, 2), torch.ones(2, 2, device="meta")], [1, 1], ValueError, "is on meta"),
        ([torch.ones(2, 2)], [1, 1], ValueError, "counts: expected one a tensor, 1, got 2"),
        ([torch.ones(2, 2)], [5], ValueError, r"counts: expected an int in \[0, 4\], got 5"),
        ([torch.ones(2, 2)], [-1], ValueError, r"counts: expected an int in \[0, 4\], got -1"),
        ([torch.ones(2, 2)], [1.0], TypeError, "counts: expected an int, got float"),
    ],
)
def test_bad_arguments_are_refused(scores, counts, error, message):
    for function in (ops.topk_masks, ops.topk_topologies):
        with pytest.raises(error, match=message):
            function(scores, counts)


def test_one_count_for_all_is_checked_too():
    with pytest.raises(ValueError, match=r"counts: expected an int in \[0, 3\], got 4"):
        ops.topk_masks([torch.ones(2), torch.ones(1)], 4)
    with pytest.raises(TypeError, match="counts: expected an int, got bool"):
        ops.topk_masks([torch.ones(2)], True)
    with pytest.raises(ValueError, match=r"scores: expected matrices, got shape \(4,\)"):
        ops.topk_topologies([torch.ones(4)], [1])


@pytest.mark.parametrize(
    ("scores", "counts", "message"),
    [
        ([torch.ones(2, 2).int()], [1], "scores must be float32"),
        ([torch.ones(2, 2), torch.ones(2, 2).double()], [1, 1], "scores is"),
        ([torch.ones(2, 3).T], [1], "scores must be contiguous"),
        ([torch.ones(2, 2)], [5], "a count must lie between 0 and the number of scores, 4, got 5"),
        ([torch.ones(2, 2)] * 3, [1, 1], "expected a count for each of the 3 tensors, got 2"),
    ],
)
def test_the_operators_themselves_refuse_bad_arguments(scores, counts, message, device):
    scores = [score.to(device) for score in scores]
    for operator in (MASKS, TOPOLOGIES):
        with pytest.raises(RuntimeError, match=message):
            operator(scores, counts)
