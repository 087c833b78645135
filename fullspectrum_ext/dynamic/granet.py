"""GraNet: gradual pruning with zero-cost neuroregeneration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fullspectrum_ext.dynamic.gradual import Shrinking
from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.dynamic.method import Change, Turn, register_method


@register_method("granet")
@dataclass(kw_only=True)
class GraNet(Shrinking):
    """Prunes to a falling density, then drops some more and grows as many by gradient.

    Both come at each update: first the smallest of all layers go, down to the density of the cubic
    schedule, which moves weights between layers; then of each layer the smallest ``fraction`` goes,
    and those of the largest dense gradient come. What the pruning took may come back. It begins
    from a model of any lower sparsity, the authors' from 0 or 50 %.

    Args:
        sparsity: Of all layers of the method together, at the end; in (0, 1).
        scope: How the budget is spread over layers: the authors' is ``"global"``.
        reached: Share of the training after which the sparsity is reached; the authors' is 110 of
            160 epochs.
        every: Steps from one update to the next.
        fraction: Of a layer's weights, dropped and grown at first.
        anneal: How it changes.
        floor: What it falls to.
        until: Share of the training in which the topology changes.

    References:
        Liu et al.: Sparse Training via Boosting Pruning Plasticity with Neuroregeneration, NeurIPS
        2021.

    Example:
        >>> GraNet(sparsity=0.95).fraction_at(500, steps=1000)
        0.25
    """

    scope: str = "global"
    reached: float = 0.7
    every: int = 1000
    fraction: float = 0.5
    until: float = 1.0

    needs_gradients: ClassVar[bool] = True
    finishes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.reached <= self.until:
            raise ValueError(
                f"reached: expected a share in (0, until = {self.until}], got {self.reached}"
            )

    def update(self, layers: Sequence[DynamicLayer], turn: Turn) -> list[Change]:
        """Prune, then drop and grow."""
        changes = []
        surplus = self.surplus(layers, turn.progress, self.reached)
        for layer, pruned in zip(layers, surplus, strict=True):
            count = int(turn.fraction * (layer.nnz - pruned.numel()))
            drop = layer.smallest(layer.values.abs(), pruned.numel() + count)
            changes.append(Change(drop, layer.steepest_places(drop, count)))
        return changes
