"""Dense layers whose masked weights are exactly zero, whatever the optimizer does."""

from collections.abc import Mapping
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


@torch.no_grad()
def update_masks(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Give masked layers other masks, in place, while they are being trained.

    What a new mask removes becomes zero, and so does all that the optimizer holds for it (momenta,
    second moments), which would move it on. What it brings back begins at zero. The weights that
    stay keep their values and states.

    Args:
        model: A model with masked layers, as ``sparsify(model, masks, backend="masked")`` makes it.
        masks: Parameter name to the new mask, bool; layers that are not named keep theirs.
        optimizer: The one that trains the weights.

    Raises:
        TypeError: If a mask is not a bool tensor.
        ValueError: If a name is not the weight of a masked layer, or a mask has another shape.
            Nothing has changed then.

    Example:
        >>> layer = MaskedLinear(nn.Linear(2, 1, bias=False), torch.tensor([[True, True]]))
        >>> update_masks(nn.Sequential(layer), {"0.weight": torch.tensor([[True, False]])})
        >>> layer.weight.count_nonzero().item()
        1
    """
    found = {}
    for name, mask in masks.items():
        prefix, _, parameter = name.rpartition(".")
        layer = dict(model.named_modules()).get(prefix)
        if not isinstance(layer, _Masked) or parameter != "weight":
            raise ValueError(f"masks[{name!r}]: expected the weight of a masked layer")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"masks[{name!r}]: expected a bool tensor")
        if mask.shape != layer.mask.shape:
            raise ValueError(
                f"masks[{name!r}]: expected shape {tuple(layer.mask.shape)}, "
                f"got {tuple(mask.shape)}"
            )
        found[name] = layer
    for name, layer in found.items():
        layer.mask.copy_(masks[name])
        layer.zero_removed_()
        state = {} if optimizer is None else optimizer.state.get(layer.weight, {})
        for held in state.values():
            if isinstance(held, Tensor) and held.shape == layer.weight.shape:
                held.masked_fill_(~layer.mask, 0)
