"""Residual networks for small images."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fullspectrum_ext.experiments.models.layers import MaxPool, Shape, classifier, named


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
        around = self._around(x)
        # In place, for batch normalisation does not keep its output: a quarter less memory traffic.
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        x += around
        return F.relu(x, inplace=True)

    def _around(self, x: Tensor) -> Tensor:
        if self.stride > 1 or self.new_channels:
            x = x[:, :, :: self.stride, :: self.stride]
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return x


class _ProjectedBlock(_ResidualBlock):
    """As above, but where the shape changes the way around is a 1x1 convolution (option B)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__(channels, width, stride)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def _around(self, x: Tensor) -> Tensor:
        return self.downsample(x)


class _WideBlock(nn.Module):
    """Two 3x3 convolutions, each after its normalisation; a 1x1 one around where shapes change."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != width:
            self.downsample = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x), inplace=True)
        around = x if self.downsample is None else self.downsample(active)
        active = F.relu(self.bn2(self.conv1(active)), inplace=True)
        return self.conv2(active) + around


def cifar_resnet(shape: Shape, classes: int, depth: int, width: int = 16) -> nn.Module:
    """The networks of He et al. 2016, section 4.2, of depth 6n + 2.

    With a width of 16, as there, 0.27 M (20), 0.46 M (32) and 0.85 M (56) parameters.

    Args:
        shape: Of one input: channels, height, width.
        classes: Number of outputs.
        depth: Number of layers that have weights.
        width: Channels of the first stage; the others have twice and four times as many.

    Returns:
        The network.
    """
    blocks = ((depth - 2) // 6,) * 3
    widths = (width, 2 * width, 4 * width)
    return named(
        conv1=nn.Conv2d(shape[0], width, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
        **_stages(_ResidualBlock, width, widths, blocks),
        **classifier(widths[-1], classes),
    )


def resnet(shape: Shape, classes: int, blocks: Sequence[int]) -> nn.Module:
    """The ImageNet networks of He et al. 2016 with the first layers that small images take.

    One 3x3 convolution in the place of the 7x7 one and the pooling. Blocks (2, 2, 2, 2) are
    ResNet-18 (11.17 M parameters), (3, 4, 6, 3) are ResNet-34 (21.28 M).

    Args:
        shape: Of one input: channels, height, width.
        classes: Number of outputs.
        blocks: Number of blocks in each of the four stages.

    Returns:
        The network.
    """
    return named(
        conv1=nn.Conv2d(shape[0], 64, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(64),
        relu=nn.ReLU(inplace=True),
        **_stages(_ProjectedBlock, 64, (64, 128, 256, 512), blocks),
        **classifier(512, classes),
    )


def imagenet_resnet(shape: Shape, classes: int, blocks: Sequence[int]) -> nn.Module:
    """The ImageNet networks of He et al. 2016, as they are there and in torchvision.

    With ten classes blocks (3, 4, 6, 3), which are ResNet-34, have 21 289 802 parameters.

    Args:
        shape: Of one input: channels, height, width.
        classes: Number of outputs.
        blocks: Number of blocks in each of the four stages.

    Returns:
        The network.
    """
    return named(
        conv1=nn.Conv2d(shape[0], 64, 7, 2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(64),
        relu=nn.ReLU(inplace=True),
        maxpool=MaxPool(3, 2, 1),
        **_stages(_ProjectedBlock, 64, (64, 128, 256, 512), blocks),
        **classifier(512, classes),
    )


def wide_resnet(shape: Shape, classes: int, depth: int, factor: int) -> nn.Module:
    """WRN-depth-factor of Zagoruyko and Komodakis 2016, of depth 6n + 4, without dropout.

    Args:
        shape: Of one input: channels, height, width.
        classes: Number of outputs.
        depth: Number of layers, as the paper counts them.
        factor: How many times wider than 16, 32 and 64 channels the stages are.

    Returns:
        The network.
    """
    widths = (16 * factor, 32 * factor, 64 * factor)
    return named(
        conv1=nn.Conv2d(shape[0], 16, 3, padding=1, bias=False),
        **_stages(_WideBlock, 16, widths, ((depth - 4) // 6,) * 3),
        bn=nn.BatchNorm2d(widths[-1]),
        relu=nn.ReLU(inplace=True),
        **classifier(widths[-1], classes),
    )


def _stages(
    block: Callable[[int, int, int], nn.Module],
    channels: int,
    widths: Sequence[int],
    blocks: Sequence[int],
) -> dict[str, nn.Module]:
    """Stages of blocks; each stage but the first begins by halving the image."""
    layers: dict[str, nn.Module] = {}
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        stage_blocks = []
        for index in range(count):
            stride = 2 if index == 0 and stage > 1 else 1
            stage_blocks.append(block(channels, width, stride))
            channels = width
        layers[f"layer{stage}"] = nn.Sequential(*stage_blocks)
    return layers
