"""Matrices too large and too sparse for a stored basis: the iteration in two passes."""

import numpy as np
import pytest
import scipy.sparse
import torch

from fullspectrum_ext import ops


def sparse_matrix(rows, cols, in_row, *, signed=False, seed=0):
    """Random matrix with one entry in each of `in_row` equal ranges of every row's columns."""
    generator = np.random.default_rng(seed)
    width = cols // in_row
    col = generator.integers(width, size=(rows, in_row)) + np.arange(in_row) * width
    value = generator.standard_normal(rows * in_row) if signed else np.ones(rows * in_row)
    crow = np.arange(0, rows * in_row + 1, in_row)
    return scipy.sparse.csr_array((value, col.ravel(), crow), shape=(rows, cols))


def solve(matrix, k=2, tol=1e-6):
    fields = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    return ops.singular_values(*fields, matrix.shape, k, tol=tol)


def arpack(matrix, k):
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    return np.sort(scipy.sparse.linalg.svds(matrix, k, v0=start, return_singular_vectors=False))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("k", [1, 2])
def test_the_values_are_those_of_arpack(signed, k):
    matrix = sparse_matrix(12000, 9000, 6, signed=signed)

    result = solve(matrix, k)

    true = arpack(matrix, k)[::-1]
    error = np.abs(result.values.numpy() - true)
    assert (error <= result.bounds.numpy() + 1e-12 * true[0]).all()
    assert (error <= 1e-8 * true).all()
    assert (result.bounds.numpy() <= 1e-6 * true).all()


def test_values_of_two_equal_components():
    half = sparse_matrix(9000, 9000, 5, signed=True)
    one = solve(half, 1)

    both = solve(scipy.sparse.block_diag([half, half], format="csr"))

    np.testing.assert_allclose(both.values, one.values.expand(2), rtol=1e-8)
    assert (both.bounds <= 1e-6 * both.values).all()


def test_any_number_of_threads_gives_the_same_bits():
    matrix = sparse_matrix(11000, 11000, 24, signed=True)
    long = sparse_matrix(70000, 68000, 4, signed=True)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results += [solve(matrix, tol=1e-4), solve(long)]
    finally:
        torch.set_num_threads(before)
    for one, two in zip(results[:2], results[2:], strict=True):
        assert torch.equal(one.values, two.values)
        assert torch.equal(one.bounds, two.bounds)


@pytest.mark.parametrize("transposed", [False, True])
def test_orthogonal_rows_have_a_closed_form(transposed):
    generator = np.random.default_rng(0)
    size = 200_000
    weight = generator.standard_normal(size)
    matrix = scipy.sparse.csr_array(
        (weight, generator.integers(size // 2, size=size), np.arange(size + 1)),
        shape=(size, size // 2),
    )

    result = solve(matrix.T.tocsr() if transposed else matrix, 3)

    true = np.sqrt(np.sort(np.asarray(matrix.power(2).sum(axis=0)).ravel())[:-4:-1])
    np.testing.assert_allclose(result.values, true, rtol=1e-14)
    assert (result.bounds <= 1e-13 * true[0]).all()
