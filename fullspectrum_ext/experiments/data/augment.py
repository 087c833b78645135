"""Images as bytes: changed at random, and made into what a network takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Shifts each image by up to ``padding`` pixels, black coming in, and mirrors every second one.

    This is the crop of the padded image that He et al. 2016 use on CIFAR. The random numbers come
    from the CPU: the images are the same on any device.

    Attributes:
        padding: Pixels.

    Example:
        >>> images = torch.full((2, 1, 3, 3), 7, dtype=torch.uint8)
        >>> Augment(1)(images, torch.Generator().manual_seed(0)).unique()
        tensor([0, 7], dtype=torch.uint8)
    """

    padding: int = 4

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw how each image is changed, and do it.

        Args:
            images: ``[images, channels, height, width]``.
            generator: On the CPU.

        Returns:
            New images of the same shape and dtype.
        """
        count, _, height, width = images.shape
        shifts = torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator)
        mirrored = torch.randint(2, (count, 1), generator=generator, dtype=torch.bool)
        columns = torch.arange(width).expand(count, width)
        columns = torch.where(mirrored, columns.flip(1), columns) + shifts[1]
        rows = torch.arange(height) + shifts[0]
        rows, columns = rows.to(images.device), columns.to(images.device)
        padded = F.pad(images, (self.padding,) * 4).permute(0, 2, 3, 1)
        image = torch.arange(count, device=images.device).view(-1, 1, 1)
        changed = padded[image, rows.unsqueeze(2), columns.unsqueeze(1)]
        return changed.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Normalise:
    """From bytes to float32 of mean 0 and standard deviation 1 over a data set.

    Attributes:
        mean: Of each channel, of values in [0, 1].
        std: Likewise.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std``, ``[images, channels, height, width]``."""
        mean, std = (
            torch.tensor(values, device=images.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return images.float().div_(255).sub_(mean).div_(std)
