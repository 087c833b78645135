"""How a method prunes: before training, or in stages with training in between.

To add a method that acts while the network is trained: a class with what :class:`Procedure` asks
for, and a line in :data:`PROCEDURES`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor, nn

from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning import (
    DissipatingGradients,
    DissipatingKStarts,
    GradualPruning,
    KStarts,
    ProbMask,
    prune,
    ticket_densities,
)
from fullspectrum_ext.pruning.gradual import keep_largest
from fullspectrum_ext.pruning.probmask import Estimator

if TYPE_CHECKING:  # both import this file, to know the names of the methods
    from fullspectrum_ext.experiments.config import TrainConfig
    from fullspectrum_ext.experiments.training import Run

_GRADUAL_ROUNDS = 100  # prunings of gmp, where there are as many steps


@dataclass(frozen=True)
class Stage:
    """A part of a run with one set of masks, which only a hook changes within it.

    Attributes:
        title: What the progress bar calls it.
        epochs: Passes over the training data; may be 0.
        start: What the stage begins with. ``"fresh"``: the weights as they are, a new optimizer,
            and a learning rate that falls on a schedule of its own, over this stage and those that
            continue it. ``"continue"``: all as it is. ``"rewind"``: weights, optimizer and learning
            rate as they were at the end of the latest stage that is kept.
        keeps: Later stages rewind to the end of this one.
        is_anchor: The coordinate before training under the run's masks is that of the weights at
            the end of this stage, in place of the initial ones.
    """

    title: str
    epochs: int
    start: Literal["fresh", "continue", "rewind"] = "fresh"
    keeps: bool = False
    is_anchor: bool = False


@dataclass(frozen=True)
class StageStart:
    """What a procedure makes the masks of a stage from.

    Attributes:
        model: Dense. Its weights are those at the end of the stage before (the initial ones in the
            first stage), zero where they were pruned.
        masks: As the stage before left them; None in the first stage.
        data: Batches for methods that look at data.
        note: Say how far it is, in a few words.
        search: File for a long search, to go on from after a kill; the driver removes it when the
            run's checkpoint has the masks.
    """

    model: nn.Module
    masks: MaskSet | None
    data: Iterable[tuple[Tensor, Tensor]]
    note: Callable[[str], None]
    search: Path


class Hook(Protocol):
    """What acts on a run from within, after every step of its optimizer.

    It is made anew where a stage begins or a run is resumed, before the states are loaded. It may
    change the layers of ``run.model``, if the parameters stay the same objects and
    :func:`fullspectrum_ext.densify` gives the plain layers back; and it may replace
    ``run.backward``, where one pass forward and backward is not what it needs. Where it changes the
    topology, it tells a logger of its own in ``run.topology``.
    """

    @property
    def masks(self) -> MaskSet:
        """Which weights there are now."""
        ...

    def step(self) -> object:
        """Act; called after each step of the optimizer."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that the hook's further doings depend on, beside model and optimizer."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        ...


