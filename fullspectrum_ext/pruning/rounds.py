"""Pruning in rounds: scores are taken anew on what is left, at a density that falls to the goal.

Round ``k`` of ``n`` prunes to density ``d ** (k / n)``, so that each takes away the same fraction.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fullspectrum_ext.pruning.base import ScoringContext
from fullspectrum_ext.pruning.selection import Scores

Masks = dict[str, Tensor]


def check_rounds(rounds: object) -> None:
    """Raise ValueError unless ``rounds`` is a whole number above zero."""
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds: expected an integer >= 1, got {rounds!r}")


def removed_for_good(
    context: ScoringContext, rounds: int, score: Callable[[Masks], Scores]
) -> dict[str, Tensor]:
    """Prune in rounds, where a weight that is gone does not return.

    Args:
        context: What to prune, to which density and within which scope.
        rounds: Number of rounds.
        score: Masks of the weights that are left to scores; those of the others are not read.

    Returns:
        Name to scores: minus the place of each weight in the order of removal, the last one first.
        The weights that went early have an order too: a caller may keep more of one layer, and less
        of another, than the rounds did.
    """
    alive = all_weights(context)
    removed_in = {
        name: torch.full_like(mask, rounds, dtype=torch.int64) for name, mask in alive.items()
    }
    last_score: dict[str, Tensor] = {}
    for k in range(1, rounds + 1):
        scores = score(alive)
        for name, mask in alive.items():
            last_score[name] = torch.where(mask, scores[name], last_score.get(name, scores[name]))
        if k == rounds:
            break
        left = {name: scores[name].masked_fill(~mask, -torch.inf) for name, mask in alive.items()}
        kept = context.select(left, context.density ** (k / rounds))
        for name in alive:
            removed_in[name].masked_fill_(alive[name] & ~kept[name], k)
            alive[name] = alive[name] & kept[name]
    return _by_removal(removed_in, last_score)


def free_to_return(
    context: ScoringContext, rounds: int, score: Callable[[Masks], Scores]
) -> Scores:
    """Prune in rounds, each of which chooses among all weights.

    Args:
        context: What to prune, to which density and within which scope.
        rounds: Number of rounds.
        score: Masks that the round before chose to scores of all weights.

    Returns:
        The scores of the last round.
    """
    kept = all_weights(context)
    for k in range(1, rounds):
        kept = context.select(score(kept), context.density ** (k / rounds))
    return score(kept)


def all_weights(context: ScoringContext) -> Masks:
    """Return masks that keep every weight."""
    return {
        name: torch.ones_like(weight, dtype=torch.bool) for name, weight in context.weights.items()
    }


def _by_removal(removed_in: dict[str, Tensor], last_score: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn round of removal and score then into one number that sorts by both.

    Args:
        removed_in: Name to the round in which each weight went; the last one for those that stay.
        last_score: Name to its score in that round.

    Returns:
        Name to scores, 0 for the weight to keep first, -1 for the next one, and so on.
    """
    rounds = torch.cat([part.reshape(-1) for part in removed_in.values()])
    scores = torch.cat([part.reshape(-1) for part in last_score.values()])
    if not bool(scores.isfinite().all()):
        return last_score  # refused by name where scores are checked
    order = scores.argsort(descending=True, stable=True)
    order = order[rounds[order].argsort(descending=True, stable=True)]
    place = torch.empty(len(order), dtype=torch.float64, device=scores.device)
    place[order] = torch.arange(len(order), dtype=place.dtype, device=place.device)
    parts = place.neg().split([part.numel() for part in removed_in.values()])
    return {
        name: part.reshape(like.shape)
        for part, (name, like) in zip(parts, removed_in.items(), strict=True)
    }
