"""Method names as the driver takes them, and the masks they stand for."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from fullspectrum_ext import pruning
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning.base import find_method

DENSE = "dense"
"""The name that stands for no pruning: all weights kept, trained by torch's own dense layers."""


def check_method(method: str) -> None:
    """Refuse a name that :func:`make_masks` does not know.

    Args:
        method: A name of :func:`fullspectrum_ext.methods`, ``pags:BASE``, or ``dense``.

    Raises:
        ValueError: If it is none of these.
    """
    if method == DENSE:
        return
    name, _, base = method.partition(":")
    if ":" in method and name != "pags":
        raise ValueError(f"method: only pags samples around a base (pags:snip), got {method!r}")
    for part in (name, base):
        if part or not base:
            find_method(part or name)
    if base == "pags":
        raise ValueError(f"method: pags cannot be its own base, got {method!r}")


def make_masks(
    method: str,
    model: nn.Module,
    *,
    sparsity: float | None = None,
    density: float | None = None,
    candidates: int,
    data: Iterable[tuple[Tensor, Tensor]] | None,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> MaskSet:
    """Prune a model by a method's name.

    Args:
        method: See :func:`check_method`.
        model: Dense; it is not changed.
        sparsity: Fraction of the weights to remove, which ``dense`` ignores. Give this or
            ``density``.
        density: Fraction of the weights to keep.
        candidates: Masks that pags draws.
        data: Batches for methods that look at data.
        seed: Of all that is random in it.
        progress: Called by ``pags`` with the number of candidates seen and of all of them.

    Returns:
        The masks.
    """
    if method == DENSE:
        return pruning.prune(model, "magnitude", sparsity=0.0)
    name, _, base = method.partition(":")
    options: dict[str, Any] = {}
    if name == "pags":
        options = {"base": base or "snip", "candidates": candidates}
        if progress is not None:
            options["progress"] = progress
    return pruning.prune(
        model, name, sparsity=sparsity, density=density, data=data, seed=seed, **options
    )
