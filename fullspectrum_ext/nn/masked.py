"""Dense layers whose masked weights are exactly zero, whatever the optimizer does."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fullspectrum_ext import _checks, ops  # noqa: F401 (ops registers the operators)


def _kept_masked(weight: Tensor, mask: Tensor) -> Tensor:
    """Return the weight itself, whose gradient gets zeros where the mask removes.

    Nothing is computed forward, and the gradient is masked where it lies: one pass over memory a
    step, where a product with the mask would take five and a copy of the weight. The hook is on a
    view made for this call, whose only use is the layer's product: so the gradient is the layer's
    own, and other uses of the weight are left alone.
    """
    view = weight.view_as(weight)
    if view.requires_grad:

        def keep(grad: Tensor | None) -> Tensor | None:
            if grad is None:  # a second derivative that does not reach here
                return None
            # in place only where nobody differentiates through it
            if torch.is_grad_enabled() or not grad.is_contiguous():
                return torch.where(mask, grad, 0)
            torch.ops.fullspectrum.keep_masked_.default(grad, mask)
            return grad

        view.register_hook(keep)
    return view


class _Masked(nn.Module):
    """What the masked layers share: a mask as buffer, and zeros under it."""

    weight: Tensor
    mask: Tensor

    def _set_mask(self, mask: Tensor) -> None:
        _checks.check_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected bool, got {mask.dtype}")
        if mask.shape != self.weight.shape:
            raise ValueError(
                f"mask: expected the weight's shape {tuple(self.weight.shape)}, "
                f"got {tuple(mask.shape)}"
            )
        mask = mask.detach().to(self.weight.device, copy=True).contiguous()
        self.register_buffer("mask", mask)
        self.zero_removed_()

    @torch.no_grad()
    def zero_removed_(self) -> None:
        """Set the removed weights to zero again.

        Needed only after something other than a step along the weight's own gradient has written
        to them: noise added to all weights, an optimizer that mixes the entries of a matrix (Muon).
        ``optimizer.register_step_post_hook(lambda *_: layer.zero_removed_())`` does it every step.
        """
        self.weight.copy_(torch.where(self.mask, self.weight, 0))

    def _masked_weight(self) -> Tensor:
        # a graph compiler, and torch.func, want plain operations to look into
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return torch.where(self.mask, self.weight, 0)
        return _kept_masked(self.weight, self.mask)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load, then zero whatever lies under the mask."""
        super()._load_from_state_dict(*args, **kwargs)
        self.zero_removed_()

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        nnz, numel = int(self.mask.sum()), self.mask.numel()
        return f"{super().extra_repr()}, nnz={nnz}, density={nnz / max(numel, 1):.4g}"


class MaskedLinear(_Masked, nn.Linear):
    r"""A dense linear layer with a mask on its weight: :math:`y = x (W \circ M)^\top + b`.

    The removed weights are zero from the start and have zero gradient, so that no optimizer which
    moves a weight by its own gradient and state moves them: momentum, weight decay and adaptive
    rates all leave zero at zero. It computes what :class:`SparseLinear` does at the cost of the
    dense layer.

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

    def __init__(self, layer: nn.Linear, mask: Tensor) -> None:
        # on the meta device, so that no random number is drawn for weights that are not used
        super().__init__(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        self.weight, self.bias = layer.weight, layer.bias
        self._set_mask(mask)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``, ``[..., in_features]``."""
        return functional.linear(x, self._masked_weight(), self.bias)


class MaskedConv2d(_Masked, nn.Conv2d):
    """A dense 2-d convolution with a mask on its weight.

    The removed weights are zero from the start and have zero gradient, as in
    :class:`MaskedLinear`.

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
        self._set_mask(mask)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``, ``[batch, in_channels, height, width]``."""
        return self._conv_forward(x, self._masked_weight(), self.bias)
