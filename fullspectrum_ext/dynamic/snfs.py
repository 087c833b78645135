"""SNFS: sparse networks from scratch, or sparse momentum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fullspectrum_ext.dynamic.apportion import apportion
from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.dynamic.method import Method, Turn, register_method


@register_method("snfs")
@dataclass(kw_only=True)
class SNFS(Method):
    r"""Drops a layer's smallest weights, and grows where the momentum of the gradient is largest.

    Layers grow in proportion to the mean magnitude of the momentum of the weights that they keep;
    the number of weights in all layers together stays. A layer that is full passes the rest on.

    The momentum :math:`M \leftarrow \mu M + G` is that of the dense gradient: **a dense matrix for
    each layer is held and the dense gradient computed at every step**, as the method asks; all
    others here go without. A weight that is dropped and grown at once stays as it is.

    Args:
        momentum: :math:`\mu`.
        every: Steps from one update to the next; the authors' is an epoch.
        fraction: Of a layer's weights, dropped at first.
        anneal: How it changes.
        floor: What it falls to.
        until: Share of the training in which the topology changes.

    References:
        Dettmers, Zettlemoyer: Sparse Networks from Scratch: Faster Training without Losing
        Performance, 2019, https://arxiv.org/abs/1907.04840.

    Example:
        >>> SNFS(every=10).fraction_at(50, steps=100)
        0.2525
    """

    momentum: float = 0.9
    fraction: float = 0.5
    floor: float = 0.005
    until: float = 1.0

    observes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {self.momentum}")
        self._momenta: dict[str, Tensor] = {}

    def observe(self, layers: Sequence[DynamicLayer]) -> None:
        """Take the gradients of a step into the momenta."""
        for layer in layers:
            assert layer.tap is not None
            if layer.tap.is_empty:
                continue
            gradient = layer.tap.dense().to(layer.values.dtype)
            if layer.name in self._momenta:
                self._momenta[layer.name].mul_(self.momentum).add_(gradient)
            else:
                self._momenta[layer.name] = gradient.clone()

    def budgets(self, layers: Sequence[DynamicLayer], drops: Sequence[Tensor]) -> list[int]:
        """Return how many each layer grows: a share that follows its momentum."""
        means, room = [], []
        for layer, drop in zip(layers, drops, strict=True):
            kept = self._momentum(layer)[layer.staying(drop)]
            means.append(float(kept.abs().mean()) if kept.numel() else 0.0)
            room.append(layer.numel - kept.numel())
        return apportion(sum(drop.numel() for drop in drops), means, room)

    def grow(self, layer: DynamicLayer, drop: Tensor, count: int, turn: Turn) -> Tensor:
        """Return the weights of the largest momentum."""
        scores = self._momentum(layer).abs()
        scores[layer.staying(drop)] = -1
        return scores.argsort(descending=True, stable=True)[:count].sort().values

    def state_dict(self) -> dict[str, Any]:
        """Return the momenta."""
        return {"momenta": {name: momentum.clone() for name, momentum in self._momenta.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with these momenta."""
        self._momenta = {name: momentum.clone() for name, momentum in state["momenta"].items()}

    def _momentum(self, layer: DynamicLayer) -> Tensor:
        """Return the momentum of all weights, ``[rows * columns]``."""
        if layer.name not in self._momenta:
            return layer.values.new_zeros(layer.numel)
        return self._momenta[layer.name].to(layer.values.device).view(-1)
