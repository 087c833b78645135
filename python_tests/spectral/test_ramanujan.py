"""Generators against what defines them, certificates against NumPy and closed forms."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext.ops import singular_values
from fullspectrum_ext.spectral import full_spectrum
from fullspectrum_ext.spectral.ramanujan import (
    array_code,
    biregular_random,
    certify,
    mask_from_shifts,
    quasi_cyclic,
    two_lift,
)
from fullspectrum_ext.spectral.ramanujan.quasi_cyclic import fourier_sigma2
from fullspectrum_ext.spectral.ramanujan.two_lift import lifted


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dense_sigmas(mask):
    return np.linalg.svd(mask.double().numpy(), compute_uv=False)


def degrees(mask):
    """Smallest and largest row degree, then the same of the columns."""
    rows, cols = mask.sum(1), mask.sum(0)
    return int(rows.min()), int(rows.max()), int(cols.min()), int(cols.max())


def check_certificate(found):
    matrix = found.mask.double().numpy()
    if min(matrix.shape) < 256:
        sigmas = dense_sigmas(found.mask)
        rounding = 1e-13 * sigmas[0]
    else:  # quicker, and good enough for values that are far from zero
        sigmas = np.sqrt(np.linalg.eigvalsh(matrix @ matrix.T).clip(0)[::-1])
        rounding = 1e-11 * sigmas[0]
    assert found.sigma1 == pytest.approx(sigmas[0], rel=1e-6)
    second = sigmas[1] if len(sigmas) > 1 else 0.0
    assert abs(found.sigma2 - second) <= found.sigma2_bound + rounding
    rows, cols = int(found.mask.any(1).sum()), int(found.mask.any(0).sum())
    edges = int(found.mask.sum())
    bound = math.sqrt(edges / cols - 1) + math.sqrt(edges / rows - 1)
    assert found.bound == pytest.approx(bound, rel=1e-12, abs=1e-12)
    assert found.gap == found.bound - found.sigma2
    assert found.is_ramanujan == (found.gap >= found.sigma2_bound)


@st.composite
def sizes_and_edges(draw):
    rows, cols = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    return rows, cols, draw(st.integers(1, rows * cols))


@settings(deadline=None, max_examples=150)
@given(sizes_and_edges(), st.integers(0, 2**32 - 1))
def test_biregular_counts_and_degrees(case, seed):
    rows, cols, edges = case
    found = biregular_random(rows, cols, edges=edges, generator=seeded(seed), tries=1)
    assert found.mask.dtype == torch.bool
    assert found.mask.shape == (rows, cols)
    assert int(found.mask.sum()) == edges
    low_row, high_row, low_col, high_col = degrees(found.mask)
    assert (low_row, high_row) == (edges // rows, -(-edges // rows))
    assert (low_col, high_col) == (edges // cols, -(-edges // cols))
    check_certificate(found)


@pytest.mark.parametrize("rows", range(1, 6))
@pytest.mark.parametrize("cols", range(1, 6))
def test_every_small_biregular_mask_exists(rows, cols):
    for edges in range(1, rows * cols + 1):
        assert int(biregular_random(rows, cols, edges=edges, tries=1).mask.sum()) == edges


def test_biregular_draws_are_uniform():
    # 3 x 3 with one edge a row and column: the six permutations, each about 100 times in 600
    generator = seeded(1)
    counts = {}
    for _ in range(600):
        mask = biregular_random(3, 3, degree=1, generator=generator, tries=1).mask
        order = tuple(mask.int().argmax(1).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 100) < 5 * math.sqrt(600 / 6 * 5 / 6) for count in counts.values())


def test_biregular_extra_edges_go_anywhere():
    generator = seeded(2)
    masks = [biregular_random(10, 10, edges=25, generator=generator, tries=1) for _ in range(200)]
    rows = sum((found.mask.sum(1) == 3).int() for found in masks)
    assert rows.sum() == 5 * 200
    assert all(abs(int(row) - 100) < 5 * math.sqrt(50) for row in rows)


@pytest.mark.parametrize(
    ("rows", "cols", "degree"),
    [(512, 512, 5), (512, 512, 16), (512, 512, 51), (512, 4608, 45), (64, 576, 27)],
)
def test_biregular_masks_are_ramanujan(rows, cols, degree):
    found = biregular_random(rows, cols, degree=degree, generator=seeded())
    assert degrees(found.mask) == (degree, degree, degree * rows // cols, degree * rows // cols)
    assert found.is_ramanujan
    check_certificate(found)


def test_biregular_draws_again_until_the_bound_is_met():
    def draw(seed, tries):
        return biregular_random(60, 60, degree=3, generator=seeded(seed), tries=tries)

    firsts = [draw(seed, 1) for seed in range(40)]
    missed = [seed for seed, first in enumerate(firsts) if not first.is_ramanujan]
    met = next(seed for seed, first in enumerate(firsts) if first.is_ramanujan)
    assert missed  # one draw in about twenty
    for seed in missed:
        assert draw(seed, 20).is_ramanujan
    assert torch.equal(draw(met, 20).mask, firsts[met].mask)


def test_a_draw_whose_doubles_remain_is_drawn_again(monkeypatch):
    module = sys.modules[biregular_random.__module__]
    monkeypatch.setattr(module, "_ROUNDS", 1)  # only draws without any doubles are taken then
    for seed in range(20):
        found = biregular_random(4, 4, degree=2, generator=seeded(seed), tries=1)
        assert degrees(found.mask) == (2, 2, 2, 2)


def test_biregular_takes_the_best_of_its_draws():
    # 1.5 edges a node: never below the bound, so that all draws are made
    gaps = [
        biregular_random(30, 30, edges=45, generator=seeded(1), tries=n).gap for n in (1, 5, 30)
    ]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1] < 0


def test_complete_mask():
    found = biregular_random(4, 6, edges=24)
    assert bool(found.mask.all())
    assert found.sigma1 == pytest.approx(math.sqrt(24))
    assert found.sigma2 == pytest.approx(0, abs=1e-12)
    assert found.bound == pytest.approx(math.sqrt(3) + math.sqrt(5))


@pytest.mark.parametrize(
    ("q", "block_rows", "block_cols", "gap"),
    [(23, 5, 23, 1.895), (11, 11, 11, 3.008), (7, 7, 3, 1.218)],
)
def test_array_code_is_exact(q, block_rows, block_cols, gap):
    found = array_code(q, block_rows, block_cols)
    assert found.mask.shape == (q * block_rows, q * block_cols)
    assert degrees(found.mask) == (block_cols, block_cols, block_rows, block_rows)
    assert abs(found.sigma2 - math.sqrt(q)) <= found.sigma2_bound + 1e-12
    assert found.sigma2_bound < 1e-5
    assert found.gap == pytest.approx(gap, abs=1e-3)
    assert found.is_ramanujan
    # no two rows share two columns: the graph has no cycle of length 4
    common = found.mask.double() @ found.mask.double().T
    assert common.fill_diagonal_(0).max() == 1


def test_array_code_is_full_by_default_and_may_be_truncated():
    assert array_code(5).mask.shape == (25, 25)
    part = array_code(23, 5, 9)
    assert part.mask.shape == (115, 207)
    assert part.gap == pytest.approx(0.067, abs=1e-3)
    whole = array_code(23, 5)
    assert torch.equal(part.mask, whole.mask[:, :207])


def test_mask_from_shifts_by_hand():
    mask = mask_from_shifts(torch.tensor([[0, 1], [2, 4]]), 3)
    shift = {s: np.roll(np.eye(3, dtype=int), s, axis=1) for s in range(3)}
    expected = np.block([[shift[0], shift[1]], [shift[2], shift[1]]])  # 4 is 1
    assert mask.int().numpy().tolist() == expected.tolist()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_fourier_blocks_give_the_second_singular_value(block_rows, block_cols, q, seed):
    shifts = np.random.default_rng(seed).integers(q, size=(block_rows, block_cols))
    sigmas = dense_sigmas(mask_from_shifts(torch.from_numpy(shifts), q))
    second = sigmas[1] if len(sigmas) > 1 else 0.0
    assert fourier_sigma2(shifts, q) == pytest.approx(second, abs=1e-7)


@pytest.mark.parametrize(("block_rows", "block_cols", "q"), [(8, 8, 64), (16, 16, 32), (4, 36, 32)])
def test_quasi_cyclic(block_rows, block_cols, q):
    found = quasi_cyclic(block_rows, block_cols, q, generator=seeded(), tries=50)
    assert degrees(found.mask) == (block_cols, block_cols, block_rows, block_rows)
    assert found.shifts.shape == (block_rows, block_cols)
    assert found.q == q
    assert torch.equal(found.mask, mask_from_shifts(found.shifts, found.q))
    exact = fourier_sigma2(found.shifts.numpy(), q)
    assert abs(found.sigma2 - exact) <= found.sigma2_bound + 1e-12
    assert found.is_ramanujan
    check_certificate(found)


def test_quasi_cyclic_takes_the_best_of_its_tries():
    gaps = [quasi_cyclic(3, 5, 8, generator=seeded(3), tries=n).gap for n in (1, 5, 50)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_a_lift_has_the_values_of_the_base_and_of_the_signing(rows, cols, seed):
    rng = np.random.default_rng(seed)
    mask = torch.from_numpy(rng.random((rows, cols)) < 0.6)
    signs = torch.from_numpy(2 * rng.integers(2, size=int(mask.sum())) - 1)
    signed = torch.zeros(mask.shape, dtype=torch.float64)
    signed[mask] = signs.double()
    expected = np.concatenate([dense_sigmas(mask), dense_sigmas(signed)])
    assert dense_sigmas(lifted(mask, signs)) == pytest.approx(np.sort(expected)[::-1], abs=1e-7)


def test_lift_by_hand():
    # the second edge is crossed
    mask = lifted(torch.tensor([[True, True]]), torch.tensor([1, -1]))
    assert mask.int().tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]


def test_two_lift_doubles_and_keeps_degrees():
    base = torch.ones(8, 4)
    found = two_lift(base, 4, generator=seeded())
    assert found.mask.shape == (128, 64)
    assert degrees(found.mask) == (4, 4, 8, 8)
    assert found.is_ramanujan
    check_certificate(found)
    assert torch.equal(base, torch.ones(8, 4))
    assert torch.equal(two_lift(base, 0).mask, base.bool())


def test_two_lift_of_the_measured_size_beats_a_random_signing():
    best = two_lift(torch.ones(8, 8), 6, generator=seeded())
    random = two_lift(torch.ones(8, 8), 6, generator=seeded(), tries=1)
    assert best.mask.shape == random.mask.shape == (512, 512)
    assert best.is_ramanujan
    assert best.gap > random.gap


def test_two_lift_takes_the_smallest_signing():
    # the greedy choice at one lift, computed again for all signings it could have drawn
    base = biregular_random(12, 12, degree=3, generator=seeded(1), tries=1).mask
    lifts = [two_lift(base, 1, generator=seeded(5), tries=n).sigma2 for n in (1, 4, 40)]
    assert lifts == sorted(lifts, reverse=True)
    assert lifts[0] > lifts[-1]


GENERATORS = {
    "biregular": lambda generator: biregular_random(30, 40, edges=333, generator=generator),
    "quasi_cyclic": lambda generator: quasi_cyclic(3, 4, 7, generator=generator, tries=5),
    "two_lift": lambda generator: two_lift(torch.ones(3, 4), 3, generator=generator, tries=5),
}


@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)
def test_the_seed_decides(make):
    one = make(seeded(7))
    again = make(seeded(7))
    assert torch.equal(one.mask, again.mask)
    assert one.certificate() == again.certificate()
    assert not torch.equal(one.mask, make(seeded(8)).mask)
    state = torch.get_rng_state()
    make(seeded(7))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    by_default = make(None)
    torch.manual_seed(3)
    assert torch.equal(make(None).mask, by_default.mask)
    generator = seeded(7)
    make(generator)
    assert not torch.equal(make(generator).mask, one.mask)  # a generator moves on


def test_certificate_agrees_with_the_full_spectrum():
    found = biregular_random(64, 96, degree=9, generator=seeded())
    layer = full_spectrum({"fc": found.mask}).layers["fc"]
    assert found.gap == pytest.approx(layer.ramanujan_gap, abs=1e-12)
    assert found.is_ramanujan == layer.is_ramanujan
    # one degree on each side: a single regular subgraph, the layer itself
    assert len(layer.subgraphs) == 1


def test_certify_reads_any_dtype_and_a_kernel_as_its_matrix():
    kernel = torch.zeros(4, 3, 3, 3)
    kernel[0, 0, 0, 0] = kernel[1, 2, 1, 1] = kernel[1, 0, 0, 0] = 1
    found = certify(kernel)
    assert found.mask.shape == (4, 27)
    sigmas = dense_sigmas(found.mask)
    assert (found.sigma1, found.sigma2) == pytest.approx(sigmas[:2].tolist(), abs=1e-9)
    assert found.bound == pytest.approx(math.sqrt(3 / 2 - 1) + math.sqrt(3 / 2 - 1))
    for dtype in (torch.bool, torch.int64, torch.float16):
        assert certify(kernel.to(dtype)).certificate() == found.certificate()


def test_a_gap_within_the_error_is_no_proof():
    found = certify(torch.ones(3, 3))
    assert found.is_ramanujan
    touching = dataclasses.replace(found, sigma2=found.bound - 1e-9, sigma2_bound=1e-8)
    assert touching.gap > 0
    assert not touching.is_ramanujan


def test_a_mask_that_is_not_ramanujan_says_so():
    found = certify(torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)))  # sigma2 = sigma1 = 4
    assert found.sigma2 == pytest.approx(4)
    assert found.gap == pytest.approx(2 * math.sqrt(3) - 4)
    assert not found.is_ramanujan
    assert repr(found) == "RamanujanMask(8 x 8, 32 edges, sigma2 4.0000, bound 3.4641, gap -0.5359)"


def test_certificate_is_ready_for_json():
    certificate = certify(torch.ones(3, 3)).certificate()
    assert json.loads(json.dumps(certificate)) == certificate
    assert set(certificate) == {
        "bound",
        "sigma1",
        "sigma2",
        "sigma2_bound",
        "gap",
        "is_ramanujan",
    }


def test_the_certificate_is_that_of_the_operator():
    found = biregular_random(50, 70, degree=7, generator=seeded())
    crow_indices = torch.cat([torch.zeros(1, dtype=torch.int64), found.mask.sum(1).cumsum(0)])
    sigma = singular_values(crow_indices, found.mask.nonzero()[:, 1], None, (50, 70))
    assert [found.sigma1, found.sigma2] == sigma.values.tolist()
    assert found.sigma2_bound == sigma.bounds[1].item()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: biregular_random(0, 3, edges=1), ValueError, "rows: expected at least 1, got 0"),
        (lambda: biregular_random(3, 2.0, edges=1), TypeError, "cols: expected an int, got float"),
        (lambda: biregular_random(3, 2), ValueError, "exactly one of them, got neither"),
        (lambda: biregular_random(3, 2, edges=1, degree=1), ValueError, "one of them, got both"),
        (lambda: biregular_random(3, 2, degree=3), ValueError, r"degree: .* in \[1, 2\], got 3"),
        (lambda: biregular_random(3, 2, degree=True), TypeError, "degree: .* got bool"),
        (lambda: biregular_random(3, 2, edges=0), ValueError, r"edges: .* in \[1, 6\], got 0"),
        (lambda: biregular_random(3, 2, edges=7), ValueError, r"edges: .* in \[1, 6\], got 7"),
        (lambda: biregular_random(3, 2, edges=1, tries=0), ValueError, "tries: expected at least"),
        (lambda: quasi_cyclic(0, 2, 3), ValueError, "block_rows: expected at least 1, got 0"),
        (lambda: quasi_cyclic(2, -1, 3), ValueError, "block_cols: expected at least 1, got -1"),
        (lambda: quasi_cyclic(2, 2, 0), ValueError, "q: expected at least 1, got 0"),
        (lambda: quasi_cyclic(2, 2, 3, tries=0), ValueError, "tries: expected at least 1"),
        (lambda: array_code(1), ValueError, "q: expected at least 2, got 1"),
        (lambda: array_code(9), ValueError, "q: expected a prime, got 9"),
        (lambda: array_code(7, 8), ValueError, r"block_rows: .* in \[1, 7\], got 8"),
        (lambda: array_code(7, 7, 0), ValueError, r"block_cols: .* in \[1, 7\], got 0"),
        (lambda: two_lift([[1]], 1), TypeError, "base: expected a torch.Tensor, got list"),
        (lambda: two_lift(torch.ones(3), 1), ValueError, "base: expected at least two dim"),
        (lambda: two_lift(torch.full((2, 2), 2), 1), ValueError, "base: .* zeros and ones"),
        (lambda: two_lift(torch.ones(2, 2), -1), ValueError, "lifts: expected at least 0, got -1"),
        (lambda: two_lift(torch.ones(2, 2), 1, tries=0), ValueError, "tries: expected at least"),
        (lambda: certify(torch.zeros(2, 2)), ValueError, "mask: expected at least one 1"),
        (lambda: certify(torch.full((2, 2), math.nan)), ValueError, "mask: .* zeros and ones"),
        (lambda: mask_from_shifts(torch.zeros(2, 2), 2), TypeError, "shifts: expected int64"),
        (lambda: mask_from_shifts(torch.tensor([1]), 2), ValueError, "shifts: expected two dim"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
