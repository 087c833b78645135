"""The updates that the ``Masking`` classes make, as methods of dynamic sparse training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fullspectrum_ext.dynamic import (
    SNFS,
    Change,
    DynamicLayer,
    GraNet,
    Method,
    Turn,
    apportion,
)
from fullspectrum_ext.dynamic.gradual import GradualMagnitude
from fullspectrum_ext.ops import smallest_magnitudes

NEVER = 2**53  # more steps than a training has: these loops do not say beforehand how many they are

REDISTRIBUTIONS = ("none", "momentum", "magnitude", "nonzero")


@dataclass(kw_only=True)
class Scheduled(Method):
    """Due after every so many steps from a first one on, without an end, and when it is asked for.

    Args:
        first: No update before this step.
        anneal: The fraction is set from outside, step by step.
        until: As of :class:`fullspectrum_ext.dynamic.Method`.
    """

    first: int = 0
    anneal: str = "constant"
    until: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.is_asked = False  # for an update that is no step of the optimizer
        self._asked = 0

    def is_due(self, step: int, steps: int) -> bool:
        """Say whether there is an update after a step."""
        step -= self._asked
        return self.is_asked or (step >= self.first and step % self.every == 0)

    def last_step(self, steps: int) -> int:
        """Return the last step: none, but that no gradient is observed where one only asks."""
        return 0 if self.is_asked else steps

    def update(self, layers: Sequence[DynamicLayer], turn: Turn) -> list[Change]:
        """Decide what goes and what comes."""
        if self.is_asked:
            self.is_asked = False
            self._asked += 1
        step = turn.step - self._asked
        turn = replace(turn, step=step, progress=self.progress_at(step))
        return super().update(layers, turn)

    def progress_at(self, step: int) -> float:
        """Return the share of a schedule that is over; there is none."""
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return how often it was asked, and what the method remembers."""
        return {**super().state_dict(), "asked": self._asked}

    def load_state_dict(self, state: Any) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        super().load_state_dict(state)
        self._asked = int(state["asked"])


@dataclass(kw_only=True)
class Exploration(Scheduled):
    """Drops by a death mode and grows as many at random.

    Args:
        death: ``"magnitude"``; ``"SET"``: half of them the smallest positive, half the largest
            negative weights; ``"Taylor_FO"``: the smallest ``(w g)^2``.
        redistribution: In proportion to what layers grow: ``"none"``, as many as they lose;
            ``"magnitude"``, the mean magnitude of their weights; ``"nonzero"``, the number of
            them; ``"momentum"``, of :class:`MomentumExploration` only.
    """

    death: str = "magnitude"
    redistribution: str = "none"

    def drop_score(self, layer: DynamicLayer) -> Tensor:
        """Return the magnitude, or the first-order estimate of what the loss feels."""
        if self.death != "Taylor_FO":
            return super().drop_score(layer)
        if layer.gradient is None:
            raise RuntimeError(f"Taylor_FO: {layer.name} has no gradient at this update")
        return (layer.values * layer.gradient).abs()

    def drop(self, layer: DynamicLayer, turn: Turn) -> Tensor:
        """Return which weights of a layer go."""
        if self.death != "SET":
            return super().drop(layer, turn)
        return nearest_zero(layer.values, int(turn.fraction * layer.nnz))

    def budgets(self, layers: Sequence[DynamicLayer], drops: Sequence[Tensor]) -> list[int]:
        """Return how many weights each layer grows."""
        if self.redistribution == "none":
            return Method.budgets(self, layers, drops)
        if self.redistribution == "momentum":
            return super().budgets(layers, drops)
        if self.redistribution == "magnitude":
            shares = [float(layer.values.abs().mean()) for layer in layers]
        else:
            shares = [float(layer.nnz) for layer in layers]
        room = [
            layer.numel - layer.nnz + drop.numel()
            for layer, drop in zip(layers, drops, strict=True)
        ]
        return apportion(sum(drop.numel() for drop in drops), shares, room)


@dataclass(kw_only=True)
class GradientExploration(Exploration):
    """Grows where the dense gradient is largest."""

    needs_gradients: ClassVar[bool] = True

    def grow(self, layer: DynamicLayer, drop: Tensor, count: int, turn: Turn) -> Tensor:
        """Return the weights of the largest gradient."""
        return layer.steepest_places(drop, count)


@dataclass(kw_only=True)
class MomentumExploration(Exploration, SNFS):
    """Looks at the momentum of the dense gradient: where to grow, or which layer, or both.

    Args:
        growth: ``"momentum"`` or ``"random"``.
    """

    growth: str = "momentum"

    def grow(self, layer: DynamicLayer, drop: Tensor, count: int, turn: Turn) -> Tensor:
        """Return the weights of the largest momentum, or random ones."""
        if self.growth == "random":
            return layer.random_places(drop, count, turn.generator)
        return super().grow(layer, drop, count, turn)


@dataclass(kw_only=True)
class Gradual(Scheduled):
    """The sparsity rises from one update to a later one.

    Args:
        begin: Number of the update at which it begins to rise.
        end: That at which it has risen.
    """

    begin: int
    end: int

    def progress_at(self, step: int) -> float:
        """Return the share of the way to the final sparsity."""
        done = (step // self.every - self.begin) / (self.end - self.begin)
        return min(max(done, 0.0), 1.0)


@dataclass(kw_only=True)
class GradualExploration(Gradual, GraNet):
    """GraNet on the schedule of its code, which counts in updates.

    Args:
        reached: As of :class:`fullspectrum_ext.dynamic.GraNet`, a share of the schedule here.
    """

    reached: float = 1.0


@dataclass(kw_only=True)
class GradualShrinking(Gradual, GradualMagnitude):
    """Gradual magnitude pruning on the same schedule."""


def nearest_zero(values: Tensor, count: int) -> Tensor:
    """Return the smallest positive and the largest negative values, as many of each as there are.

    Where one sign has fewer than half of ``count``, more of the other are taken. Zeros count as
    positive; of equal values the last are taken.

    Args:
        values: ``[nnz]``.
        count: How many, at most ``nnz``.

    Returns:
        Rising indices into the values.

    Example:
        >>> nearest_zero(torch.tensor([0.5, 0.1, -0.3, -0.9, -0.2]), 2)
        tensor([1, 4])
    """
    negative = (values < 0).nonzero().view(-1)
    positive = (values >= 0).nonzero().view(-1)
    of_negative = min(count // 2, negative.numel())
    of_positive = min(count - of_negative, positive.numel())
    chosen = [
        indices[smallest_magnitudes(values[indices], some)]
        for indices, some in ((negative, count - of_positive), (positive, of_positive))
    ]
    return torch.cat(chosen).sort().values
