"""DSR: dynamic sparse reparameterization."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fullspectrum_ext.dynamic.apportion import apportion
from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.dynamic.method import Change, Method, Turn, register_method


@register_method("dsr")
@dataclass(kw_only=True)
class DSR(Method):
    """Drops weights below one threshold for all layers, and grows them where layers keep most.

    The threshold doubles when fewer than 0.9 times, and halves when more than 1.1 times as many as
    wanted were dropped. As many are grown, in layers in proportion to what they have left, at
    random places, none of them just emptied. A layer always keeps one weight.

    The authors say how many to drop as a number for each network; here it is ``fraction`` of all.

    Args:
        threshold: What a weight must have at first.
        every: Steps from one update to the next.
        fraction: Of all weights kept, wanted to be dropped.
        anneal: How it changes; the authors keep it.
        floor: What it falls to.
        until: Share of the training in which the topology changes.

    References:
        Mostafa, Wang: Parameter efficient training of deep convolutional neural networks by dynamic
        sparse reparameterization, ICML 2019.

    Example:
        >>> DSR(every=10).threshold
        0.001
    """

    threshold: float = 1e-3
    fraction: float = 0.1
    anneal: str = "constant"
    until: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold > 0:
            raise ValueError(f"threshold: expected a positive number, got {self.threshold}")

    def update(self, layers: Sequence[DynamicLayer], turn: Turn) -> list[Change]:
        """Drop by the threshold, then grow where most is left."""
        drops = [self._below(layer) for layer in layers]
        room = [layer.numel - layer.nnz for layer in layers]
        drops = _at_most(drops, sum(room))
        dropped = sum(drop.numel() for drop in drops)
        left = [layer.nnz - drop.numel() for layer, drop in zip(layers, drops, strict=True)]
        wanted = turn.fraction * sum(layer.nnz for layer in layers)
        if dropped < 0.9 * wanted:
            self.threshold *= 2
        elif dropped > 1.1 * wanted:
            self.threshold /= 2
        counts = apportion(dropped, left, room)
        return [
            Change(drop, layer.random_places(drop, count, turn.generator, again=False))
            for layer, drop, count in zip(layers, drops, counts, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the threshold."""
        return {"threshold": self.threshold}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with this threshold."""
        self.threshold = float(state["threshold"])

    def _below(self, layer: DynamicLayer) -> Tensor:
        magnitudes = layer.values.abs()
        count = int((magnitudes < self.threshold).count_nonzero())
        return layer.smallest(magnitudes, min(count, max(layer.nnz - 1, 0)))


def _at_most(drops: list[Tensor], room: int) -> list[Tensor]:
    """Drop no more than can be grown: from the last layers on, fewer."""
    found = []
    for drop in drops:
        found.append(drop[: max(room, 0)])
        room -= drop.numel()
    return found
