"""Methods that change the topology in the course of training, from the masks of another one on."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from fullspectrum_ext import dynamic
from fullspectrum_ext.dynamic.method import make_method
from fullspectrum_ext.experiments.procedures import Hook, Procedure, Stage, StageStart
from fullspectrum_ext.masks import MaskSet

if TYPE_CHECKING:  # both import this file, to know the names of the methods
    from fullspectrum_ext.experiments.config import TrainConfig
    from fullspectrum_ext.experiments.training import Run

START = "erk"
"""What a method begins with of which no other start is said."""

_GRADUAL = "gmp"  # which the driver has in a form of its own, from dense weights
_EPOCHS_BETWEEN = {"itop": 3, "itop:rigl": 8}  # updates, where it is not one


def dynamic_methods() -> list[str]:
    """Return the names of the methods of :func:`fullspectrum_ext.dynamic.methods` that it runs."""
    return [name for name in dynamic.methods() if name != _GRADUAL]


def check_updates(config: TrainConfig, method: str) -> None:
    """Raise ValueError unless a method can go by the settings of the updates.

    Args:
        config: Settings of the job.
        method: One of :func:`dynamic_methods`.

    Raises:
        ValueError: If it cannot.
    """
    try:
        make_method(method, _options(config, method))
    except ValueError as error:
        raise ValueError(f"update_fraction, update_until: {method} cannot: {error}") from error


def initial_sparsity(config: TrainConfig, method: str) -> float:
    """Return the sparsity that a method begins with: GraNet's is half of what it comes to."""
    return config.sparsity / 2 if method == "granet" else config.sparsity


class Evolving:
    """Begins as another procedure does; in its last stage the topology changes, and then no longer.

    Args:
        start: Makes the masks, at :func:`initial_sparsity`.
        method: One of :func:`dynamic_methods`.
        config: Settings of the job.
        seed: Of the run.
    """

    def __init__(self, start: Procedure, method: str, config: TrainConfig, seed: int) -> None:
        self.start, self.method, self.config, self.seed = start, method, config, seed
        *before, last = start.stages
        self.epochs = last.epochs
        changing = math.ceil(make_method(method, _options(config, method)).until * last.epochs)
        self.stages: tuple[Stage, ...] = (
            *before,
            dataclasses.replace(last, title="changing topology", epochs=changing),
            Stage("fixed topology", last.epochs - changing, "continue"),
        )

    def masks(self, stage: int, start: StageStart) -> MaskSet:
        """Make masks as the start does; those that the changes have come to stay."""
        if start.masks is not None and stage + 1 == len(self.stages):
            return start.masks
        return self.start.masks(stage, start)

    def hook(self, stage: int, run: Run) -> Hook | None:
        """Change the topology in the last stage but one."""
        if stage + 2 != len(self.stages) or self.config.sparsity == 0:
            return None
        batches = len(run.batches)
        epochs_before = sum(before.epochs for before in self.stages[:stage])
        run.topology = dynamic.TopologyLogger(steps=epochs_before * batches)
        steps = self.epochs * batches
        options = _options(self.config, self.method)
        if "every" not in options:  # in a short training, at least one
            options["every"] = max(
                min(_EPOCHS_BETWEEN.get(self.method, 1) * batches, steps // 2), 1
            )
        return dynamic.DynamicSparsity(
            run.model,
            run.optimizer,
            self.method,
            steps=steps,
            seed=self.seed,
            explored=True,
            on_update=run.topology,
            **options,
        )


def _options(config: TrainConfig, method: str) -> dict[str, Any]:
    """Return what the settings say of a method; the rest is as the method has it."""
    options: dict[str, Any] = {
        "every": config.update_every,
        "fraction": config.update_fraction,
        "anneal": config.update_anneal,
        "until": config.update_until,
    }
    said = {name: value for name, value in options.items() if value}
    if method == "granet" and config.sparsity:
        said["sparsity"] = config.sparsity
    return said
