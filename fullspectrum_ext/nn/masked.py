"""Dense layers whose masked weights are exactly zero, whatever the optimizer does."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fullspectrum_ext import _checks, ops  # noqa: F401 (ops registers the operators)
from fullspectrum_ext.nn.active import active_only, room_for_active


def masked_weight(weight: Tensor, mask: Tensor) -> Tensor:
    """Return a weight that is zero under its mask, for one use that gives it no gradient there."""
    # a graph compiler, and torch.func, want plain operations to look into
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return torch.where(mask, weight, 0)
    return _kept_masked(weight, mask)


def _kept_masked(weight: Tensor, mask: Tensor) -> Tensor:
    """Return the weight itself, whose gradient gets zeros where the mask removes.

    Nothing is computed forward, and the gradient is masked where it lies: one pass over memory a
    step, where a product with the mask would take five and a copy of the weight. The hook is on a
    view made for this call, whose only use is the layer's product: so the gradient is the layer's
    own, and other uses of the weight are left alone.
    """
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return weight

    def keep(grad: Tensor | None) -> Tensor | None:
        if grad is None:  # a second derivative that does not reach here
            return None
        # in place only where nobody differentiates through it
        if torch.is_grad_enabled() or not grad.is_contiguous():
            return torch.where(mask, grad, 0)
        torch.ops.fullspectrum.keep_masked_.default(grad, mask)
        return grad

    view = weight.view_as(weight)
    view.register_hook(keep)
    return view


class Masked(nn.Module):
    """What the masked layers share: a mask as buffer for each weight, and zeros under it.

    Where there is a buffer ``active`` too (Top-KAST sets it), the layer computes with those weights
    only that it marks, and the others that the mask keeps are trained all the same.
    """

    def mask_of(self, parameter: str) -> Tensor | None:
        """Return the mask of a parameter; None where it has none."""
        return self._buffers.get("mask" if parameter == "weight" else f"{parameter}_mask")

    def active_of(self, parameter: str) -> Tensor | None:
        """Return which weights of a parameter are active; None where all are."""
        return self._buffers.get(_active_name(parameter))

    def set_active(self, active: Tensor | None, parameter: str) -> None:
        """Say which weights of a parameter are active; None: all."""
        self.register_buffer(_active_name(parameter), active)

    def used_weight(self, parameter: str) -> Tensor:
        """Return a parameter as the layer computes with it, for one use."""
        used = active_only(getattr(self, parameter), self.active_of(parameter))
        mask = self.mask_of(parameter)
        return used if mask is None else masked_weight(used, mask)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks by the names of the parameters that have one."""
        found = {name: self.mask_of(name) for name in self._parameters}
        return {name: mask for name, mask in found.items() if mask is not None}

    def _set_mask(self, mask: Tensor, parameter: str = "weight") -> None:
        weight = self.get_parameter(parameter)
        _checks.check_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected bool, got {mask.dtype}")
        if mask.shape != weight.shape:
            raise ValueError(
                f"mask: expected the weight's shape {tuple(weight.shape)}, got {tuple(mask.shape)}"
            )
        mask = mask.detach().to(weight.device, copy=True).contiguous()
        self.register_buffer("mask" if parameter == "weight" else f"{parameter}_mask", mask)
        self.zero_removed_()

    @torch.no_grad()
    def zero_removed_(self) -> None:
        """Set the removed weights to zero again.

        Needed only after something other than a step along the weight's own gradient has written
        to them: noise added to all weights, an optimizer that mixes the entries of a matrix (Muon).
        ``optimizer.register_step_post_hook(lambda *_: layer.zero_removed_())`` does it every step.
        """
        for name, mask in self.masks.items():
            weight = self.get_parameter(name)
            weight.copy_(torch.where(mask, weight, 0))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load, then zero whatever lies under the mask."""
        state_dict, prefix = args[:2]
        for name in self.masks:
            if prefix + name in state_dict:
                saved = state_dict.get(prefix + _active_name(name))
                self.set_active(room_for_active(saved, self.get_parameter(name)), name)
        super()._load_from_state_dict(*args, **kwargs)
        self.zero_removed_()

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        nnz = sum(int(mask.sum()) for mask in self.masks.values())
        numel = sum(mask.numel() for mask in self.masks.values())
        return f"{super().extra_repr()}, nnz={nnz}, density={nnz / max(numel, 1):.4g}"


class MaskedLinear(Masked, nn.Linear):
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

    mask: Tensor

    def __init__(self, layer: nn.Linear, mask: Tensor) -> None:
        # on the meta device, so that no random number is drawn for weights that are not used
        super().__init__(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        self.weight, self.bias = layer.weight, layer.bias
        self._set_mask(mask)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``, ``[..., in_features]``."""
        return functional.linear(x, self.used_weight("weight"), self.bias)


class MaskedConv2d(Masked, nn.Conv2d):
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
        self._set_mask(mask)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x``, ``[batch, in_channels, height, width]``."""
        return self._conv_forward(x, self.used_weight("weight"), self.bias)


def _active_name(parameter: str) -> str:
    return "active" if parameter == "weight" else f"{parameter}_active"


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
    layers = dict(model.named_modules())
    found = {}
    for name, mask in masks.items():
        prefix, _, parameter = name.rpartition(".")
        layer = layers.get(prefix)
        held = layer.mask_of(parameter) if isinstance(layer, Masked) else None
        if held is None:
            raise ValueError(f"masks[{name!r}]: expected the weight of a masked layer")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"masks[{name!r}]: expected a bool tensor")
        if mask.shape != held.shape:
            raise ValueError(
                f"masks[{name!r}]: expected shape {tuple(held.shape)}, got {tuple(mask.shape)}"
            )
        found[name] = held
    for name, held in found.items():
        held.copy_(masks[name])
        weight = model.get_parameter(name)
        weight.masked_fill_(~held, 0)
        state = {} if optimizer is None else optimizer.state.get(weight, {})
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.masked_fill_(~held, 0)
