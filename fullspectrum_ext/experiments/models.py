"""Models by name, with initial weights that depend on the seed alone."""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, ...]


def build_model(name: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a model of :data:`MODELS`, on the CPU.

    Weights are normal with variance 2 / fan-in (He et al. 2015), biases zero, batch normalisation
    the identity. They come from a generator made of the seed: the global one is neither read nor
    moved.

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
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
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


def _wide_mlp(shape: Shape, classes: int, width: int) -> nn.Module:
    """Four linear layers, all hidden ones of one width."""
    return _named(
        flatten=nn.Flatten(),
        fc1=nn.Linear(math.prod(shape), width),
        relu1=nn.ReLU(inplace=True),
        fc2=nn.Linear(width, width),
        relu2=nn.ReLU(inplace=True),
        fc3=nn.Linear(width, width),
        relu3=nn.ReLU(inplace=True),
        fc4=nn.Linear(width, classes),
    )


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions and the input added to them.

    Where the block halves the image, the input is taken at every other pixel and its new channels
    are zero, so that the way around has no weights (option A of He et al.).
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.new_channels = width - channels

    def forward(self, x: Tensor) -> Tensor:
        around = x
        if self.stride > 1 or self.new_channels:
            around = x[:, :, :: self.stride, :: self.stride]
            before = self.new_channels // 2
            around = functional.pad(around, (0, 0, 0, 0, before, self.new_channels - before))
        # In place, for batch normalisation does not keep its output: a quarter less memory traffic.
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        x += around
        return functional.relu(x, inplace=True)


def _resnet20(shape: Shape, classes: int, width: int) -> nn.Module:
    # He et al. 2016, section 4.2; with a width of 16, as there, 0.27 M parameters
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(shape[0], width, 3, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(width),
        "relu": nn.ReLU(inplace=True),
    }
    channels = width
    for stage, stride in enumerate((1, 2, 2)):
        blocks = []
        for block in range(3):
            stage_width = width * 2**stage
            blocks.append(_ResidualBlock(channels, stage_width, stride if block == 0 else 1))
            channels = stage_width
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    return _named(**layers, **_classifier(channels, classes))


class _MaxPool(nn.Module):
    """Maxima of 2 x 2 pixels, with a gradient that repeats bit for bit on CUDA too."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda:
            return functional.max_pool2d(x, 2)
        height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        windows = x[:, :, :height, :width].unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        return windows.amax((3, 5))


def _vgg16(shape: Shape, classes: int) -> nn.Module:
    # Configuration D of Simonyan and Zisserman 2015 with batch normalisation, as used on CIFAR: one
    # linear layer from 512 channels takes the place of the three. 14.7 M parameters. An image that
    # has become one pixel high or wide is not made smaller any more.
    layers: dict[str, nn.Module] = {}
    channels, *size = shape
    stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    for stage, (width, convolutions) in enumerate(stages, start=1):
        for index in range(1, convolutions + 1):
            name = f"{stage}_{index}"
            layers[f"conv{name}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers[f"bn{name}"] = nn.BatchNorm2d(width)
            layers[f"relu{name}"] = nn.ReLU(inplace=True)
            channels = width
        if min(size) > 1:
            layers[f"pool{stage}"] = _MaxPool()
            size = [length // 2 for length in size]
    return _named(**layers, **_classifier(channels, classes))


def _classifier(channels: int, classes: int) -> dict[str, nn.Module]:
    return {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(channels, classes),
    }


def _named(**layers: nn.Module) -> nn.Module:
    """Layers one after the other, by names that read well in a table."""
    return nn.Sequential(OrderedDict(layers))


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "mlp": _mlp,
    "mlp-4096": partial(_wide_mlp, width=4096),
    "convnet": _convnet,
    "resnet20": partial(_resnet20, width=16),
    "resnet20-64": partial(_resnet20, width=64),
    "vgg16": _vgg16,
}
"""Name of each model, and the function that builds it. A new one is a new entry."""
