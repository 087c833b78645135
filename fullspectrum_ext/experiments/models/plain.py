"""Convolutions one after the other: a small network, and the VGG networks."""

from collections.abc import Sequence

from torch import nn

from fullspectrum_ext.experiments.models.layers import MaxPool, MeanPool, Shape, classifier, named

VGG16 = (2, 2, 3, 3, 3)
VGG19 = (2, 2, 4, 4, 4)


def convnet(shape: Shape, classes: int) -> nn.Module:
    """Three convolutions and two linear layers, without batch normalisation."""
    channels, height, width = shape
    # Means and not maxima: the gradient of torch's maxima is not repeatable on CUDA.
    return named(
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


def vgg(shape: Shape, classes: int, stages: Sequence[int]) -> nn.Module:
    """VGG with batch normalisation, as used on CIFAR.

    Configurations D (:data:`VGG16`, 14.7 M parameters) and E (:data:`VGG19`, 20.0 M) of Simonyan
    and Zisserman 2015; one linear layer from 512 channels takes the place of the three. An image
    that has become one pixel high or wide is not made smaller any more.

    Args:
        shape: Of one input: channels, height, width.
        classes: Number of outputs.
        stages: Number of convolutions in each of the five stages.

    Returns:
        The network.
    """
    layers, channels = _vgg_convolutions(shape, stages, bias=False)
    return named(**layers, **classifier(channels, classes))


def imagenet_vgg(shape: Shape, classes: int, stages: Sequence[int]) -> nn.Module:
    """VGG with batch normalisation as for ImageNet, with biases and three linear layers.

    That of torchvision, for images of any size: 134 309 962 parameters with ten classes.

    Args:
        shape: Of one input: channels, height, width.
        classes: Number of outputs.
        stages: Number of convolutions in each of the five stages.

    Returns:
        The network.
    """
    layers, channels = _vgg_convolutions(shape, stages, bias=True)
    return named(
        **layers,
        pool=MeanPool(7),
        flatten=nn.Flatten(),
        fc1=nn.Linear(49 * channels, 4096),
        relu6=nn.ReLU(inplace=True),
        dropout6=nn.Dropout(),
        fc2=nn.Linear(4096, 4096),
        relu7=nn.ReLU(inplace=True),
        dropout7=nn.Dropout(),
        fc3=nn.Linear(4096, classes),
    )


def _vgg_convolutions(
    shape: Shape, stages: Sequence[int], bias: bool
) -> tuple[dict[str, nn.Module], int]:
    """The layers of the five stages, and the channels that come out of them."""
    layers: dict[str, nn.Module] = {}
    channels, *size = shape
    widths = (64, 128, 256, 512, 512)
    for stage, (width, convolutions) in enumerate(zip(widths, stages, strict=True), start=1):
        for index in range(1, convolutions + 1):
            name = f"{stage}_{index}"
            layers[f"conv{name}"] = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
            layers[f"bn{name}"] = nn.BatchNorm2d(width)
            layers[f"relu{name}"] = nn.ReLU(inplace=True)
            channels = width
        if min(size) > 1:
            layers[f"pool{stage}"] = MaxPool()
            size = [length // 2 for length in size]
    return layers, channels
