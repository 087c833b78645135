"""The transpose of a CSR matrix, by a stable sort."""

import torch
from torch import Tensor


def csr_transpose(
    crow_indices: Tensor, col_indices: Tensor, cols: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the entries by column.

    Args:
        crow_indices: Start of each row, ``[rows + 1]``.
        col_indices: Column of each stored entry, ``[nnz]``.
        cols: Number of columns.

    Returns:
        Start of each column, row of each entry of the transpose, and where it stood.

    Example:
        >>> csr_transpose(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 0]), cols=3)
        (tensor([0, 2, 2, 3]), tensor([0, 1, 0]), tensor([0, 2, 1]))
    """
    rows = torch.arange(crow_indices.numel() - 1, device=crow_indices.device)
    row_of = rows.repeat_interleave(crow_indices.diff())
    permutation = col_indices.sort(stable=True).indices
    starts = crow_indices.new_zeros(cols + 1)
    starts[1:] = col_indices.bincount(minlength=cols).cumsum(0)
    dtype = col_indices.dtype
    return starts, row_of[permutation].to(dtype), permutation.to(dtype)
