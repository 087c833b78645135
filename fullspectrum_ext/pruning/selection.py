"""From scores to masks: exact counts, ties decided by position.

A budget is met exactly or not at all. Where scores are equal the earlier weight is kept, in the
order of the model's parameters and of the elements within each, so that the same scores give the
same masks on every device.
"""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from fullspectrum_ext.ops.topk_scores import topk_masks
from fullspectrum_ext.pruning.densities import DENSITY_RULES, layer_counts, total_count

Scores = Mapping[str, Tensor]
SCOPES = ("global", *DENSITY_RULES)


def keep_top(scores: Scores, count: int) -> dict[str, Tensor]:
    """Keep exactly ``count`` weights, those with the largest scores over all layers.

    Args:
        scores: Name to scores, any shape and floating-point dtype. ``-inf`` marks what to take
            last; NaN and ``inf`` are refused by :func:`check_scores`, not here.
        count: How many to keep, from 0 to the number of scores.

    Returns:
        Name to mask, bool, the shape and device of the scores.

    Example:
        >>> keep_top({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([1.0, 2.0])}, 3)
        {'a': tensor([True, True]), 'b': tensor([False,  True])}
    """
    devices = {score.device for score in scores.values()}
    common = devices.pop() if len(devices) == 1 else torch.device("cpu")
    dtype = functools.reduce(torch.promote_types, (score.dtype for score in scores.values()))
    kept = topk_masks([score.to(common, dtype) for score in scores.values()], count)
    return {
        name: mask.to(score.device)
        for (name, score), mask in zip(scores.items(), kept, strict=True)
    }


def keep_top_per_layer(scores: Scores, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Keep exactly ``counts[name]`` weights of each layer, those with the largest scores in it.

    Args:
        scores: Name to scores, as for :func:`keep_top`.
        counts: Name to how many to keep.

    Returns:
        Name to mask, bool, the shape and device of the scores.
    """
    return {name: topk_masks([score], [counts[name]])[0] for name, score in scores.items()}


def select(scores: Scores, density: float, scope: str) -> dict[str, Tensor]:
    """Keep ``round(density * N)`` of the ``N`` weights by score.

    Args:
        scores: Name to scores, as for :func:`keep_top`.
        density: Fraction to keep.
        scope: ``"global"``: the largest scores wherever they are. ``"layer"``, ``"er"``, ``"erk"``:
            the largest of each layer, with the counts of
            :func:`fullspectrum_ext.pruning.densities.layer_counts`.

    Returns:
        Name to mask, bool.
    """
    if scope == "global":
        return keep_top(scores, total_count([s.numel() for s in scores.values()], density))
    counts = layer_counts({name: s.shape for name, s in scores.items()}, density, scope)
    return keep_top_per_layer(scores, counts)


def check_scores(method: str, scores: object, weights: Mapping[str, Tensor]) -> Scores:
    """Return ``scores`` if there is a usable one for every weight.

    Args:
        method: The pruning method's name, for the message.
        scores: What the method returned.
        weights: Name to weight.

    Returns:
        The scores in the order of ``weights``.

    Raises:
        TypeError: If they are no mapping.
        ValueError: If a layer has none, one of a wrong shape, or NaN or infinite ones.
    """
    if not isinstance(scores, Mapping):
        raise TypeError(f"method {method!r}: expected scores by name, got {type(scores).__name__}")
    for name, weight in weights.items():
        if name not in scores:
            raise ValueError(f"method {method!r} gave no scores for {name}")
        score = scores[name]
        if score.shape != weight.shape:
            raise ValueError(
                f"method {method!r}: expected scores of shape {tuple(weight.shape)} for {name}, "
                f"got {tuple(score.shape)}"
            )
        if score.numel() and not score.max() < torch.inf:  # the largest of some with NaN is NaN
            raise ValueError(
                f"method {method!r}: the scores of {name} hold NaN or infinity; "
                "look at the data, the loss and the initial weights"
            )
    return {name: scores[name] for name in weights}
