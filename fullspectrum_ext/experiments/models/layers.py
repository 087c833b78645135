"""What several families of models are put together from."""

from collections import OrderedDict
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


@runtime_checkable
class Initialised(Protocol):
    """A module that does not begin with He's weights and biases of zero."""

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights of the module and of those in it."""


def named(**layers: nn.Module) -> nn.Sequential:
    """Layers one after the other, by names that read well in a table."""
    return nn.Sequential(OrderedDict(layers))


def classifier(channels: int, classes: int) -> dict[str, nn.Module]:
    """Mean over the pixels, and one linear layer."""
    return {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(channels, classes),
    }


class MaxPool(nn.MaxPool2d):
    """Maxima of 2 x 2 pixels, with a gradient that repeats bit for bit on CUDA too."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve height and width, rounding down."""
        if not x.is_cuda:
            return super().forward(x)
        height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        windows = x[:, :, :height, :width].unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        return windows.amax((3, 5))
