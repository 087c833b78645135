"""The arguments that every way of pruning takes, checked and in one form."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from fullspectrum_ext._layers import Patterns, prunable_weights, select_names
from fullspectrum_ext.masks import MaskSet


def resolve_density(sparsity: float | None, density: float | None) -> float:
    """Return the density that the one of the two that is given stands for.

    Args:
        sparsity: Fraction to remove, in [0, 1), or None.
        density: Fraction to keep, in (0, 1], or None.

    Returns:
        The fraction to keep.

    Raises:
        TypeError: If it is no number.
        ValueError: If both or neither are given, or the number is out of range.
    """
    if (sparsity is None) == (density is None):
        given = "neither" if sparsity is None else "both"
        raise ValueError(f"sparsity, density: expected exactly one of them, got {given}")
    name, value = ("density", density) if sparsity is None else ("sparsity", sparsity)
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    number = float(value)  # type: ignore[arg-type]
    if math.isnan(number) or not (0 <= number < 1 if name == "sparsity" else 0 < number <= 1):
        interval = "[0, 1)" if name == "sparsity" else "(0, 1]"
        raise ValueError(f"{name}: expected a fraction in {interval}, got {number}")
    return 1.0 - number if name == "sparsity" else number


def resolve_seed(seed: int | None) -> int:
    """Return the seed, or one that torch's random state decides, without advancing it.

    Args:
        seed: At least 0, or None.

    Returns:
        The seed.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is out of range.
    """
    if seed is None:
        with torch.random.fork_rng(devices=[]):
            return int(torch.randint(2**31, ()))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an integer, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected an integer in [0, 2**63), got {seed}")
    return seed


def chosen_weights(
    model: nn.Module, include: Patterns, exclude: Patterns
) -> dict[str, nn.Parameter]:
    """Return the weights of a model that are to be pruned.

    Args:
        model: A model with plain dense layers.
        include: Glob patterns of names, as for :func:`fullspectrum_ext.prune`.
        exclude: Likewise.

    Returns:
        Name to parameter, in the model's order.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If there is no weight to prune.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    weights = dict(prunable_weights(model))
    if not weights:
        raise ValueError("model: expected a Linear, Conv2d or recurrent layer to prune, found none")
    names = select_names(weights, include, exclude)
    if not names:
        raise ValueError("include, exclude: no layer is left to prune")
    return {name: weights[name] for name in names}


def refuse_collapse(masks: MaskSet, unscored: Sequence[str] = ()) -> None:
    """Raise ValueError, with their names, if there are layers without a single weight.

    Args:
        masks: The masks.
        unscored: Layers in which every weight has a score of zero.

    Raises:
        ValueError: If there are.
    """
    collapsed = [name for name, mask in masks.items() if not bool(mask.any())]
    if collapsed:
        without = [name for name in collapsed if name in unscored]
        cause = (
            f"; every score in {', '.join(without)} is zero, as beside a normalisation that begins "
            "with a factor of zero"
        )
        raise ValueError(
            f"density {masks.density:.3g} leaves no weight in {', '.join(collapsed)}"
            f"{cause if without else ''}; lower the "
            "sparsity, choose another scope, exclude the layer, or pass allow_collapse=True"
        )
