"""What is told of an update, and which weights have ever been kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.masks import Degrees

_BITS_OF_BYTE = torch.tensor([bin(byte).count("1") for byte in range(256)])


@dataclass(frozen=True)
class LayerUpdate:
    """What an update did to a layer.

    Attributes:
        before: Weights kept before it.
        after: Weights kept after it.
        dropped: Those that went.
        grown: Those that came.
        numel: All weights, kept or not.
        explored: The share of all weights that have ever been kept, the in-time
            over-parametrisation rate of ITOP; None unless it is asked for.
    """

    before: int
    after: int
    dropped: int
    grown: int
    numel: int
    explored: float | None = None

    @property
    def overlap(self) -> float:
        """Weights kept before and after, over those kept before or after; 1 without any."""
        return (self.before - self.dropped) / max(self.before + self.grown, 1)

    @property
    def churn(self) -> float:
        """The share of the weights kept now that are new."""
        return self.grown / max(self.after, 1)


@dataclass(frozen=True)
class Update:
    """What an update did.

    Attributes:
        step: After which step of the optimizer it came.
        layers: What it did to each layer, by the name of its weight.
        exchanged_bytes: What this process sent to the others for it, beside the gradients of the
            kept weights; 0 with one process.
    """

    step: int
    layers: Mapping[str, LayerUpdate]
    exchanged_bytes: int = 0
    _seen: Mapping[str, DynamicLayer] = field(default_factory=dict, repr=False, compare=False)

    def degrees(self, name: str) -> Degrees:
        """Return how many weights each output and each input tap of a layer has, as it is now.

        Args:
            name: Of the layer's weight, one of :attr:`layers`.

        Returns:
            The in-degrees of the outputs and the out-degrees of the input taps.
        """
        layer = self._seen[name]
        crow_indices, col_indices = layer.topology
        outward = torch.bincount(col_indices, minlength=layer.shape[1])
        return Degrees(crow_indices.diff().long(), outward)

    @property
    def total(self) -> LayerUpdate:
        """What it did to all of these layers together."""
        layers = self.layers.values()
        numel = sum(layer.numel for layer in layers)
        explored = None
        if all(layer.explored is not None for layer in layers):
            seen = sum((layer.explored or 0.0) * layer.numel for layer in layers)
            explored = seen / max(numel, 1)
        return LayerUpdate(
            sum(layer.before for layer in layers),
            sum(layer.after for layer in layers),
            sum(layer.dropped for layer in layers),
            sum(layer.grown for layer in layers),
            numel,
            explored,
        )


class Explored:
    """Which weights of a layer have ever been kept: a bit for each.

    Args:
        numel: Number of weights, kept or not.
        device: Where to hold the bits.
    """

    def __init__(self, numel: int, device: torch.device) -> None:
        self.numel = numel
        self.bits = torch.zeros(-(-numel // 8), dtype=torch.uint8, device=device)

    def add(self, positions: Tensor) -> None:
        """Add weights.

        Args:
            positions: Flat positions, each at most once.
        """
        for bit in range(8):  # so that no byte comes twice
            where = positions[positions % 8 == bit] // 8
            self.bits[where] |= 1 << bit

    @property
    def rate(self) -> float:
        """The share of the weights that have been kept."""
        bytes_of_value = torch.bincount(self.bits.cpu(), minlength=256)
        return int(bytes_of_value @ _BITS_OF_BYTE) / max(self.numel, 1)
