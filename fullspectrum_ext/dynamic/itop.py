"""ITOP: in-time over-parametrisation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.dynamic.method import Method, Turn, register_method


@register_method("itop")
@dataclass(kw_only=True)
class ITOP(Method):
    """SET with long times between updates, in which new weights can grow to matter.

    What counts, says the paper, is the share of all weights that have ever been kept:
    ``explored=True`` of :class:`fullspectrum_ext.DynamicSparsity` reports it.

    Args:
        every: Steps from one update to the next.
        fraction: Of a layer's weights, dropped at first.
        anneal: How it changes.
        floor: What it falls to.
        until: Share of the training in which the topology changes.

    References:
        Liu, Yin, Mocanu, Pechenizkiy: Do We Actually Need Dense Over-Parameterization? In-Time
        Over-Parameterization in Sparse Training, ICML 2021.

    Example:
        >>> ITOP().every
        1500
    """

    every: int = 1500
    fraction: float = 0.5
    floor: float = 0.005
    until: float = 1.0


@register_method("itop:rigl")
@dataclass(kw_only=True)
class GradientITOP(ITOP):
    """RigL in the manner of ITOP: longer times still, and no step is skipped.

    Example:
        >>> GradientITOP().every
        4000
    """

    every: int = 4000

    needs_gradients: ClassVar[bool] = True

    def grow(self, layer: DynamicLayer, drop: Tensor, count: int, turn: Turn) -> Tensor:
        """Return the weights of the largest gradient."""
        return layer.steepest_places(drop, count)
