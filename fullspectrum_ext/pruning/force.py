"""FORCE: foresight connection sensitivity, where a weight that was pruned may return."""

from torch import Tensor

from fullspectrum_ext.pruning.base import ScoringContext, register_pruner
from fullspectrum_ext.pruning.itersnip import masked_sensitivity
from fullspectrum_ext.pruning.rounds import check_rounds, free_to_return


@register_pruner("force")
def force(
    context: ScoringContext, *, rounds: int = 10, batches_per_round: int = 1
) -> dict[str, Tensor]:
    r"""Score a weight by :math:`|w\,\partial L/\partial w|` with the derivative after pruning.

    Round :math:`k` of :math:`n` keeps the largest :math:`|w\,\partial L/\partial w|_{w \odot m}|`
    at density :math:`d^{k/n}`, where :math:`m` are the masks of the round before, on freshly
    shuffled batches. The factor :math:`w` is the weight itself also where the mask removes it, so
    that it may return: the gradient says what it would do in the network as it is pruned now. One
    round is SNIP on a random batch.

    Args:
        context: What to score, with data.
        rounds: Number of pruning rounds. The authors' code takes 10, their paper up to 300.
        batches_per_round: Batches that a round draws from the data.

    Returns:
        Name to scores, float32 for weights in half precision.

    Raises:
        TypeError: If ``batches_per_round`` is no int.
        ValueError: If an option is below 1, or there is no data.

    References:
        de Jorge, Sanyal, Behl, Torr, Rogez, Dokania: Progressive Skeletonization: Trimming more fat
        from a network at initialization, ICLR 2021, https://arxiv.org/abs/2006.09081, algorithm 1.
    """
    score = masked_sensitivity("force", context, batches_per_round)
    check_rounds(rounds)
    return dict(free_to_return(context, rounds, score))
