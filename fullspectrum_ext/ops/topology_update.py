"""A sparse layer's topology changed in steps: what to drop, the new index, and what moves along."""

from typing import NamedTuple

import torch
from torch import Tensor

from fullspectrum_ext import _checks

_OPERATORS = torch.ops.fullspectrum


class TopologyUpdate(NamedTuple):
    """A topology after an update.

    Attributes:
        crow_indices: Start of each row, ``[rows + 1]``.
        col_indices: Column of each entry, rising within each row, ``[new_nnz]``.
        source: Where each entry was stored before, -1 where it is new; int64, ``[new_nnz]``.
        added: How many entries are new.
    """

    crow_indices: Tensor
    col_indices: Tensor
    source: Tensor
    added: int


def topology_update(
    crow_indices: Tensor,
    col_indices: Tensor,
    drop: Tensor,
    grow: Tensor,
    cols: int,
    *,
    validate: bool = False,
) -> TopologyUpdate:
    """Take entries out of a CSR topology and put others in.

    Time O(rows + nnz + grown). Values, and whatever else is held by entry, follow by
    :func:`carry`. An entry may be dropped and grown again at once: then it stays as it is.

    Args:
        crow_indices: Start of each row; int32 or int64, ``[rows + 1]``.
        col_indices: Column of each stored entry; the same dtype, ``[nnz]``.
        drop: Indices into ``col_indices`` of the entries to drop, rising; int64. See
            :func:`smallest_magnitudes`.
        grow: Flat, row-major positions ``row * cols + col`` to store, rising; int64. See
            :func:`dense_grad_topk`.
        cols: Number of columns.
        validate: Check every index of the topology first. Without it, indices that are no CSR
            matrix's give an error on the CPU and undefined results on CUDA.

    Returns:
        The new topology, in the dtype of the old, the source of each entry, and how many are new.

    Raises:
        TypeError: If an argument is no tensor or has a wrong dtype.
        ValueError: If ``drop`` or ``grow`` does not rise or is out of range, if a grown position is
            already stored and not dropped, or if lengths or devices do not fit.

    Example:
        >>> crow_indices, col_indices = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1])
        >>> update = topology_update(
        ...     crow_indices, col_indices, drop=torch.tensor([0]), grow=torch.tensor([1]), cols=3
        ... )
        >>> update.col_indices.tolist(), update.source.tolist(), update.added
        ([1, 2, 1], [-1, 1, 2], 1)
        >>> carry(torch.tensor([5.0, 6.0, 7.0]), update.source)
        tensor([0., 6., 7.])
    """
    _checks.check_integer("cols", cols, 0)
    _checks.check_tensor("crow_indices", crow_indices)
    rows = max(crow_indices.numel() - 1, 0)
    _checks.check_csr(crow_indices, col_indices, (rows, cols), validate=validate)
    _check_rising("drop", drop, col_indices, col_indices.shape[0])
    _check_rising("grow", grow, col_indices, rows * cols)
    *update, counts = _OPERATORS.topology_update.default(
        crow_indices, col_indices, drop.contiguous(), grow.contiguous(), cols
    )
    clashes, added = counts.tolist()
    if clashes:
        raise ValueError(
            f"grow: expected positions that are not stored or are dropped, "
            f"got {clashes} others among {grow.numel()}"
        )
    return TopologyUpdate(*update, added)


def carry(
    tensor: Tensor, source: Tensor, fill: float = 0.0, *, out: Tensor | None = None
) -> Tensor:
    """Bring what is held by entry to a new topology.

    Args:
        tensor: One element for each entry of the old topology, any dtype, ``[nnz]``.
        source: Where each new entry was stored before, or -1; see :class:`TopologyUpdate`.
        fill: What new entries get.
        out: Where to write it, of the dtype of ``tensor``; where the number of entries stays, it
            may be ``tensor`` itself.

    Returns:
        One element for each entry of the new topology, ``[new_nnz]``.

    Example:
        >>> carry(torch.tensor([1.0, 2.0]), torch.tensor([1, -1, 0]), fill=9)
        tensor([2., 9., 1.])
    """
    # -1 is the last element
    return torch.take(torch.cat([tensor, tensor.new_full((1,), fill)]), source, out=out)


def smallest_magnitudes(values: Tensor, k: int) -> Tensor:
    """Find the ``k`` entries of smallest magnitude; of equal ones, the last.

    So of equal entries the first are kept, as everywhere in this package. NaN counts as infinite.

    Args:
        values: float32, float64, float16 or bfloat16, ``[nnz]``.
        k: How many, from 0 to ``nnz``.

    Returns:
        Their indices, rising; int64, ``[k]``.

    Raises:
        TypeError: If ``values`` is no tensor or of another dtype, or ``k`` no int.
        ValueError: If ``values`` is not one-dimensional or ``k`` is out of range.

    Example:
        >>> smallest_magnitudes(torch.tensor([0.5, -3.0, -0.5, 0.1]), 2)
        tensor([2, 3])
    """
    _checks.check_tensor("values", values)
    _checks.check_values("values", values)
    if values.dim() != 1:
        raise ValueError(f"values: expected one dimension, got shape {tuple(values.shape)}")
    _checks.check_integer("k", k, 0, values.shape[0])
    magnitude = values.detach().abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)
    return _OPERATORS.bottomk_positions.default(magnitude.contiguous(), k)


def _check_rising(name: str, positions: Tensor, col_indices: Tensor, end: int) -> None:
    _checks.check_tensor(name, positions)
    if positions.dtype != torch.int64:
        raise TypeError(f"{name}: expected int64, got {positions.dtype}")
    if positions.dim() != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {tuple(positions.shape)}")
    if positions.device != col_indices.device:
        raise ValueError(
            f"{name} is on {positions.device} but col_indices is on {col_indices.device}"
        )
    if positions.numel() == 0:
        return
    if int(positions[0]) < 0 or int(positions[-1]) >= end:
        raise ValueError(
            f"{name}: expected values in [0, {end}), "
            f"got {int(positions[0])} to {int(positions[-1])}"
        )
    if not bool((positions[1:] > positions[:-1]).all()):
        raise ValueError(f"{name}: expected values that rise strictly")


@torch.library.register_fake("fullspectrum::topology_update")
def _fake(
    crow_indices: Tensor, col_indices: Tensor, drop: Tensor, grow: Tensor, cols: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nnz = col_indices.shape[0] - drop.shape[0] + grow.shape[0]
    return (
        torch.empty_like(crow_indices),
        col_indices.new_empty((nnz,)),
        col_indices.new_empty((nnz,), dtype=torch.int64),
        col_indices.new_empty((2,), dtype=torch.int64),
    )


@torch.library.register_fake("fullspectrum::bottomk_positions")
def _fake_positions(scores: Tensor, count: int) -> Tensor:
    return scores.new_empty((count,), dtype=torch.int64)
