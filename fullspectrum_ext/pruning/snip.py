"""SNIP: single-shot network pruning by connection sensitivity."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fullspectrum_ext.pruning.base import ScoringContext, register_pruner


@register_pruner("snip")
@register_pruner("taylor1")
def snip(context: ScoringContext) -> dict[str, Tensor]:
    r"""Score a weight by :math:`|w\,\partial L/\partial w|`.

    The score is the first-order change of the loss when the weight is set to zero. The gradient is
    summed over the batches before the absolute value is taken, and computed in training mode. The
    paper divides by the sum of all scores, which changes no ranking and is left out. ``"taylor1"``,
    the first-order Taylor criterion of the pruning literature, is the same number.

    Args:
        context: What to score, with data.

    Returns:
        Name to scores, float32 for weights in half precision.

    References:
        Lee, Ajanthan, Torr: SNIP: Single-shot network pruning based on connection sensitivity,
        ICLR 2019, https://arxiv.org/abs/1810.02340, equation 5.
    """
    return sensitivity(context.weights, context.gradient())


def sensitivity(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the absolute product of weight and gradient.

    Args:
        weights: Name to weight.
        gradients: Name to the derivative of the loss.

    Returns:
        Name to product; float32 for half precision, in which most would be rounded to zero.
    """
    scores = {}
    for name, weight in weights.items():
        precise = torch.promote_types(weight.dtype, torch.float32)
        scores[name] = (weight.to(precise) * gradients[name].to(precise)).abs()
    return scores
