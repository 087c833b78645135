"""SNIP: single-shot network pruning by connection sensitivity."""

import torch
from torch import Tensor

from fullspectrum_ext.pruning.base import ScoringContext, register_pruner


@register_pruner("snip")
def snip(context: ScoringContext) -> dict[str, Tensor]:
    r"""Score a weight by :math:`|w\,\partial L/\partial w|`.

    The score is the first-order change of the loss when the weight is set to zero. The gradient is
    summed over the batches before the absolute value is taken, and computed in training mode. The
    paper divides by the sum of all scores, which changes no ranking and is left out.

    Args:
        context: What to score, with data.

    Returns:
        Name to scores, float32 for weights in half precision.

    References:
        Lee, Ajanthan, Torr: SNIP: Single-shot network pruning based on connection sensitivity,
        ICLR 2019, https://arxiv.org/abs/1810.02340, equation 5.
    """
    gradients = context.gradient()
    scores = {}
    for name, weight in context.weights.items():
        # In half precision most of these products would be rounded to zero.
        precise = torch.promote_types(weight.dtype, torch.float32)
        scores[name] = (weight.to(precise) * gradients[name].to(precise)).abs()
    return scores
