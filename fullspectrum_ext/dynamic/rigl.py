"""RigL: rigging the lottery."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.dynamic.method import Method, Turn, register_method


@register_method("rigl")
@dataclass(kw_only=True)
class RigL(Method):
    """Drops a layer's smallest weights and grows those of the largest dense gradient.

    An update takes the place of the optimizer's step: nothing else moves then. Growing looks at all
    weights that are not kept, those just dropped among them; one that is dropped and grown stays
    as it is, its optimizer state too. All as in the authors' code, but for the noise that it adds
    to magnitudes: of equal ones, the last are dropped here.

    Args:
        every: Steps from one update to the next.
        fraction: Of a layer's weights, dropped at first.
        anneal: How it changes.
        floor: What it falls to.
        until: Share of the training in which the topology changes.

    References:
        Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery, ICML 2020.

    Example:
        >>> round(RigL(fraction=0.3).fraction_at(375, steps=1000), 6)  # half of the way to 75 %
        0.15
    """

    needs_gradients: ClassVar[bool] = True
    skips_step: ClassVar[bool] = True

    def grow(self, layer: DynamicLayer, drop: Tensor, count: int, turn: Turn) -> Tensor:
        """Return the weights of the largest gradient."""
        return layer.steepest_places(drop, count)
