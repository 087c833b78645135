"""Method names as the driver takes them, and the masks they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fullspectrum_ext import pruning
from fullspectrum_ext.experiments.procedures import (
    PROCEDURES,
    Hook,
    Procedure,
    Stage,
    StageStart,
    all_weights,
)
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning.base import find_method

if TYPE_CHECKING:  # both import this file, to know the names of the methods
    from fullspectrum_ext.experiments.config import TrainConfig
    from fullspectrum_ext.experiments.training import Run

DENSE = "dense"
"""The name that stands for no pruning: all weights kept, trained by torch's own dense layers."""


def check_method(method: str) -> None:
    """Refuse a name that ``fullspectrum train`` does not know.

    Args:
        method: A name of :func:`fullspectrum_ext.methods` or of
            :data:`fullspectrum_ext.experiments.procedures.PROCEDURES`, ``pags:BASE``, or ``dense``.
            A method that trains what it found from the start (all but ``dense``, ``omp``, ``gmp``
            and ``imp:lr``) may have one of :data:`fullspectrum_ext.pruning.ABLATIONS` after it:
            ``snip:shuffled``.

    Raises:
        ValueError: If it is none of these.
    """
    method, ablation = split_ablation(method)
    if ablation and not _can_be_ablated(method):
        raise ValueError(
            f"method: expected a method that prunes before training, or imp, to be {ablation}, got "
            f"{method!r}, which trains on with the weights that it pruned"
        )
    if method == DENSE or method in PROCEDURES:
        return
    name, _, base = method.partition(":")
    if ":" in method and name != "pags":
        raise ValueError(f"method: only pags samples around a base (pags:snip), got {method!r}")
    for part in (name, base):
        if part or not base:
            find_method(part or name)
    if base == "pags":
        raise ValueError(f"method: pags cannot be its own base, got {method!r}")


def split_ablation(method: str) -> tuple[str, str]:
    """Split ``pags:snip:shuffled`` into ``pags:snip`` and ``shuffled``; ``""`` for no ablation."""
    name, _, last = method.rpartition(":")
    return (name, last) if name and last in pruning.ABLATIONS else (method, "")


def _can_be_ablated(method: str) -> bool:
    return method == "imp" or (method != DENSE and method not in PROCEDURES)


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
    """Prune a model by a method's name, as it is, with no training.

    Args:
        method: See :func:`check_method`; not one that prunes in the course of training.
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
        return all_weights(model)
    name, _, base = method.partition(":")
    options: dict[str, Any] = {}
    if name == "pags":
        options = {"base": base or "snip", "candidates": candidates}
        if progress is not None:
            options["progress"] = progress
    return pruning.prune(
        model, name, sparsity=sparsity, density=density, data=data, seed=seed, **options
    )


def make_procedure(method: str, config: TrainConfig, seed: int) -> Procedure:
    """Return how a method prunes.

    Args:
        method: See :func:`check_method`; an ablation is not the procedure's business.
        config: Settings of the job.
        seed: Of the run.

    Returns:
        The procedure; for a method that needs no training, one stage.
    """
    if method in PROCEDURES:
        return PROCEDURES[method](config, seed)
    return _PruneFirst(method, config, seed)


class _PruneFirst:
    """Prunes the initial network, and trains what is left."""

    def __init__(self, method: str, config: TrainConfig, seed: int) -> None:
        self.method, self.config, self.seed = method, config, seed
        self.stages = (Stage("", config.epochs),)

    def masks(self, _stage: int, start: StageStart) -> MaskSet:
        return make_masks(
            self.method,
            start.model,
            sparsity=self.config.sparsity,
            candidates=self.config.candidates,
            data=start.data,
            seed=self.seed,
            progress=lambda done, of: start.note(f"mask {done} of {of}"),
        )

    def hook(self, _stage: int, _run: Run) -> Hook | None:
        return None
