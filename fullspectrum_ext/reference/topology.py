"""Topology updates, free places and the choice of what grows, by dense matrices."""

import torch
from torch import Tensor


def largest_outside(
    gradient: Tensor, crow_indices: Tensor, col_indices: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Sort all of a dense gradient; of equal magnitudes the first in row-major order come first.

    Args:
        gradient: Dense, ``[rows, cols]``.
        crow_indices: Start of each row, ``[rows + 1]``.
        col_indices: Column of each stored entry, ``[nnz]``.
        k: How many.

    Returns:
        Flat positions, rising, and the gradient there, ``[k]``.

    Example:
        >>> gradient = torch.tensor([[9.0, 1.0], [-3.0, 1.0]])
        >>> largest_outside(gradient, torch.tensor([0, 1, 1]), torch.tensor([0]), 2)
        (tensor([1, 2]), tensor([ 1., -3.]))
    """
    magnitude = gradient.abs()
    rows = torch.arange(gradient.shape[0], device=gradient.device)
    rows = rows.repeat_interleave(crow_indices.diff())
    magnitude[rows, col_indices.long()] = -1
    order = magnitude.flatten().sort(descending=True, stable=True).indices
    positions = order[:k].sort().values
    return positions, gradient.flatten()[positions]


def free_places(crow_indices: Tensor, col_indices: Tensor, cols: int) -> Tensor:
    """Find all places where nothing is stored.

    Args:
        crow_indices: Start of each row, ``[rows + 1]``.
        col_indices: Column of each stored entry, ``[nnz]``.
        cols: Number of columns.

    Returns:
        Flat positions, rising.

    Example:
        >>> free_places(torch.tensor([0, 2]), torch.tensor([0, 2]), 4)
        tensor([1, 3])
    """
    rows = torch.arange(crow_indices.numel() - 1, device=col_indices.device)
    is_free = torch.ones((rows.numel(), cols), dtype=torch.bool, device=col_indices.device)
    is_free[rows.repeat_interleave(crow_indices.diff()), col_indices.long()] = False
    return is_free.flatten().nonzero().flatten()


def topology_update(
    crow_indices: Tensor, col_indices: Tensor, drop: Tensor, grow: Tensor, cols: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Number the stored entries in a dense matrix, strike some out, add others and read it again.

    Args:
        crow_indices: Start of each row, ``[rows + 1]``.
        col_indices: Column of each stored entry, ``[nnz]``.
        drop: Indices into ``col_indices``.
        grow: Flat positions.
        cols: Number of columns.

    Returns:
        ``crow_indices``, ``col_indices`` and the source of each entry, -1 for one that was not
        stored.

    Example:
        >>> crow_indices, col_indices = torch.tensor([0, 2]), torch.tensor([0, 2])
        >>> topology_update(crow_indices, col_indices, torch.tensor([0]), torch.tensor([1]), 3)
        (tensor([0, 2]), tensor([1, 2]), tensor([-1,  1]))
    """
    absent = -2
    rows = crow_indices.numel() - 1
    device = col_indices.device
    row_of = torch.arange(rows, device=device).repeat_interleave(crow_indices.diff())
    source = torch.full((rows, cols), absent, device=device)
    numbers = torch.arange(col_indices.numel(), device=device)
    stored = torch.full_like(source, -1)
    stored[row_of, col_indices.long()] = numbers
    numbers[drop] = absent
    source[row_of, col_indices.long()] = numbers
    source.view(-1)[grow] = stored.view(-1)[grow]
    present = source != absent
    starts = torch.zeros_like(crow_indices)
    starts[1:] = present.sum(1).cumsum(0)
    columns = present.nonzero()[:, 1].to(col_indices.dtype)
    return starts, columns, source[present]
