"""Models by name, with initial weights that depend on the seed alone."""

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

Shape = tuple[int, ...]


def build_model(name: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a model of :data:`MODELS`, on the CPU.

    Weights are normal with variance 2 / fan-in (He et al. 2015), biases zero. They come from a
    generator made of the seed: the global one is neither read nor moved.

    Args:
        name: Key of :data:`MODELS`.
        shape: Shape of one input: channels, height, width.
        classes: Number of outputs.
        seed: Of the initial weights.

    Returns:
        The model, its weights float32.
    """
    with torch.device("meta"):  # so that torch's own initialisation draws no random numbers
        model = MODELS[name](shape, classes)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in), generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def _mlp(shape: Shape, classes: int) -> nn.Module:
    return _named(
        flatten=nn.Flatten(),
        fc1=nn.Linear(math.prod(shape), 300),
        relu1=nn.ReLU(),
        fc2=nn.Linear(300, 100),
        relu2=nn.ReLU(),
        fc3=nn.Linear(100, classes),
    )


def _convnet(shape: Shape, classes: int) -> nn.Module:
    channels, height, width = shape
    # Means and not maxima: the gradient of torch's maxima is not repeatable on CUDA.
    return _named(
        conv1=nn.Conv2d(channels, 32, 3, padding=1),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(32, 64, 3, padding=1),
        relu2=nn.ReLU(),
        pool2=nn.AvgPool2d(2),
        conv3=nn.Conv2d(64, 64, 3, padding=1),
        relu3=nn.ReLU(),
        pool3=nn.AvgPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(64 * (height // 4) * (width // 4), 100),
        relu4=nn.ReLU(),
        fc2=nn.Linear(100, classes),
    )


def _named(**layers: nn.Module) -> nn.Module:
    """Layers one after the other, by names that read well in a table."""
    return nn.Sequential(OrderedDict(layers))


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {"mlp": _mlp, "convnet": _convnet}
"""Name of each model, and the function that builds it. A new one is a new entry."""
