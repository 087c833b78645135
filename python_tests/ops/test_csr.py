import pytest
import torch
from helpers import random_csr
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext import ops
from fullspectrum_ext.reference import csr as reference

MATRIX = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])


def test_a_matrix_worked_by_hand():
    crow_indices, col_indices, values = ops.csr_from_dense(MATRIX)

    assert crow_indices.tolist() == [0, 1, 1, 3]
    assert col_indices.tolist() == [1, 0, 2]
    assert values.tolist() == [2.0, 3.0, 4.0]
    assert crow_indices.dtype == col_indices.dtype == torch.int32


def test_zeros_under_the_mask_are_stored():
    crow_indices, _, values = ops.csr_from_dense(MATRIX, torch.ones(3, 3, dtype=torch.bool))

    assert crow_indices.tolist() == [0, 3, 6, 9]
    torch.testing.assert_close(values, MATRIX.flatten(), rtol=0, atol=0)


def test_row_indices_worked_by_hand():
    rows = ops.csr_row_indices(torch.tensor([0, 0, 2, 2, 3, 3]), torch.tensor([4, 5, 6]))
    assert rows.tolist() == [1, 1, 3]


def test_the_transpose_worked_by_hand():
    crow_indices, col_indices, _ = ops.csr_from_dense(MATRIX)
    transpose = ops.csr_transpose(crow_indices, col_indices, cols=3)

    assert transpose.crow_indices.tolist() == [0, 1, 2, 3]
    assert transpose.col_indices.tolist() == [2, 0, 2]
    assert transpose.permutation.tolist() == [1, 0, 2]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 12),
    cols=st.integers(0, 12),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    index=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 1000),
)
def test_dense_and_transpose_round_trips(rows, cols, density, index, seed):
    crow_indices, col_indices, values, _, dense = random_csr(
        rows, cols, density, index=index, seed=seed
    )
    transpose = ops.csr_transpose(crow_indices, col_indices, cols)

    back = ops.csr_to_dense(crow_indices, col_indices, values, (rows, cols))
    turned = ops.csr_to_dense(
        transpose.crow_indices, transpose.col_indices, values[transpose.permutation], (cols, rows)
    )

    assert torch.equal(back, dense)
    assert torch.equal(turned, dense.T)
    assert {field.dtype for field in transpose} == {index}


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["i32", "i64"])
@pytest.mark.parametrize(
    "case", [(0, 3, 0.5), (3, 0, 0.5), (1, 1, 1.0), (13, 7, 0.0), (41, 67, 0.3)], ids=str
)
def test_the_transpose_is_that_of_a_stable_sort(case, index, device):
    topology = random_csr(*case, index=index, device=device)[:2]
    found = ops.csr_transpose(*topology, case[1])
    for field, expected in zip(found, reference.csr_transpose(*topology, case[1]), strict=True):
        assert torch.equal(field, expected)
        assert field.dtype == index


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_large_transpose_is_the_same_with_any_number_of_threads(threads):
    topology = random_csr(1501, 701, 0.25, seed=threads)[:2]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = ops.csr_transpose(*topology, 701)
    finally:
        torch.set_num_threads(before)
    for field, expected in zip(found, reference.csr_transpose(*topology, 701), strict=True):
        assert torch.equal(field, expected)


def test_the_transpose_passes_opcheck(device):
    topology = random_csr(9, 11, 0.3, device=device)[:2]
    torch.library.opcheck(torch.ops.fullspectrum.csr_transpose.default, (*topology, 11))


def test_the_transpose_refuses_a_malformed_topology():
    crow_indices, col_indices = torch.tensor([0, 2]), torch.tensor([0, 3])
    with pytest.raises(RuntimeError, match=r"col_indices must lie in \[0, 3\), got 3"):
        ops.csr_transpose(crow_indices, col_indices, 3)
    with pytest.raises(RuntimeError, match="cols must not be negative, got -1"):
        ops.csr_transpose(crow_indices, col_indices, -1)


def test_values_and_dense_are_differentiable():
    dense = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 4) < 0.5

    def round_trip(matrix):
        return ops.csr_to_dense(*ops.csr_from_dense(matrix, mask), matrix.shape)

    assert torch.autograd.gradcheck(round_trip, (dense,))


@pytest.mark.parametrize(
    ("matrix", "mask", "error", "message"),
    [
        ([[1.0]], None, TypeError, "matrix: expected a torch.Tensor, got list"),
        (torch.ones(3), None, ValueError, r"matrix: expected two dimensions, got shape \(3,\)"),
        (MATRIX, torch.ones(3, 3), TypeError, "mask: expected bool, got torch.float32"),
        (MATRIX, torch.ones(3, 2) > 0, ValueError, r"mask: expected .* \(3, 3\), got \(3, 2\)"),
    ],
)
def test_bad_arguments_are_refused(matrix, mask, error, message):
    with pytest.raises(error, match=message):
        ops.csr_from_dense(matrix, mask)
