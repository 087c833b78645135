"""The largest of many scores: as masks, or at once as topologies."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fullspectrum_ext import _checks

_OPERATORS = torch.ops.fullspectrum
_INT32_MAX = torch.iinfo(torch.int32).max


class Topology(NamedTuple):
    """Which entries of a matrix are there, in CSR form.

    Attributes:
        crow_indices: Start of each row, ``[rows + 1]``; int32 where rows, columns and entries fit,
            else int64.
        col_indices: Column of each entry, rising within each row, the same dtype, ``[nnz]``.
    """

    crow_indices: Tensor
    col_indices: Tensor


def topk_masks(scores: Sequence[Tensor], counts: Sequence[int] | int) -> list[Tensor]:
    """Mark the largest scores of several tensors, of each or of all together.

    Exactly as many as asked are marked. Of equal scores the first are, tensor by tensor and in
    row-major order; 0 and -0 are equal, and NaN is below minus infinity. The result is the same on
    every device and at any number of threads. On the CPU the scores are read twice, whatever the
    counts: a sample bounds the threshold, and only what lies between the bounds is compared.

    Args:
        scores: Tensors of any shapes; float32, float64, float16 or bfloat16, all of one dtype and
            device.
        counts: How many to mark in each tensor, or one number for all of them together.

    Returns:
        Bool masks of the shapes of the scores.

    Raises:
        TypeError: If an argument has a wrong type or the scores differ in dtype.
        ValueError: If devices differ, or a count is out of range.

    References:
        Floyd, Rivest: Expected Time Bounds for Selection, Communications of the ACM 18, 1975.

    Example:
        >>> scores = [torch.tensor([3.0, 1.0]), torch.tensor([[1.0], [2.0]])]
        >>> topk_masks(scores, 3)
        [tensor([True, True]), tensor([[False],
                [ True]])]
        >>> topk_masks(scores, [0, 1])
        [tensor([False, False]), tensor([[False],
                [ True]])]
    """
    tensors = _checked(scores)
    if isinstance(counts, int):
        _checks.check_integer("counts", counts, 0, sum(tensor.numel() for tensor in tensors))
        each = [counts]
    else:
        each = _checked_counts(tensors, counts)
    return _OPERATORS.topk_masks.default(tensors, each) if tensors else []


def topk_topologies(scores: Sequence[Tensor], counts: Sequence[int]) -> list[Topology]:
    """Find the topologies of the largest scores of several matrices, each on its own.

    As :func:`topk_masks`, without the masks.

    Args:
        scores: Matrices, ``[rows, cols]``; as for :func:`topk_masks`.
        counts: How many to take of each.

    Returns:
        A topology for each matrix.

    Raises:
        TypeError: If an argument has a wrong type or the scores differ in dtype.
        ValueError: If scores are no matrices, devices differ, or a count is out of range.

    Example:
        >>> topk_topologies([torch.tensor([[3.0, 1.0], [1.0, 2.0]])], [2])
        [Topology(crow_indices=tensor([0, 1, 2], dtype=torch.int32), col_indices=tensor([0, 1], dtype=torch.int32))]
    """  # noqa: E501
    tensors = _checked(scores)
    for tensor in tensors:
        if tensor.dim() != 2:
            raise ValueError(f"scores: expected matrices, got shape {tuple(tensor.shape)}")
    each = _checked_counts(tensors, counts)
    if not tensors:
        return []
    fields = zip(*_OPERATORS.topk_topologies.default(tensors, each), strict=True)
    return [Topology(*pair) for pair in fields]


def _checked(scores: Sequence[Tensor]) -> list[Tensor]:
    if isinstance(scores, Tensor):
        raise TypeError("scores: expected a list of tensors, got one tensor")
    tensors = list(scores)
    for tensor in tensors:
        _checks.check_tensor("scores", tensor)
        _checks.check_values("scores", tensor)
        _checks.check_same("scores", tensor, "scores", tensors[0])
    return [tensor.detach().contiguous() for tensor in tensors]


def _checked_counts(tensors: list[Tensor], counts: Sequence[int]) -> list[int]:
    each = list(counts)
    if len(each) != len(tensors):
        raise ValueError(f"counts: expected one a tensor, {len(tensors)}, got {len(each)}")
    for count, tensor in zip(each, tensors, strict=True):
        _checks.check_integer("counts", count, 0, tensor.numel())
    return each


@torch.library.register_fake("fullspectrum::topk_masks")
def _fake_masks(scores: list[Tensor], counts: list[int]) -> list[Tensor]:
    return [torch.empty_like(tensor, dtype=torch.bool) for tensor in scores]


@torch.library.register_fake("fullspectrum::topk_topologies")
def _fake_topologies(scores: list[Tensor], counts: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    crow_indices, col_indices = [], []
    for tensor, count in zip(scores, counts, strict=True):
        fits = max(*tensor.shape, count) <= _INT32_MAX
        dtype = torch.int32 if fits else torch.int64
        crow_indices.append(tensor.new_empty(tensor.shape[0] + 1, dtype=dtype))
        col_indices.append(tensor.new_empty(count, dtype=dtype))
    return crow_indices, col_indices
