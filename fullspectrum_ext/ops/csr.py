"""Sparse matrices in compressed-row form: from a masked dense matrix, back, and transposed."""

from typing import NamedTuple

import torch
from torch import Tensor

from fullspectrum_ext import _checks

_INT32_MAX = torch.iinfo(torch.int32).max


class CsrTranspose(NamedTuple):
    """The transpose of a CSR matrix, in CSR form, with the way from its entries to the original's.

    Attributes:
        crow_indices: Start of each row of the transpose, ``[cols + 1]``.
        col_indices: Column of each of its entries, a row of the original, ``[nnz]``.
        permutation: Where each of its entries stands in the original: the transpose's values are
            ``values[permutation]``, ``[nnz]``.
    """

    crow_indices: Tensor
    col_indices: Tensor
    permutation: Tensor


def csr_row_indices(crow_indices: Tensor, col_indices: Tensor) -> Tensor:
    """Return the row of each stored entry, ``[nnz]``, in the dtype of ``col_indices``.

    Args:
        crow_indices: Start of each row, int32 or int64, ``[rows + 1]``.
        col_indices: Column of each stored entry, ``[nnz]``; only its length and dtype count.

    Returns:
        The rows, never falling.

    Example:
        >>> csr_row_indices(torch.tensor([0, 2, 2, 3]), torch.tensor([0, 1, 0]))
        tensor([0, 0, 2])
    """
    positions = torch.arange(
        col_indices.shape[0], dtype=crow_indices.dtype, device=crow_indices.device
    )
    rows = torch.searchsorted(crow_indices[1:], positions, right=True)
    return rows.to(col_indices.dtype)


def csr_transpose(crow_indices: Tensor, col_indices: Tensor, cols: int) -> CsrTranspose:
    """Index the transpose of a CSR matrix with ``cols`` columns.

    No value is touched, and every shape is known beforehand, so that it can be compiled. Time
    O(nnz + cols), on CUDA that of a sort; worth keeping as long as the topology stays.

    Args:
        crow_indices: Start of each row, int32 or int64, ``[rows + 1]``.
        col_indices: Column of each stored entry, the same dtype and device, ``[nnz]``.
        cols: Number of columns.

    Returns:
        The transpose; its fields have the dtype of ``col_indices``.

    Example:
        >>> csr_transpose(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 0]), cols=3)
        CsrTranspose(crow_indices=tensor([0, 2, 2, 3]), col_indices=tensor([0, 1, 0]), permutation=tensor([0, 2, 1]))
    """  # noqa: E501
    return CsrTranspose(
        *torch.ops.fullspectrum.csr_transpose.default(
            crow_indices.contiguous(), col_indices.contiguous(), cols
        )
    )


def csr_from_dense(matrix: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Store the entries of a matrix under a mask in CSR form.

    Args:
        matrix: Dense matrix, ``[rows, cols]``. Differentiable.
        mask: Bool, ``[rows, cols]``; an entry under it is stored even where it is 0. None stores
            the entries that are not 0.

    Returns:
        ``crow_indices [rows + 1]``, ``col_indices [nnz]`` (int32 where they fit, else int64) and
        ``values [nnz]``, row by row with rising columns.

    Raises:
        TypeError: If ``mask`` is not a bool tensor.
        ValueError: If ``matrix`` is not two-dimensional or ``mask`` has another shape.

    Example:
        >>> csr_from_dense(torch.tensor([[5.0, 0.0], [6.0, 7.0]]))
        (tensor([0, 1, 3], dtype=torch.int32), tensor([0, 0, 1], dtype=torch.int32), tensor([5., 6., 7.]))
    """  # noqa: E501
    _checks.check_tensor("matrix", matrix)
    if matrix.dim() != 2:
        raise ValueError(f"matrix: expected two dimensions, got shape {tuple(matrix.shape)}")
    mask = matrix != 0 if mask is None else mask
    _checks.check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected bool, got {mask.dtype}")
    if mask.shape != matrix.shape:
        raise ValueError(
            f"mask: expected the matrix's shape {tuple(matrix.shape)}, got {tuple(mask.shape)}"
        )
    mask = mask.to(matrix.device)
    rows, cols = mask.nonzero(as_tuple=True)
    fits = max(cols.numel(), *matrix.shape) <= _INT32_MAX
    dtype = torch.int32 if fits else torch.int64
    crow_indices = torch.zeros(matrix.shape[0] + 1, dtype=dtype, device=matrix.device)
    crow_indices[1:] = mask.sum(dim=1).cumsum(0)
    return crow_indices, cols.to(dtype), matrix[rows, cols]


def csr_to_dense(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, shape: tuple[int, int]
) -> Tensor:
    """Write the stored entries into a dense matrix of zeros.

    Args:
        crow_indices: Start of each row, int32 or int64, ``[rows + 1]``.
        col_indices: Column of each stored entry, the same dtype and device, ``[nnz]``.
        values: Stored entries, ``[nnz]``. Differentiable.
        shape: Rows and columns.

    Returns:
        The matrix, ``[rows, cols]``, in the dtype of ``values``.

    Example:
        >>> csr_to_dense(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.ones(2), (2, 2))
        tensor([[0., 1.],
                [1., 0.]])
    """
    _checks.check_csr(crow_indices, col_indices, shape)
    rows = csr_row_indices(crow_indices, col_indices)
    at = (rows.long(), col_indices.long())
    return values.new_zeros(shape).index_put(at, values)


@torch.library.register_fake("fullspectrum::csr_transpose")
def _fake_transpose(
    crow_indices: Tensor, col_indices: Tensor, cols: int
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        col_indices.new_empty(cols + 1),
        torch.empty_like(col_indices),
        torch.empty_like(col_indices),
    )
