"""The ways to singular values, each forced in turn on the same matrices."""

import os
import subprocess
import sys

import emulation
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra import LARGE, MEDIUM, SMALL, check, csr, random_matrix

from fullspectrum_ext import ops

OP = torch.ops.fullspectrum.singular_values.default
SUBGRAPH_OP = torch.ops.fullspectrum.subgraph_singular_values.default
METHODS = {"automatic": 0, "golub_kahan": 1, "bit_gram": 2, "sparse_gram": 3, "matrix_free": 4}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def solve(dense, method, k=2, tol=1e-6, device="cpu"):
    """Run one method on a matrix; a matrix of zeros and ones is given without its values."""
    crow_indices, col_indices, values = csr(dense, device)
    ones = bool((values == 1).all())
    fields = [crow_indices], [col_indices], [] if ones else [values]
    sigma, bound = OP(*fields, [dense.shape[1]], k, tol, method)
    return ops.SingularValues(sigma[0], bound[0])


def orthogonal(generator, rows, cols):
    return np.linalg.qr(generator.standard_normal((rows, cols)))[0]


@every_method
@pytest.mark.parametrize("dense", SMALL.values(), ids=SMALL)
def test_every_method_is_right(device, dense, method):
    for k in (1, 2, 3):
        check(solve(dense, method, k, device=device), dense, k)


@every_method
@pytest.mark.parametrize("dense", LARGE.values(), ids=LARGE)
def test_every_method_is_right_for_larger_matrices(dense, method):
    for k in (1, 2, 3):
        check(solve(dense, method, k), dense, k)


@every_method
@pytest.mark.parametrize("dense", MEDIUM.values(), ids=MEDIUM)
def test_every_method_iterates_to_the_right_values(device, dense, method):
    check(solve(dense, method, device=device), dense)


def test_more_values_than_the_gram_matrix_gives(device):
    dense = MEDIUM["weighted"]
    for method in (0, 3):
        check(solve(dense, method, 4, device=device), dense, 4)


def test_the_methods_are_different_ones(device):
    mask, weighted = MEDIUM["mask"], MEDIUM["weighted"]

    def bounds(dense, method):
        return tuple(solve(dense, method, device=device).bounds.tolist())

    assert len({bounds(mask, method) for method in (1, 2, 4)}) == 3
    assert len({bounds(weighted, method) for method in (1, 3, 4)}) == 3
    assert bounds(weighted, 2) == bounds(weighted, 3)  # no bits of weights


def test_the_cheapest_method_depends_on_the_matrix():
    chosen = []
    for dense in (
        random_matrix(128, 1152, 0.3),
        random_matrix(512, 4608, 0.005),
        random_matrix(128, 1152, 0.3, weighted=True),
    ):
        automatic = solve(dense, 0)
        same = [m for m in (1, 2, 3, 4) if torch.equal(solve(dense, m).bounds, automatic.bounds)]
        chosen.append(same)
    assert chosen == [[2], [4], [2, 3]]


@every_method
def test_a_second_value_far_below_the_first(method):
    generator = np.random.default_rng(0)
    left, right = orthogonal(generator, 120, 3), orthogonal(generator, 90, 3)
    for second in (1e-4, 1e-7, 1e-10):
        dense = left @ np.diag([1.0, second, second / 2]) @ right.T
        result = solve(dense, method)
        error = abs(result.values[1].item() - second)
        assert error <= result.bounds[1] <= 1e-13 + 1e-6 * second
        assert error <= 1e-8 * second + 1e-14


@every_method
def test_values_that_nearly_coincide(method):
    # A Krylov space of one vector would see one value where there are two.
    generator = np.random.default_rng(1)
    left, right = orthogonal(generator, 150, 100), orthogonal(generator, 110, 100)
    for gap in (0.0, 1e-15, 1e-11, 1e-7):
        values = np.concatenate([[1, 1 - gap], np.linspace(0.6, 0.1, 98)])
        check(solve(left @ np.diag(values) @ right.T, method), left @ np.diag(values) @ right.T)
        weak = np.kron(np.eye(2), random_matrix(90, 80, 0.1, weighted=True))
        weak[0, -1] = gap
        check(solve(weak, method), weak)


