"""Method names as the driver takes them, and the masks they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fullspectrum_ext import pruning
from fullspectrum_ext.experiments.evolving import (
    START,
    Evolving,
    dynamic_methods,
    initial_sparsity,
)
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


WARM, DRIFT, INVERTED = "warm", "drift", "inverted"
ABLATIONS = (*pruning.ABLATIONS, INVERTED)
"""Those of :func:`fullspectrum_ext.audit`, and that of ``fullspectrum_ext.prune(invert=True)``."""


@dataclass(frozen=True)
class MethodName:
    """What a method's name says: ``[pags:]BASE[:drift][:warm][:ablation]`` or ``START+DYNAMIC``.

    Attributes:
        method: One of :func:`fullspectrum_ext.methods`, a key of
            :data:`fullspectrum_ext.experiments.procedures.PROCEDURES`, or ``dense``.
        base: What pags samples around; empty for all others.
        drift: Whether pags takes layers as they are, as its authors' code does.
        warm: Whether the network is trained dense first, and trained on from there once pruned.
        ablation: One of :data:`ABLATIONS`; empty for none.
        dynamic: What changes the topology from there on; empty for nothing.
    """

    method: str
    base: str = ""
    drift: bool = False
    warm: bool = False
    ablation: str = ""
    dynamic: str = ""

    @property
    def audit(self) -> str:
        """The ablation of what the method found, if it is one of :func:`fullspectrum_ext.audit`."""
        return "" if self.ablation == INVERTED else self.ablation

    @property
    def trains(self) -> bool:
        """Whether it prunes in the course of training, or after some."""
        return self.method in PROCEDURES or self.warm or bool(self.dynamic)


def parse_method(name: str) -> MethodName:
    """Take a method's name apart, and refuse one that ``fullspectrum train`` does not know.

    Args:
        name: A registered pruning method or ``pags:BASE``, with ``:drift`` after it where it is
            pags, then ``:warm``, then one of :data:`ABLATIONS`. Or a key of
            :data:`fullspectrum_ext.experiments.procedures.PROCEDURES`, of which ``imp`` may have an
            ablation after it, but not ``inverted``; nor may pags, which has no scores either. Or
            ``dense``. Or one of
            :func:`fullspectrum_ext.experiments.evolving.dynamic_methods`, with ``START+`` before it
            to say what it begins with: a name that prunes before training, perhaps with ``:drift``
            or ``:warm``. ``rigl`` alone is ``erk+rigl``.

    Returns:
        Its parts.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> parse_method("pags:snip:warm")
        MethodName(method='pags', base='snip', drift=False, warm=True, ablation='', dynamic='')
        >>> parse_method("snip+rigl").dynamic
        'rigl'
    """
    if name in dynamic_methods():
        name = f"{START}+{name}"
    start, plus, dynamic = name.partition("+")
    if not plus:
        return _parse_start(name)
    if dynamic not in dynamic_methods():
        raise ValueError(
            f"method: expected START+DYNAMIC with one of {', '.join(dynamic_methods())} after the "
            f"plus sign, got {name!r}"
        )
    if start in (DENSE, *PROCEDURES, *dynamic_methods()):
        raise ValueError(
            f"method: expected a method that prunes before training, for {dynamic} to go on from "
            f"its masks, got {name!r}"
        )
    found = _parse_start(start)
    if found.ablation:
        raise ValueError(
            f"method: expected no ablation of what {dynamic} goes on from, got {name!r}"
        )
    return dataclasses.replace(found, dynamic=dynamic)


def _parse_start(name: str) -> MethodName:
    rest, ablation = _split_last(name, ABLATIONS)
    rest, warm = _split_last(rest, (WARM,))
    rest, drift = _split_last(rest, (DRIFT,))
    if rest == DENSE or rest in PROCEDURES:
        if warm or (ablation and rest != "imp"):
            raise ValueError(
                f"method: expected a method that prunes before training, "
                f"{'' if warm else 'or imp, '}to be {warm or ablation}, got {name!r}"
            )
        method, base = rest, ""
    else:
        method, _, base = rest.partition(":")
        if ":" in rest and method != "pags":
            raise ValueError(f"method: only pags samples around a base (pags:snip), got {name!r}")
        if ":" in base:
            raise ValueError(
                f"method: expected [pags:]BASE[:drift][:warm][:ablation], got {name!r}"
            )
        for part in (method, base):
            if part or not base:
                find_method(part or method)
        if base == "pags":
            raise ValueError(f"method: pags cannot be its own base, got {name!r}")
        base = base or ("snip" if method == "pags" else "")
    if ablation == INVERTED and method in {"pags", "imp"}:
        raise ValueError(f"method: {method} has no scores to be inverted, got {name!r}")
    if drift and method != "pags":
        raise ValueError(f"method: only the layers of pags can drift, got {name!r}")
    return MethodName(method, base, bool(drift), bool(warm), ablation)


def _split_last(name: str, words: Sequence[str]) -> tuple[str, str]:
    """Split the last part off a name if it is one of some words; else it is empty."""
    rest, _, last = name.rpartition(":")
    return (rest, last) if rest and last in words else (name, "")


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
    checkpoint: Path | None = None,
) -> MaskSet:
    """Prune a model by a method's name, as it is, with no training.

    Args:
        method: See :func:`parse_method`; not one that prunes in the course of training. Whether it
            is warm, and the ablation if it is one of :func:`fullspectrum_ext.audit`, is left to the
            caller.
        model: Dense; it is not changed.
        sparsity: Fraction of the weights to remove, which ``dense`` ignores. Give this or
            ``density``.
        density: Fraction of the weights to keep.
        candidates: Masks that pags draws.
        data: Batches for methods that look at data.
        seed: Of all that is random in it.
        progress: Called by ``pags`` with the number of candidates seen and of all of them.
        checkpoint: File that ``pags`` keeps its search in, and goes on from.

    Returns:
        The masks.
    """
    name = parse_method(method)
    if name.method == DENSE:
        return all_weights(model)
    options: dict[str, Any] = {}
    if name.method == "pags":
        options = {"base": name.base, "candidates": candidates, "drift": name.drift}
        options |= {"progress": progress or False, "checkpoint": checkpoint}
    return pruning.prune(
        model,
        name.method,
        sparsity=sparsity,
        density=density,
        data=data,
        seed=seed,
        invert=name.ablation == INVERTED,
        **options,
    )


def make_procedure(method: str, config: TrainConfig, seed: int) -> Procedure:
    """Return how a method prunes.

    Args:
        method: See :func:`parse_method`; an ablation is not the procedure's business.
        config: Settings of the job.
        seed: Of the run.

    Returns:
        The procedure; for a method that needs no training, one stage.
    """
    name = parse_method(method)
    if name.method in PROCEDURES:
        return PROCEDURES[name.method](config, seed)
    prune = _PruneWarm if name.warm else _PruneFirst
    if not name.dynamic:
        return prune(method, config, seed)
    begin = dataclasses.replace(config, sparsity=initial_sparsity(config, name.dynamic))
    return Evolving(prune(method, begin, seed), name.dynamic, config, seed)


class _PruneFirst:
    """Prunes the initial network, and trains what is left."""

    def __init__(self, method: str, config: TrainConfig, seed: int) -> None:
        self.method, self.config, self.seed = method, config, seed
        self.stages: tuple[Stage, ...] = (Stage("", config.epochs),)

    def masks(self, _stage: int, start: StageStart) -> MaskSet:
        return make_masks(
            self.method,
            start.model,
            sparsity=self.config.sparsity,
            candidates=self.config.candidates,
            data=start.data,
            seed=self.seed,
            progress=lambda done, of: start.note(f"mask {done} of {of}"),
            checkpoint=start.search,
        )

    def hook(self, _stage: int, _run: Run) -> Hook | None:
        return None


class _PruneWarm(_PruneFirst):
    """Prunes the network after the first epochs, trained dense, and trains on from there."""

    def __init__(self, method: str, config: TrainConfig, seed: int) -> None:
        super().__init__(method, config, seed)
        left = config.epochs - config.warm_epochs
        self.stages = (
            Stage("dense", config.warm_epochs, is_anchor=True),
            Stage("pruned", left, "continue"),
        )

    def masks(self, stage: int, start: StageStart) -> MaskSet:
        return all_weights(start.model) if stage == 0 else super().masks(stage, start)
