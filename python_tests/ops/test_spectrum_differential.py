"""Two thousand generated matrices against LAPACK in float64, and every bound with them."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra import check, csr

from fullspectrum_ext import ops

CASES_OF_A_KIND = 250


def independent(generator, rows, cols, density):
    return generator.random((rows, cols)) < density


def skewed(generator, rows, cols, density):
    """A few rows and columns have most of the entries, as after pruning by score."""
    weight = np.outer(generator.pareto(1.0, rows) + 0.01, generator.pareto(1.0, cols) + 0.01)
    return generator.random((rows, cols)) < density * weight / weight.mean()


def left_regular(generator, rows, cols, density):
    """Each column has the same number of entries."""
    order = generator.random((rows, cols)).argsort(axis=0)
    return order < round(density * rows)


def in_pieces(generator, rows, cols, density):
    """The graph falls into parts that no edge joins."""
    parts = generator.integers(1, 5)
    same = generator.integers(parts, size=(rows, 1)) == generator.integers(parts, size=cols)
    return same & (generator.random((rows, cols)) < parts * density)


KINDS = {kind.__name__: kind for kind in (independent, skewed, left_regular, in_pieces)}
WEIGHTS = {
    "ones": lambda generator, shape: np.ones(shape),
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "twelve orders of magnitude": lambda generator, shape: 10 ** generator.uniform(-12, 0, shape),
    "few different ones": lambda generator, shape: generator.integers(1, 3, shape) / 4,
}


def repeat_second_value(matrix):
    """Put a larger block beside two copies of a matrix: its first value is then there twice."""
    size = float(np.abs(matrix).sum()) + 1
    return scipy.linalg.block_diag(np.full((2, 3), size), matrix, matrix)


# A side of up to 64 nodes is diagonalised, a longer one iterated on.
@pytest.mark.parametrize("longest", [24, 100])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_generated_matrices_agree_with_lapack(kind, longest):
    @given(
        rows=st.integers(longest // 24, longest),
        cols=st.integers(longest // 24, longest),
        density=st.sampled_from([0.02, 0.1, 0.3, 0.9]),
        weights=st.sampled_from(list(WEIGHTS)),
        repeated=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    @settings(max_examples=CASES_OF_A_KIND, deadline=None)
    def agrees(rows, cols, density, weights, repeated, seed):
        nonlocal cases
        cases += 1
        generator = np.random.default_rng(seed)
        dense = kind(generator, rows, cols, density) * WEIGHTS[weights](generator, (rows, cols))
        dense = repeat_second_value(dense) if repeated else dense
        crow_indices, col_indices, values = csr(dense)
        values = None if bool((values == 1).all()) else values

        check(ops.singular_values(crow_indices, col_indices, values, dense.shape), dense)

    cases = 0
    agrees()

    assert cases >= CASES_OF_A_KIND
