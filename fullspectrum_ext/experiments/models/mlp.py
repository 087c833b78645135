"""Multi-layer perceptrons, which take inputs of any shape."""

import math

from torch import nn

from fullspectrum_ext.experiments.models.layers import Shape, named


def lenet_300_100(shape: Shape, classes: int) -> nn.Module:
    """LeNet-300-100 of LeCun et al. 1998: 266 610 parameters on MNIST."""
    return named(
        flatten=nn.Flatten(),
        fc1=nn.Linear(math.prod(shape), 300),
        relu1=nn.ReLU(),
        fc2=nn.Linear(300, 100),
        relu2=nn.ReLU(),
        fc3=nn.Linear(100, classes),
    )


def linear(shape: Shape, classes: int) -> nn.Module:
    """One linear layer, no hidden one."""
    return named(flatten=nn.Flatten(), fc=nn.Linear(math.prod(shape), classes))


def wide_mlp(shape: Shape, classes: int, width: int) -> nn.Module:
    """Four linear layers, all hidden ones of one width."""
    return named(
        flatten=nn.Flatten(),
        fc1=nn.Linear(math.prod(shape), width),
        relu1=nn.ReLU(inplace=True),
        fc2=nn.Linear(width, width),
        relu2=nn.ReLU(inplace=True),
        fc3=nn.Linear(width, width),
        relu3=nn.ReLU(inplace=True),
        fc4=nn.Linear(width, classes),
    )
