"""Gradual magnitude pruning, of truly sparse layers too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fullspectrum_ext import _checks
from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.dynamic.method import Change, Method, Turn, register_method
from fullspectrum_ext.ops import smallest_magnitudes
from fullspectrum_ext.pruning.densities import layer_counts, total_count
from fullspectrum_ext.pruning.gradual import cubic_sparsity
from fullspectrum_ext.pruning.selection import SCOPES


@dataclass(kw_only=True)
class Shrinking(Method):
    """What methods share whose layers lose weights on the cubic schedule of gradual pruning.

    Args:
        sparsity: Of all layers of the method together, at the end; in (0, 1).
        scope: How the budget is spread over layers: ``"layer"``, ``"global"``, ``"er"``, ``"erk"``.
    """

    sparsity: float = 0.9
    scope: str = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity: expected a fraction in (0, 1), got {self.sparsity}")
        _checks.check_choice("scope", self.scope, SCOPES)
        self._initial = 0.0

    def bind(self, layers: Sequence[DynamicLayer]) -> None:
        """Remember the sparsity that training begins with."""
        kept = sum(layer.nnz for layer in layers)
        self._initial = 1 - kept / max(sum(layer.numel for layer in layers), 1)
        if self._initial > self.sparsity:
            raise ValueError(
                f"sparsity: expected at least that of the model's layers, {self._initial:.4g}, "
                f"got {self.sparsity}"
            )

    def surplus(self, layers: Sequence[DynamicLayer], progress: float, end: float) -> list[Tensor]:
        """Return the weights of each layer that are too many, the smallest.

        Args:
            layers: All layers of the method.
            progress: Share of the training that is over.
            end: Share of it after which the sparsity is reached.

        Returns:
            Rising indices into each layer's values.

        Raises:
            ValueError: If a layer would lose all of its weights.
        """
        density = 1 - cubic_sparsity(progress, 0, end, self._initial, self.sparsity)  # type: ignore[arg-type]
        have = [layer.nnz for layer in layers]
        if self.scope == "global":
            kept = min(total_count([layer.numel for layer in layers], density), sum(have))
            magnitudes = torch.cat([layer.values.abs() for layer in layers])
            drop = smallest_magnitudes(magnitudes, sum(have) - kept)
            drops = _split(drop, have)
        else:
            shapes = {layer.name: layer.weight_shape for layer in layers}
            asked = layer_counts(shapes, density, self.scope)
            drops = [
                layer.smallest(layer.values.abs(), max(count - asked[layer.name], 0))
                for layer, count in zip(layers, have, strict=True)
            ]
        for layer, count, drop in zip(layers, have, drops, strict=True):
            if count and drop.numel() == count:
                raise ValueError(
                    f"density {density:.3g} leaves no weight in {layer.name}; prune less, choose "
                    "another scope, or leave the layer out"
                )
        return drops

    def state_dict(self) -> dict[str, Any]:
        """Return the sparsity at the beginning."""
        return {"initial": self._initial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from this sparsity at the beginning."""
        self._initial = float(state["initial"])


@register_method("gmp")
@dataclass(kw_only=True)
class GradualMagnitude(Shrinking):
    """Prunes the smallest weights little by little, on a cubic schedule, and grows none.

    As :class:`fullspectrum_ext.GradualPruning`, for layers that are sparse already: time and memory
    fall with the weights. The end of the schedule takes it to the sparsity exactly.

    Args:
        sparsity: Of all layers of the method together, at the end; in (0, 1).
        scope: How the budget is spread over layers: ``"layer"``, ``"global"``, ``"er"``, ``"erk"``.
        every: Steps from one update to the next.
        until: Share of the training after which the sparsity is reached.

    References:
        Zhu, Gupta: To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878.

    Example:
        >>> GradualMagnitude(sparsity=0.95).until
        0.75
    """

    finishes: ClassVar[bool] = True

    def update(self, layers: Sequence[DynamicLayer], turn: Turn) -> list[Change]:
        """Drop what is too much."""
        drops = self.surplus(layers, min(turn.progress, self.until), self.until)
        return [Change(drop, drop.new_empty(0)) for drop in drops]


def _split(indices: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Split rising indices into what lies end to end."""
    found, begin = [], 0
    for length in lengths:
        inside = (indices >= begin) & (indices < begin + length)
        found.append(indices[inside] - begin)
        begin += length
    return found
