"""Top-KAST: the largest weights compute, and more of them learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.dynamic.method import Change, Method, Turn, register_method
from fullspectrum_ext.ops import topk_masks


@register_method("topkast")
@dataclass(kw_only=True)
class TopKAST(Method):
    r"""Computes with the largest weights of a layer, A, and trains a larger set B of the largest.

    A has the layer's number of weights, B ``backward`` times as many. The network computes with A
    alone, and what lies in B besides gets its gradient there, straight through. Of a layer of
    density :math:`D`, the penalty for exploring is

    .. math:: \frac{\lambda}{2} \Big( \sum_{A} w^2 + \frac{1}{D} \sum_{B \setminus A} w^2 \Big),

    whose gradient is added before each step of the optimizer; it stands for weight decay, which the
    optimizer then need not have. Both sets are chosen anew at each update, and the first time when
    training begins. Weights outside B keep their value **in a dense matrix for each layer, in the
    memory of the host**; gradients and the optimizer's state are of B only. At the end B becomes A.

    The values of the weights that the model's masks leave out are gone, and are drawn again as
    ``torch.nn.Linear`` and ``Conv2d`` do, uniformly within :math:`\pm 1 / \sqrt{\text{fan in}}`.
    So the masks say how many weights a layer has, and no more: A begins as the largest.

    Between updates the model stores B: its parameters and ``MaskSet.from_model`` have all of it,
    ``DynamicSparsity.masks`` is A. ``fraction``, ``anneal`` and ``floor`` mean nothing here.

    Args:
        backward: Number of weights in B, over that in A; at least 1.
        penalty: :math:`\lambda`.
        every: Steps from one update to the next; the authors' is 1 or 100.
        until: Share of the training in which the topology changes.

    References:
        Jayakumar, Pascanu, Rae, Osindero, Elsen: Top-KAST: Top-K Always Sparse Training, NeurIPS
        2020.

    Example:
        >>> TopKAST(backward=4.0).every
        100
    """

    backward: float = 2.0
    penalty: float = 1e-4
    until: float = 1.0

    starts: ClassVar[bool] = True
    finishes: ClassVar[bool] = True
    adjusts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backward >= 1:
            raise ValueError(f"backward: expected a number of at least 1, got {self.backward}")
        if not self.penalty >= 0:
            raise ValueError(f"penalty: expected a number of at least 0, got {self.penalty}")
        self._counts: dict[str, int] = {}
        self._weights: dict[str, Tensor] = {}  # of the whole layer, on the host; in B out of date

    def bind(self, layers: Sequence[DynamicLayer]) -> None:
        """Remember how many weights compute."""
        self._counts = {layer.name: layer.nnz for layer in layers}

    def update(self, layers: Sequence[DynamicLayer], turn: Turn) -> list[Change]:
        """Choose B; at the end, A."""
        if turn.is_last:
            self._weights.clear()
            return [_without_inactive(layer) for layer in layers]
        return [self._largest(layer, turn) for layer in layers]

    def settle(self, layer: DynamicLayer, grow: Tensor, copies: Sequence[DynamicLayer]) -> None:
        """Give weights that came the value they had, and choose A."""
        active = None
        if layer.name in self._weights:  # not at the end
            came = self._weights[layer.name].view(-1)[grow.cpu()].to(layer.weight)
            for one in (layer, *copies):
                one.put(grow, came)
            inactive = layer.smallest(layer.values.abs(), layer.nnz - self._counts[layer.name])
            active = torch.ones(layer.nnz, dtype=torch.bool, device=layer.weight.device)
            active[inactive] = False
        for one in (layer, *copies):
            one.active = active

    def adjust(self, layers: Sequence[DynamicLayer]) -> None:
        """Add the gradient of the penalty."""
        for layer in layers:
            active = layer.active
            if active is None or layer.gradient is None:
                continue
            density = self._counts[layer.name] / layer.numel
            factor = torch.where(active, self.penalty, self.penalty / density)
            layer.add_to_gradient(layer.values * factor)

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of weights, and all values."""
        weights = {name: weight.clone() for name, weight in self._weights.items()}
        return {"counts": dict(self._counts), "weights": weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with these numbers and values."""
        self._counts = dict(state["counts"])
        self._weights = {name: weight.cpu().clone() for name, weight in state["weights"].items()}

    def _largest(self, layer: DynamicLayer, turn: Turn) -> Change:
        """Put the trained weights back among the others, and take the largest of all."""
        if layer.name not in self._weights:
            self._weights[layer.name] = _drawn(layer, turn.generator)
        weights, kept = self._weights[layer.name], layer.positions.cpu()
        weights.view(-1)[kept] = layer.values.cpu()
        count = min(int(self.backward * self._counts[layer.name]), layer.numel)
        chosen = topk_masks([weights.abs()], count)[0].view(-1)
        drop = chosen[kept].logical_not_().nonzero().view(-1)
        chosen[kept] = False
        grow = chosen.nonzero().view(-1)
        device = layer.weight.device
        return Change(drop.to(device), grow.to(device))


def _drawn(layer: DynamicLayer, generator: torch.Generator) -> Tensor:
    """Draw weights as torch initialises a layer, on the host."""
    weights = torch.empty(layer.shape, dtype=layer.weight.dtype)
    bound = layer.shape[1] ** -0.5
    return weights.uniform_(-bound, bound, generator=generator)


def _without_inactive(layer: DynamicLayer) -> Change:
    """Drop what is stored and not computed with."""
    active = layer.active
    nothing = layer.positions.new_empty(0)
    drop = nothing if active is None else active.logical_not().nonzero().view(-1)
    return Change(drop, nothing)
