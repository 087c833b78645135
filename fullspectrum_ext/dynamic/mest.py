"""MEST: memory-economic sparse training, with elastic mutation, and with soft memory bound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.dynamic.method import Change, Method, Turn, register_method


@register_method("mest")
@dataclass(kw_only=True)
class MEST(Method):
    r"""Elastic mutation: drops the smallest :math:`|w| + \lambda |g|`, grows as many at random.

    The fraction falls while training goes on. The authors give the sparsities to prune to in steps
    (from 90 to 92 %, then to 91 %, then no more); here the fraction of the kept weights falls from
    ``0.2`` in a line.

    Args:
        gradient_weight: :math:`\lambda`; the authors' code has 0. Else ``step()`` must come before
            the gradients are cleared.
        every: Steps from one update to the next; the authors' is 5 epochs.
        fraction: Of a layer's weights, dropped at first.
        anneal: How it changes.
        floor: What it falls to.
        until: Share of the training in which the topology changes.

    References:
        Yuan et al.: MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge,
        NeurIPS 2021.

    Example:
        >>> MEST(every=10).fraction_at(0, steps=100)
        0.2
    """

    gradient_weight: float = 0.0
    fraction: float = 0.2
    anneal: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gradient_weight >= 0:
            raise ValueError(
                f"gradient_weight: expected a number of at least 0, got {self.gradient_weight}"
            )

    def drop_score(self, layer: DynamicLayer) -> Tensor:
        """Return magnitude and gradient together."""
        scores = layer.values.abs()
        if self.gradient_weight == 0:
            return scores
        gradient = layer.gradient
        if gradient is None:
            raise RuntimeError(
                f"{layer.name} has no gradient: call step() after optimizer.step() and before the "
                "gradients are cleared"
            )
        return scores + self.gradient_weight * gradient.abs()


@register_method("mest:soft")
@dataclass(kw_only=True)
class SoftMEST(MEST):
    r"""Elastic mutation with a soft memory bound (EM&S): grows first, and drops at the next update.

    At an update each layer drops down to the number of weights it began with, then grows
    ``fraction`` of that number: between updates it holds that much more. The end of the schedule
    takes it down to its number exactly.

    Example:
        >>> SoftMEST(every=10).finishes
        True
    """

    finishes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._counts: dict[str, int] = {}

    def bind(self, layers: Sequence[DynamicLayer]) -> None:
        """Remember how many weights there are."""
        self._counts = {layer.name: layer.nnz for layer in layers}

    def update(self, layers: Sequence[DynamicLayer], turn: Turn) -> list[Change]:
        """Drop what is too much, then grow beyond."""
        changes = []
        for layer in layers:
            count = self._counts[layer.name]
            drop = layer.smallest(self.drop_score(layer), layer.nnz - count)
            more = 0 if turn.is_last else int(turn.fraction * count)
            more = min(more, layer.numel - count)
            changes.append(Change(drop, self.grow(layer, drop, more, turn)))
        return changes

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of weights."""
        return {"counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with these numbers."""
        self._counts = dict(state["counts"])
