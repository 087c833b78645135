"""The largest scores, by sorting all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def topk_masks(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Mark the ``count`` largest scores of all tensors; of equal ones the first, NaN last.

    Args:
        scores: Tensors of any shapes.
        count: How many to mark.

    Returns:
        Bool masks of the shapes of the scores.

    Example:
        >>> topk_masks([torch.tensor([3.0, 1.0]), torch.tensor([1.0])], 2)
        [tensor([True, True]), tensor([False])]
    """
    flat = torch.cat([tensor.flatten() for tensor in scores]).double()
    order = flat.sort(descending=True, stable=True).indices  # NaN first
    order = torch.cat([order[~flat[order].isnan()], flat.isnan().nonzero().flatten()])
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    mask[order[:count]] = True
    parts = mask.split([tensor.numel() for tensor in scores])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, scores, strict=True)]