def test_a_space_that_ends_before_the_vectors_a_restart_keeps():
    """Few values that differ: the space is complete with a dozen vectors, of 21 to be kept."""
    solve(random_matrix(120, 100, 0.5), 1, 3)  # fills the memory that is used again
    generator = np.random.default_rng(0)
    dense = np.zeros((101, 97))
    dense[generator.integers(101, size=97), np.arange(97)] = 1
    assert np.count_nonzero(dense.any(axis=1)) > 64

    check(solve(dense, 1, 3), dense, 3)


@every_method
def test_entries_stored_twice_and_out_of_order(device, method):
    crow_indices = torch.tensor([0, 4, 6, 7])
    col_indices = torch.tensor([2, 0, 2, 1, 1, 0, 1])
    dense = np.array([[1.0, 1, 2], [1, 1, 0], [0, 1, 0]])

    for repeat in (1, 24):  # 24: more than 64 columns and rows, so that the iteration runs
        crow = torch.cat([crow_indices[:1], *(crow_indices[1:] + 7 * i for i in range(repeat))])
        col = torch.cat([col_indices + 3 * i for i in range(repeat)])
        fields = [crow.to(device)], [col.to(device)], [], [3 * repeat]
        sigma, bound = OP(*fields, 2, 1e-6, method)
        check(ops.SingularValues(sigma[0], bound[0]), np.kron(np.eye(repeat), dense))


@every_method
@pytest.mark.parametrize("weighted", [False, True])
def test_subgraphs(device, method, weighted):
    dense = random_matrix(40, 90, 0.2, weighted=weighted)
    check_subgraphs(device, method, dense, weighted)


@every_method
def test_larger_subgraphs(method):
    check_subgraphs("cpu", method, random_matrix(96, 700, 0.08), False)


def check_subgraphs(device, method, dense, weighted):
    crow_indices, col_indices, values = csr(dense, device)
    groups = ops.regular_subgraphs(crow_indices, col_indices, dense.shape)
    taps = torch.cat([group.taps for group in groups])
    sizes = [len(group.taps) for group in groups]
    fields = [crow_indices], [col_indices], [values] if weighted else [], [dense.shape[1]]

    sigma, bound = SUBGRAPH_OP(*fields, [taps], [len(groups)], sizes, 2, 1e-6, method)

    for i, group in enumerate(groups):
        check(ops.SingularValues(sigma[i], bound[i]), dense[:, group.taps.cpu().numpy()])


def degree_matrix(generator, rows, cols, density, degrees):
    """0/1 matrix whose columns have about equal, equal or very different numbers of ones."""
    if degrees == "equal":
        dense = np.zeros((rows, cols))
        ones = max(1, min(rows, round(density * rows)))
        for col in range(cols):
            dense[generator.choice(rows, ones, replace=False), col] = 1
        return dense
    chance = np.full((rows, cols), density)
    if degrees == "skewed":
        decay = (np.arange(1, rows + 1)[:, None] * np.arange(1, cols + 1)) ** -0.6
        chance = np.minimum(chance * decay / decay.mean(), 1)
    return (generator.random((rows, cols)) < chance).astype(float)


