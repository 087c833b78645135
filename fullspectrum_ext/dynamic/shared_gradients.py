"""The largest entries of a dense gradient that no rank holds: each has a part of the batch.

What counts is the mean over the ranks, as DistributedDataParallel takes it of the gradients of the
kept weights. All ranks select among the same scores, bit for bit: among those that one rank each
has computed of its rows, or among averages, which are the same on all.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fullspectrum_ext.dynamic.ranks import Ranks
from fullspectrum_ext.ops import TopGradients, dense_grad_topk, topk_masks

_SLAB = 1 << 20  # entries of the gradient that are held at once


def largest_by_factors(
    ranks: Ranks,
    x: Tensor,
    grad: Tensor,
    batches: list[int],
    topology: tuple[Tensor, Tensor],
    count: int,
) -> TopGradients:
    """Find them from the inputs and output gradients of all ranks, which are gathered.

    Args:
        ranks: All of them call this.
        x: Inputs that this rank saw, ``[n, in]``.
        grad: Gradients of the outputs, ``[n, out]``.
        batches: What ``n`` is on each rank.
        topology: ``crow_indices`` and ``col_indices`` of what is left out.
        count: How many.

    Returns:
        Flat positions, rising, of equal gradients the first; and what the gradient is there.
    """
    inputs, outputs = x.shape[1], grad.shape[1]
    begin, end = ranks.share(outputs)
    x, grad = ranks.gather_rows(torch.cat([x, grad], 1), batches).split([inputs, outputs], 1)
    dtype = torch.promote_types(x.dtype, torch.float32)  # scores of 16 bits would be too alike
    crow_indices, col_indices = _rows(topology, begin, end)
    free = (end - begin) * inputs - col_indices.numel()
    found = dense_grad_topk(
        grad[:, begin:end].to(dtype), x.to(dtype), crow_indices, col_indices, min(count, free)
    )
    return _merge(ranks, found.positions + begin * inputs, found.values, topology, inputs, count)


def largest_by_slabs(
    ranks: Ranks,
    slab_of: Callable[[int, int], Tensor],
    columns: int,
    topology: tuple[Tensor, Tensor],
    count: int,
) -> TopGradients:
    """Find them from the gradient itself, a slab of rows after the other, averaged over the ranks.

    Args:
        ranks: All of them call this.
        slab_of: Gives this rank's part of the gradient, rows ``[begin, end)``, ``[rows, columns]``.
        columns: Of the gradient.
        topology: ``crow_indices`` and ``col_indices`` of what is left out.
        count: How many.

    Returns:
        Flat positions, rising, of equal gradients the first; and what the gradient is there.
    """
    rows = topology[0].numel() - 1
    positions, values = topology[0].new_empty(0, dtype=torch.int64), torch.empty(0)
    step = max(_SLAB // max(columns, 1), 1)
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        slab = ranks.mean(slab_of(begin, end))
        found = _largest_of_slab(slab, topology, begin, end, count)
        positions = torch.cat([positions, found.positions])
        values = torch.cat([values.to(slab), found.values])
        kept = _largest(values, count)
        positions, values = positions[kept], values[kept]
    return TopGradients(positions, values)


def _largest_of_slab(
    slab: Tensor, topology: tuple[Tensor, Tensor], begin: int, end: int, count: int
) -> TopGradients:
    columns = slab.shape[1]
    crow_indices, col_indices = _rows(topology, begin, end)
    starts = torch.arange(end - begin, device=slab.device) * columns
    stored = starts.repeat_interleave(crow_indices.diff()) + col_indices
    free = torch.ones(slab.numel(), dtype=torch.bool, device=slab.device)
    free[stored] = False
    positions = free.nonzero().view(-1)
    values = slab.view(-1)[positions]
    kept = _largest(values, count)
    return TopGradients(positions[kept] + begin * columns, values[kept])


def _merge(
    ranks: Ranks,
    positions: Tensor,
    values: Tensor,
    topology: tuple[Tensor, Tensor],
    columns: int,
    count: int,
) -> TopGradients:
    """Select among what all ranks have found in their rows, which lie one after the other."""
    crow_indices = topology[0]
    found = []
    for rank in range(ranks.size):
        begin, end = ranks.share(crow_indices.numel() - 1, rank)
        stored = int(crow_indices[end] - crow_indices[begin])
        found.append(min(count, (end - begin) * columns - stored))
    pairs = [tensor.unsqueeze(1).view(torch.uint8) for tensor in (positions, values)]
    pairs = ranks.gather_rows(torch.cat(pairs, 1), found).split([8, values.itemsize], 1)
    positions = pairs[0].contiguous().view(torch.int64).view(-1)
    values = pairs[1].contiguous().view(values.dtype).view(-1)
    kept = _largest(values, count)
    return TopGradients(positions[kept], values[kept] / ranks.size)  # the mean


def _largest(values: Tensor, count: int) -> Tensor:
    """Return the indices of the largest magnitudes, rising; of equal ones the first."""
    if values.numel() <= count:
        return torch.arange(values.numel(), device=values.device)
    (kept,) = topk_masks([values.abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)], [count])
    return kept.nonzero().view(-1)


def _rows(topology: tuple[Tensor, Tensor], begin: int, end: int) -> tuple[Tensor, Tensor]:
    crow_indices, col_indices = topology
    first, last = int(crow_indices[begin]), int(crow_indices[end])
    return crow_indices[begin : end + 1] - first, col_indices[first:last]
