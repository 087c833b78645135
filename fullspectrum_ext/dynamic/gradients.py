"""What a dense weight gradient is made of, caught as it passes: inputs and output gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from fullspectrum_ext.dynamic.ranks import Ranks
from fullspectrum_ext.dynamic.shared_gradients import largest_by_factors, largest_by_slabs
from fullspectrum_ext.nn.masked import MaskedConv2d
from fullspectrum_ext.nn.sparse_conv2d import SparseConv2d
from fullspectrum_ext.ops import TopGradients, conv2d_dense_grad_topk, dense_grad_topk

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # from narrow to wide


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


@dataclass(frozen=True)
class _Shared:
    """What all ranks know of what each has seen.

    Attributes:
        ranks: Those of which the gradients count together.
        batches: Rows of inputs that each has seen.
        dtype: The widest of their gradients.
    """

    ranks: Ranks
    batches: list[int]
    dtype: torch.dtype


class GradientTap:
    """Sees the inputs of a layer and the gradients of its outputs, while it is open.

    All passes forward and backward while it is open count together, as gradients accumulate; after
    :func:`share_gradients` those of all ranks do.

    Args:
        module: A linear layer or a convolution, truly sparse or masked.
        is_conv2d: Whether it is a convolution.
        shape: Rows and columns of its weight.
    """

    def __init__(self, module: nn.Module, is_conv2d: bool, shape: tuple[int, int]) -> None:
        self.module, self.is_conv2d, self.shape = module, is_conv2d, shape
        self._catch = _Catch()
        self._handle: Any = None
        self._shared: _Shared | None = None

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
        self._shared = None

    @property
    def is_open(self) -> bool:
        """Whether it looks."""
        return self._handle is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was seen."""
        if self._shared is not None:
            return not any(self._shared.batches)
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
        topology = crow_indices, col_indices
        if self._shared is not None:
            return self._largest_of_all(self._shared, topology, count)
        x, grad = self._together()
        if not self.is_conv2d:
            return dense_grad_topk(grad, x, *topology, count)
        return conv2d_dense_grad_topk(grad, x, *topology, count, **self._sizes())

    def dense(self) -> Tensor:
        """Return the whole gradient of the weight as a matrix, one row an output."""
        gradient = self._part(*self._together(), 0, self.shape[0])
        if self._shared is None:
            return gradient
        return self._shared.ranks.mean(gradient.to(_precise(self._shared.dtype)))

    def report(self) -> list[int]:
        """Say how much was seen, whether it is finite, and of which dtype it is, in numbers."""
        rows = sum(grad.numel() // max(self.shape[0], 1) for _, grad in self._catch.pairs)
        dtypes = [_DTYPES.index(grad.dtype) for _, grad in self._catch.pairs]
        return [rows, self.is_finite(), max(dtypes, default=0)]

    def share(self, ranks: Ranks, reports: Sequence[Sequence[int]]) -> None:
        """From now on, speak of what all ranks have seen.

        Args:
            ranks: All of which then ask for the same at the same time.
            reports: What :meth:`report` says on each.
        """
        batches, _, dtypes = zip(*reports, strict=True)
        self._shared = _Shared(ranks, list(batches), _DTYPES[max(dtypes)])

    def _largest_of_all(
        self, shared: _Shared, topology: tuple[Tensor, Tensor], count: int
    ) -> TopGradients:
        rows, columns = self.shape
        x, grad = self._together()
        x, grad = x.to(shared.dtype), grad.to(shared.dtype)
        precise, size = _precise(x.dtype), shared.ranks.size
        gathered = max(shared.batches) * (rows + columns) * x.itemsize
        gathered += count * (torch.int64.itemsize + precise.itemsize)
        averaged = 2 * rows * columns * precise.itemsize // size
        if gathered < averaged and not self.is_conv2d:
            return largest_by_factors(shared.ranks, x, grad, shared.batches, topology, count)
        x, grad = x.to(precise), grad.to(precise)
        return largest_by_slabs(
            shared.ranks, lambda *some: self._part(x, grad, *some), columns, topology, count
        )

    def _part(self, x: Tensor, grad: Tensor, begin: int, end: int) -> Tensor:
        """Return some rows of the gradient of what this rank has seen."""
        if not self.is_conv2d:
            return grad[:, begin:end].T @ x
        part = x.new_zeros(end - begin, self.shape[1])
        if not x.numel():
            return part
        sizes = self._sizes()
        groups, kernel_size = sizes.pop("groups"), sizes.pop("kernel_size")
        outputs, inputs = self.shape[0] // groups, x.shape[1] // groups
        for group in range(begin // outputs, -(-end // outputs)):
            first, last = max(begin, group * outputs), min(end, (group + 1) * outputs)
            taps = x[:, group * inputs : (group + 1) * inputs]
            shape = (last - first, inputs, *kernel_size)
            found = conv2d_weight(taps, shape, grad[:, first:last], **sizes)
            part[first - begin : last - begin] = found.flatten(1)
        return part

    @property
    def _conv2d(self) -> SparseConv2d | MaskedConv2d:
        assert isinstance(self.module, (SparseConv2d, MaskedConv2d))
        return self.module

    def _together(self) -> tuple[Tensor, Tensor]:
        """Return all inputs and all gradients, one after the other along the batch."""
        if not self._catch.pairs:  # others have seen something
            assert self._shared is not None
            nothing = next(self.module.parameters()).new_empty(0, dtype=self._shared.dtype)
            return nothing.view(0, self.shape[1]), nothing.view(0, self.shape[0])
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


def share_gradients(ranks: Ranks, taps: Sequence[GradientTap]) -> bool:
    """Let layers speak of what all ranks have seen, where any has seen something.

    Args:
        ranks: All of them must call this, with the same layers.
        taps: Of the layers.

    Returns:
        Whether it is finite, on all ranks.
    """
    reports = ranks.gather(torch.tensor([tap.report() for tap in taps]))
    for index, tap in enumerate(taps):
        tap.share(ranks, [report[index].tolist() for report in reports])
    return all(bool(report[:, 1].all()) for report in reports)


def _precise(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which gradients of several ranks are added."""
    return torch.promote_types(dtype, torch.float32)


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
