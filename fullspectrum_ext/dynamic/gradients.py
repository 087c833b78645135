"""What a dense weight gradient is made of, caught as it passes: inputs and output gradients."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from fullspectrum_ext.nn.masked import MaskedConv2d
from fullspectrum_ext.nn.sparse_conv2d import SparseConv2d
from fullspectrum_ext.ops import TopGradients, conv2d_dense_grad_topk, dense_grad_topk


class _Catch:
    """Keeps an input with the gradient of its output, when the backward pass gets there."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """See a forward pass."""
        if output.requires_grad:
            x = inputs[0].detach()

            def keep(grad: Tensor) -> None:
                # a copy: torch may take this memory for the gradient of the bias, and add to it
                self.pairs.append((x, grad.detach().clone()))

            output.register_hook(keep)


class GradientTap:
    """Sees the inputs of a layer and the gradients of its outputs, while it is open.

    All passes forward and backward while it is open count together, as gradients accumulate.

    Args:
        module: A linear layer or a convolution, truly sparse or masked.
        is_conv2d: Whether it is a convolution.
    """

    def __init__(self, module: nn.Module, is_conv2d: bool) -> None:
        self.module, self.is_conv2d = module, is_conv2d
        self._catch = _Catch()
        self._handle: Any = None

    def open(self) -> None:
        """Begin to look."""
        if self._handle is None:
            self._handle = self.module.register_forward_hook(self._catch)

    def close(self) -> None:
        """Look no longer, and forget."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.forget()

    def forget(self) -> None:
        """Forget what was seen."""
        self._catch.pairs.clear()

    @property
    def is_open(self) -> bool:
        """Whether it looks."""
        return self._handle is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was seen."""
        return not self._catch.pairs

    def is_finite(self) -> bool:
        """Say whether all gradients that were seen are finite."""
        return all(bool(grad.isfinite().all()) for _, grad in self._catch.pairs)

    def largest(self, crow_indices: Tensor, col_indices: Tensor, count: int) -> TopGradients:
        """Return where the weight's gradient is largest outside a topology, and what it is there.

        Args:
            crow_indices: Start of each row of the topology.
            col_indices: Columns of its entries.
            count: How many.

        Returns:
            Flat positions, rising, and values.
        """
        x, grad = self._together()
        if not self.is_conv2d:
            return dense_grad_topk(grad, x, crow_indices, col_indices, count)
        sizes = self._sizes()
        return conv2d_dense_grad_topk(grad, x, crow_indices, col_indices, count, **sizes)

    def dense(self) -> Tensor:
        """Return the whole gradient of the weight as a matrix, one row an output."""
        x, grad = self._together()
        if not self.is_conv2d:
            return grad.T @ x
        sizes = self._sizes()
        shape = (grad.shape[1], x.shape[1] // sizes["groups"], *sizes.pop("kernel_size"))
        return conv2d_weight(x, shape, grad, **sizes).flatten(1)

    @property
    def _conv2d(self) -> SparseConv2d | MaskedConv2d:
        assert isinstance(self.module, (SparseConv2d, MaskedConv2d))
        return self.module

    def _together(self) -> tuple[Tensor, Tensor]:
        """Return all inputs and all gradients, one after the other along the batch."""
        pairs = [self._plain(x, grad) for x, grad in self._catch.pairs]
        return torch.cat([x for x, _ in pairs]), torch.cat([grad for _, grad in pairs])

    def _plain(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(grad.dtype)  # what autocast did to it
        if not self.is_conv2d:
            return x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        if x.dim() == 3:
            x, grad = x.unsqueeze(0), grad.unsqueeze(0)
        module = self._conv2d
        if not _pads_itself(module):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x = nn.functional.pad(x, _sides(module), mode=mode)
        return x, grad

    def _sizes(self) -> dict[str, Any]:
        """Return the convolution's sizes, for inputs as :meth:`_plain` gives them."""
        module = self._conv2d
        return {
            "kernel_size": module.kernel_size,
            "stride": module.stride,
            "padding": module.padding if _pads_itself(module) else 0,
            "dilation": module.dilation,
            "groups": module.groups,
        }


def _pads_itself(module: SparseConv2d | MaskedConv2d) -> bool:
    """Say whether the padding is zeros, as many on one side as on the other."""
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _sides(module: SparseConv2d | MaskedConv2d) -> list[int]:
    """Return what torch.nn.functional.pad adds: left, right, top, bottom."""
    if not isinstance(module.padding, str):
        height, width = module.padding
        return [width, width, height, height]
    if module.padding == "valid":
        return [0, 0, 0, 0]
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return [side for r in reversed(reach) for side in (r // 2, r - r // 2)]
