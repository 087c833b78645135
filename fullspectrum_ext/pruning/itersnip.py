"""Iterative SNIP: connection sensitivity taken anew on what is left."""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from fullspectrum_ext import _checks
from fullspectrum_ext.pruning.base import ScoringContext, register_pruner
from fullspectrum_ext.pruning.rounds import Masks, check_rounds, removed_for_good
from fullspectrum_ext.pruning.selection import Scores, check_scores
from fullspectrum_ext.pruning.snip import sensitivity


@register_pruner("itersnip")
def itersnip(
    context: ScoringContext, *, rounds: int = 10, batches_per_round: int = 1
) -> dict[str, Tensor]:
    r"""Score a weight by :math:`|w\,\partial L/\partial w|` in a network that is pruned meanwhile.

    Round :math:`k` of :math:`n` prunes to density :math:`d^{k/n}` by the sensitivities in the
    network that the round before left, on freshly shuffled batches. A weight that is gone does not
    return. One round is SNIP on a random batch.

    Args:
        context: What to score, with data.
        rounds: Number of pruning rounds.
        batches_per_round: Batches that a round draws from the data.

    Returns:
        Name to scores: minus the place of each weight in the order of removal, the last one first.

    Raises:
        TypeError: If ``batches_per_round`` is no int.
        ValueError: If an option is below 1, or there is no data.

    References:
        de Jorge, Sanyal, Behl, Torr, Rogez, Dokania: Progressive Skeletonization: Trimming more fat
        from a network at initialization, ICLR 2021, https://arxiv.org/abs/2006.09081, section 4.
    """
    score = masked_sensitivity("itersnip", context, batches_per_round)
    check_rounds(rounds)
    return removed_for_good(context, rounds, score)


def masked_sensitivity(
    method: str, context: ScoringContext, batches_per_round: int
) -> Callable[[Masks], Scores]:
    r"""Return a function that scores all weights by their sensitivity in a masked network.

    Args:
        method: Whose scores these are, for the message.
        context: What to score, with data.
        batches_per_round: Batches that each call draws.

    Returns:
        Masks :math:`m` to the scores :math:`|w\,\partial L/\partial w|_{w \odot m}|`, where the
        factor :math:`w` is the weight itself also where the mask removes it.
    """
    _checks.check_integer("batches_per_round", batches_per_round, 1)

    def score(masks: Masks) -> Scores:
        masked = {name: weight * masks[name] for name, weight in context.weights.items()}
        pruned = dataclasses.replace(context.drawing(batches_per_round), weights=masked)
        scores = sensitivity(context.weights, pruned.gradient())
        return check_scores(method, scores, context.weights)

    return score
