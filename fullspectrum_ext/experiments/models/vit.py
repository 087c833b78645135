"""A vision transformer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullspectrum_ext.experiments.models.layers import Shape


def vit(
    shape: Shape, classes: int, width: int, depth: int, heads: int, patch: int | None = None
) -> nn.Module:
    """The vision transformer of Dosovitskiy et al. 2021, with a class token.

    Width 192, depth 12 and 3 heads are those of DeiT-Ti (Touvron et al. 2021: 5.7 M parameters on
    ImageNet with patches of 16).

    Args:
        shape: Of one input: channels, height, width.
        classes: Number of outputs.
        width: Numbers that stand for a patch.
        depth: Number of blocks.
        heads: Of each attention; they share the width.
        patch: Pixels of a patch's side; None: an eighth of the image's shorter side. What is left
            over at the image's end is not seen.

    Returns:
        The network.
    """
    patch = patch or max(1, round(min(shape[1:]) / 8))
    return _VisionTransformer(shape, classes, width, depth, heads, patch)


class _Attention(nn.Module):
    """Each token asks every other; written out, so that second derivatives exist and repeat."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # [batch, tokens, 3 * width] -> three of [batch, heads, tokens, width of a head]
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class _VisionTransformer(nn.Module):
    def __init__(
        self, shape: Shape, classes: int, width: int, depth: int, heads: int, patch: int
    ) -> None:
        super().__init__()
        channels, rows, columns = shape[0], shape[1] // patch, shape[2] // patch
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + rows * columns, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def initialise(self, generator: torch.Generator) -> None:
        """Small weights, as the paper's code has them: He's would saturate the attention."""
        for parameter in (self.class_token, self.positions):
            nn.init.normal_(parameter, std=0.02, generator=generator)
        for block in self.blocks.modules():
            if isinstance(block, nn.Linear):
                nn.init.normal_(block.weight, std=0.02, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_token.expand(len(x), -1, -1), tokens), 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])
