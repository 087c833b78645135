"""The projection on probabilities with a bounded sum, by sorting all kinks."""

from collections.abc import Sequence

import torch
from torch import Tensor


def projection_threshold(scores: Sequence[Tensor], budget: float) -> float:
    """Find the least ``v >= 0`` with ``sum clip(z - v, 0, 1) <= budget``.

    Args:
        scores: Tensors of any shapes, finite.
        budget: The largest sum, at least 0.

    Returns:
        The threshold.

    Example:
        >>> projection_threshold([torch.tensor([1.5, 0.75, 0.25, -1.0])], 1.5)
        0.25
    """
    z = torch.cat([tensor.flatten() for tensor in scores]).double()
    if float(z.clamp(0, 1).sum()) <= budget:
        return 0.0
    # Downwards from the largest kink: a score begins to count at z, and counts fully at z - 1.
    kinks, order = torch.cat([z, z - 1]).sort(descending=True)
    slope = torch.where(order < len(z), 1, -1).cumsum(0)  # below the kink
    steps = torch.cat([kinks[:-1] - kinks[1:], kinks.new_zeros(1)])
    sums = torch.cat([kinks.new_zeros(1), (slope * steps).cumsum(0)[:-1]])  # at the kink
    last = int((sums <= budget).nonzero().max())
    return float(kinks[last] - (budget - sums[last]) / slope[last])


def project_scores(scores: Sequence[Tensor], budget: float) -> list[Tensor]:
    """Return ``clip(z - v, 0, 1)`` for the scores ``z`` of all tensors together.

    Args:
        scores: Tensors of any shapes, finite.
        budget: The largest sum, at least 0.

    Returns:
        The nearest probabilities whose sum is at most the budget.

    Example:
        >>> project_scores([torch.tensor([1.5, 0.75, 0.25, -1.0])], 1.5)
        [tensor([1.0000, 0.5000, 0.0000, 0.0000])]
    """
    threshold = projection_threshold(scores, budget)
    return [(z.double() - threshold).clamp(0, 1).to(z.dtype) for z in scores]
