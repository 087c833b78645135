"""What several families of models are put together from."""

import math
from collections import OrderedDict
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
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
    """Maxima of windows of pixels, with a gradient that repeats bit for bit on CUDA too.

    Args:
        size: Of a window's side.
        stride: Pixels from one window to the next.
        padding: Pixels at each end that count as less than all others.
    """

    kernel_size: int
    stride: int
    padding: int

    def __init__(self, size: int = 2, stride: int = 2, padding: int = 0) -> None:
        super().__init__(size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Take the largest of each window; pixels left over at the end are not seen."""
        return maxima(x, self) if x.is_cuda else super().forward(x)


def maxima(x: Tensor, pool: MaxPool) -> Tensor:
    """What a pool gives, without torch's own kernel for it."""
    size, stride = pool.kernel_size, pool.stride
    if size == stride and not pool.padding:
        height, width = (length // size * size for length in x.shape[2:])
        windows = x[:, :, :height, :width].unflatten(3, (-1, size)).unflatten(2, (-1, size))
        return windows.amax((3, 5))
    x = F.pad(x, (pool.padding,) * 4, value=-math.inf)
    return x.unfold(2, size, stride).unfold(3, size, stride).amax((4, 5))


class MeanPool(nn.Module):
    """``AdaptiveAvgPool2d`` as a product of matrices, whose gradient repeats bit for bit on CUDA.

    Args:
        size: Height and width of what comes out.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Average over windows that cover the image, ``[..., size, size]``."""
        rows, columns = (self._averages(length).to(x) for length in x.shape[2:])
        return rows @ x @ columns.mT

    def _averages(self, length: int) -> Tensor:
        averages = torch.zeros(self.size, length)
        for index in range(self.size):
            window = slice(index * length // self.size, -(-(index + 1) * length // self.size))
            averages[index, window] = 1 / (window.stop - window.start)
        return averages
