"""Dense layers whose masked weights are exactly zero, whatever the optimizer does."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fullspectrum_ext import _checks


def _mask_weight(layer: "MaskedLinear | MaskedConv2d", mask: Tensor) -> None:
    """Give a layer its mask, and zero the weights that it removes."""
    _checks.check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected bool, got {mask.dtype}")
    if mask.shape != layer.weight.shape:
        raise ValueError(
            f"mask: expected the weight's shape {tuple(layer.weight.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    layer.register_buffer("mask", mask.detach().to(layer.weight.device, copy=True))
    with torch.no_grad():
        layer.weight.masked_fill_(~layer.mask, 0)


def _masked_weight(layer: "MaskedLinear | MaskedConv2d") -> Tensor:
    # where, not a product: a removed weight's gradient is then 0 even beside an overflow
    return torch.where(layer.mask, layer.weight, 0)


def _describe(layer: "MaskedLinear | MaskedConv2d", described: str) -> str:
    nnz, numel = int(layer.mask.sum()), layer.mask.numel()
    return f"{described}, nnz={nnz}, density={nnz / max(numel, 1):.4g}"


class MaskedLinear(nn.Linear):
    r"""A dense linear layer with a mask on its weight: :math:`y = x (W \circ M)^\top + b`.

    The removed weights are zero from the start and have zero gradient, so that no optimizer moves
    them. It computes what :class:`SparseLinear` does at the cost of the dense layer.

    Args:
        layer: The linear layer to mask; its parameters become this layer's own.
        mask: Bool tensor of the weight's shape; False removes.

    Raises:
        TypeError: If ``mask`` is not a bool tensor.
        ValueError: If ``mask`` has another shape.

    Example:
        >>> layer = MaskedLinear(nn.Linear(2, 1, bias=False), torch.tensor([[True, False]]))
        >>> bool(layer.weight[0, 1] == 0)
        True
    """

    mask: Tensor

    def __init__(self, layer: nn.Linear, mask: Tensor) -> None:
        # on the meta device, so that no random number is drawn for weights that are not used
        super().__init__(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        self.weight, self.bias = layer.weight, layer.bias
        _mask_weight(self, mask)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``, ``[..., in_features]``."""
        return functional.linear(x, _masked_weight(self), self.bias)

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return _describe(self, super().extra_repr())


class MaskedConv2d(nn.Conv2d):
    """A dense 2-d convolution with a mask on its weight.

    The removed weights are zero from the start and have zero gradient, so that no optimizer moves
    them.

    Args:
        layer: The convolution to mask; its parameters become this layer's own.
        mask: Bool tensor of the weight's shape; False removes.

    Raises:
        TypeError: If ``mask`` is not a bool tensor.
        ValueError: If ``mask`` has another shape.

    Example:
        >>> layer = MaskedConv2d(nn.Conv2d(1, 1, 2), torch.eye(2).bool().view(1, 1, 2, 2))
        >>> int((layer.weight != 0).sum())
        2
    """

    mask: Tensor

    def __init__(self, layer: nn.Conv2d, mask: Tensor) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        _mask_weight(self, mask)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``, ``[batch, in_channels, height, width]``."""
        return self._conv_forward(x, _masked_weight(self), self.bias)

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return _describe(self, super().extra_repr())