def drawn_matrix(rows, cols, density, degrees, weights, copies, linked, seed):
    """A matrix as the generated tests want it: repeated, graded, nearly falling apart."""
    generator = np.random.default_rng(seed)
    rows, cols = max(1, rows // copies), max(1, cols // copies)
    dense = degree_matrix(generator, rows, cols, density, degrees)
    if weights == "half normal":
        dense *= np.abs(generator.standard_normal(dense.shape))
    elif weights == "signed":
        dense *= generator.standard_normal(dense.shape)
    elif weights == "12 orders of magnitude":
        dense *= 10 ** generator.uniform(-12, 0, dense.shape)
    dense = np.kron(np.eye(copies), dense)  # every value `copies` times
    if linked:  # copies that hang together by one entry
        dense[0, -1] = 1 if weights == "none" else 10 ** generator.uniform(-12, 0)
    return dense


def check_bounds(dense, k, tol, crowded, methods):
    """Every bound is true; of values more crowded than the block, one may stand for another."""
    true = np.zeros(k)
    spectrum = np.linalg.svd(dense, compute_uv=False)
    true[: len(spectrum)] = spectrum[:k]
    accuracy = tol if crowded else 1e-8

    for name in methods:
        result = solve(dense, METHODS[name], k, tol)
        error = np.abs(result.values.numpy() - true)
        bounds = result.bounds.numpy()
        rounding = 1e-13 * true[0]
        if crowded:  # then the bound is for the nearest singular value
            found = result.values.numpy()[: len(spectrum), None]
            distance = np.zeros(k)
            distance[: len(spectrum)] = np.abs(found - spectrum).min(axis=1)
        else:
            distance = error
        assert (distance <= bounds + rounding).all(), (name, distance, bounds)
        assert (error <= accuracy * true + rounding).all(), (name, error, true)
        assert (bounds <= tol * true + 10 * rounding).all(), (name, bounds, true)


DRAWN = {
    "density": st.sampled_from([0.01, 0.03, 0.1, 0.3, 1.0]),
    "degrees": st.sampled_from(["random", "equal", "skewed"]),
    "weights": st.sampled_from(["none", "half normal", "signed", "12 orders of magnitude"]),
    "copies": st.sampled_from([1, 1, 1, 2, 3]),
    "linked": st.booleans(),
    "seed": st.integers(0, 2**32),
}


@given(
    rows=st.integers(1, 110),
    cols=st.integers(1, 110),
    k=st.integers(1, 3),
    tol=st.sampled_from([1e-6, 1e-6, 1e-9]),
    **DRAWN,
)
@settings(max_examples=2000, deadline=None)
def test_every_bound_is_true(k, tol, **drawn):
    crowded = drawn["linked"] and drawn["copies"] > k + 1
    check_bounds(drawn_matrix(**drawn), k, tol, crowded, METHODS)


@given(
    rows=st.integers(1, 72),
    cols=st.integers(1, 72),
    k=st.integers(1, 3),
    tol=st.sampled_from([1e-6, 1e-6, 1e-9]),
    method=st.sampled_from(list(METHODS)),
    **DRAWN,
)
@settings(max_examples=60, deadline=None)
def test_every_bound_is_true_on_the_emulator(k, tol, method, **drawn):
    crowded = drawn["linked"] and drawn["copies"] > k + 1
    with emulation.active():
        check_bounds(drawn_matrix(**drawn), k, tol, crowded, [method])


@pytest.mark.parametrize("weighted", [False, True])
@every_method
def test_any_number_of_threads_gives_the_same_bits(method, weighted):
    matrices = [csr(dense) for dense in (*LARGE.values(), *SMALL.values())]
    crows, cols, values = ([fields[i] for fields in matrices] for i in range(3))
    widths = [dense.shape[1] for dense in (*LARGE.values(), *SMALL.values())]
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(OP(crows, cols, values if weighted else [], widths, 2, 1e-6, method))
    finally:
        torch.set_num_threads(before)
    for sigma, bound in results[1:]:
        assert torch.equal(sigma, results[0][0])
        assert torch.equal(bound, results[0][1])


AGAINST_LAPACK = """
import sys
sys.path.append(sys.argv[1])
from spectra import LARGE, check
sys.path.append(sys.argv[2])
from test_spectrum_methods import METHODS, solve
from fullspectrum_ext import _core
for dense in LARGE.values():
    for method in METHODS.values():
        check(solve(dense, method), dense)
print(_core.active_isa())
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_the_lower_instruction_sets_are_right(isa):
    # Chosen once in a process, so each takes its own. The processor's best one runs in all others.
    here = os.path.dirname(__file__)
    command = [sys.executable, "-P", "-c", AGAINST_LAPACK, os.path.dirname(here), here]
    environment = {**os.environ, "FULLSPECTRUM_ISA": isa, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr
    if isa == "baseline":
        assert ran.stdout.strip() == "baseline"


@pytest.mark.parametrize("method", [-1, 5])
def test_unknown_methods_are_refused(device, method):
    crow_indices, col_indices, _ = csr(np.eye(3), device)
    taps = torch.arange(3, device=device)
    with pytest.raises(RuntimeError, match=rf"method must lie in \[0, 4\], got {method}"):
        OP([crow_indices], [col_indices], [], [3], 2, 1e-6, method)
    with pytest.raises(RuntimeError, match=rf"method must lie in \[0, 4\], got {method}"):
        SUBGRAPH_OP([crow_indices], [col_indices], [], [3], [taps], [1], [3], 2, 1e-6, method)