class Procedure(Protocol):
    """What the driver asks of a method."""

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages of a run, one after the other; the last one has no hook."""
        ...

    def masks(self, stage: int, start: StageStart) -> MaskSet:
        """Make the masks that a stage is trained with; all weights, where it is trained dense."""
        ...

    def hook(self, stage: int, run: Run) -> Hook | None:
        """Make what acts in a stage, if anything does."""
        ...


def all_weights(model: nn.Module) -> MaskSet:
    """Return masks that keep every weight."""
    return prune(model, "magnitude", sparsity=0.0)


def schedule_epochs(stages: Sequence[Stage], stage: int) -> int:
    """Return the epochs that the learning rate takes to fall, in the stage that begins with it."""
    epochs = stages[stage].epochs
    for later in stages[stage + 1 :]:
        if later.start != "continue":
            break
        epochs += later.epochs
    return epochs


class _OneShot:
    """Trains dense, prunes once by magnitude, and trains what is left as long again."""

    def __init__(self, config: TrainConfig, _seed: int) -> None:
        self.sparsity = config.sparsity
        self.stages = (Stage("dense", config.epochs), Stage("pruned", config.epochs))

    def masks(self, stage: int, start: StageStart) -> MaskSet:
        if stage == 0:
            return all_weights(start.model)
        return prune(start.model, "magnitude", sparsity=self.sparsity)

    def hook(self, _stage: int, _run: Run) -> Hook | None:
        return None


class _HookFirst:
    """Begins with all weights; the hook of the first stage says which of them the last one has."""

    def masks(self, _stage: int, start: StageStart) -> MaskSet:
        return all_weights(start.model) if start.masks is None else start.masks


class _Gradual(_HookFirst):
    """Prunes by magnitude from the first step on, to the end of three quarters of the epochs."""

    def __init__(self, config: TrainConfig, _seed: int) -> None:
        self.sparsity = config.sparsity
        pruning = math.ceil(0.75 * config.epochs)
        self.stages = (
            Stage("gradual pruning", pruning),
            Stage("pruned", config.epochs - pruning, "continue"),
        )

    def hook(self, stage: int, run: Run) -> Hook | None:
        if stage == 1:
            return None
        steps = self.stages[0].epochs * len(run.batches)
        return GradualPruning(
            run.model,
            run.optimizer,
            sparsity=self.sparsity,
            end=steps,
            every=max(steps // _GRADUAL_ROUNDS, 1),
        )


class _LotteryTickets:
    """Prunes a fifth of what is left after each training, and rewinds."""

    def __init__(self, config: TrainConfig, _seed: int, *, rewind_weights: bool) -> None:
        self.densities = ticket_densities(config.sparsity)
        rounds = len(self.densities)
        if not rewind_weights:
            stages = [Stage("dense", config.epochs)]
            stages += [Stage(f"round {i + 1} of {rounds}", config.epochs) for i in range(rounds)]
        else:
            left = config.epochs - config.rewind_epoch
            stages = [
                Stage("dense, to where it rewinds", config.rewind_epoch, keeps=True),
                Stage("dense", left, "continue"),
            ]
            stages += [Stage(f"round {i + 1} of {rounds}", left, "rewind") for i in range(rounds)]
        self.stages = tuple(stages)

    def masks(self, stage: int, start: StageStart) -> MaskSet:
        turn = stage - len(self.stages) + len(self.densities)
        if start.masks is None or turn < 0:
            return all_weights(start.model)
        weights = {name: start.model.get_parameter(name) for name in start.masks}
        return MaskSet(keep_largest(weights, start.masks, self.densities[turn], "global"))

    def hook(self, _stage: int, _run: Run) -> Hook | None:
        return None


class _LearnedMasks(_HookFirst):
    """Learns masks with ProbMask for four fifths of the epochs, and trains what they keep on.

    Without training the weights it learns masks to the end: nothing is left to train on then.
    """

    def __init__(
        self,
        config: TrainConfig,
        seed: int,
        *,
        estimator: Estimator = "relaxed",
        train_weights: bool = True,
    ) -> None:
        self.sparsity, self.seed = config.sparsity, seed
        self.estimator, self.train_weights = estimator, train_weights
        learning = math.ceil(0.8 * config.epochs) if train_weights else config.epochs
        self.stages = (
            Stage("learning masks", learning),
            Stage("fine-tuning", config.epochs - learning),
        )

    def hook(self, stage: int, run: Run) -> Hook | None:
        if stage == 1:
            return None
        probmask = ProbMask(
            run.model,
            sparsity=self.sparsity,
            steps=self.stages[0].epochs * len(run.batches),
            estimator=self.estimator,
            train_weights=self.train_weights,
            seed=self.seed,
        )

        def backward(forward: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            outputs = []

            def loss() -> Tensor:
                output, value = forward()
                outputs.append(output)
                return value

            mean_loss = probmask.backward(loss)
            return outputs[-1], mean_loss

        run.backward = backward
        return probmask


class _EarlyPruning(_HookFirst):
    """Prunes in the first epochs by what happens in them, and trains on."""

    def __init__(
        self, config: TrainConfig, seed: int, *, method: Callable[..., Hook], parts: int = 1
    ) -> None:
        self.method, self.sparsity, self.seed = method, config.sparsity, seed
        first = min(parts * config.early_epochs, config.epochs)
        self.stages = (
            Stage("first epochs", first),
            Stage("pruned", config.epochs - first, "continue"),
        )

    def hook(self, stage: int, run: Run) -> Hook | None:
        if stage == 1:
            return None
        steps = self.stages[0].epochs * len(run.batches)
        return self.method(run.model, self.seed, sparsity=self.sparsity, steps=steps)


def _dissipating(model: nn.Module, _seed: int, **options: Any) -> Hook:
    return DissipatingGradients(model, scope="erk", **options)


def _kstarts(model: nn.Module, seed: int, **options: Any) -> Hook:
    return KStarts(model, seed=seed, scope="erk", **options)


def _dissipating_kstarts(model: nn.Module, seed: int, **options: Any) -> Hook:
    return DissipatingKStarts(model, seed=seed, scope="erk", **options)


PROCEDURES: Mapping[str, Callable[[TrainConfig, int], Procedure]] = {
    "omp": _OneShot,
    "gmp": _Gradual,
    "imp": functools.partial(_LotteryTickets, rewind_weights=True),
    "imp:lr": functools.partial(_LotteryTickets, rewind_weights=False),
    "probmask": _LearnedMasks,
    "probmask:vr_pge": functools.partial(_LearnedMasks, estimator="vr_pge"),
    "probmask:supermask": functools.partial(_LearnedMasks, train_weights=False),
    "kstarts": functools.partial(_EarlyPruning, method=_kstarts),
    "dissipating": functools.partial(_EarlyPruning, method=_dissipating),
    "dissipating:kstarts": functools.partial(_EarlyPruning, method=_dissipating_kstarts, parts=2),
}
"""Name of each method that prunes in the course of training: made of the settings and a seed."""
