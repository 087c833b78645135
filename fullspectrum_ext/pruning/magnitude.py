"""Magnitude pruning."""

from torch import Tensor

from fullspectrum_ext.pruning.base import ScoringContext, register_pruner


@register_pruner("magnitude", varies_by="nothing")
def magnitude(context: ScoringContext) -> dict[str, Tensor]:
    r"""Score a weight by :math:`|w|`.

    Args:
        context: What to score.

    Returns:
        Name to scores.

    References:
        Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks,
        NeurIPS 2015, https://arxiv.org/abs/1506.02626, section 3.
    """
    return {name: weight.abs() for name, weight in context.weights.items()}
