"""Where a sparse layer's dense weight gradient is largest, found without holding that gradient."""

from typing import NamedTuple

import torch
from torch import Tensor

from fullspectrum_ext import _checks

_OPERATORS = torch.ops.fullspectrum

Pair = int | tuple[int, int]


class TopGradients(NamedTuple):
    """The largest entries of a dense weight gradient outside a topology.

    Attributes:
        positions: Flat, row-major positions ``row * cols + col``, rising; int64, ``[k]``.
        values: The gradient there, in the dtype of the inputs, ``[k]``.
    """

    positions: Tensor
    values: Tensor


def dense_grad_topk(
    grad: Tensor,
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    k: int,
    *,
    validate: bool = False,
) -> TopGradients:
    r"""Find the ``k`` largest gradients of a linear layer among the weights it does not store.

    Of the dense gradient :math:`\partial L / \partial W_{ij} = \sum_n D_{ni}\, x_{nj}`, with
    :math:`D = \partial L / \partial y`, the ``k`` entries of largest magnitude at positions that
    are not stored; what RigL grows. No dense gradient is held.

    On the CPU, in float32, float16 and bfloat16, most of it is not even computed: a product of
    8-bit integers (16-bit ones where the processor has no AVX-512 VNNI) bounds every entry, and
    those whose bound reaches a threshold, found from a sample, are computed in float32. Memory is
    that of a copy of the inputs in both forms, of some rows' candidates and of about ``2 k``
    candidates a thread. In float64 and on CUDA the gradient is computed in tiles of whole rows by
    torch's matrix product: beside the inputs, memory is that of one tile (2 MiB, on CUDA 8 MiB,
    more where 64 rows are larger) and of about ``2 k`` candidates.

    The selection is exact: the entries are ordered by magnitude as the products come out, in
    float32 for float16 and bfloat16 inputs, NaN above infinity above numbers, and of equal ones
    the first in row-major order are taken. Each product on the CPU is a sum in an order that the
    batch alone fixes, so the same call gives the same bits at any number of threads; in float64
    and on CUDA, each time with the same number.

    For gradients accumulated over micro-batches, give the concatenation of their ``grad`` and of
    their ``x`` along the batch.

    Args:
        grad: Gradient for the layer's output; float32, float64, float16 or bfloat16,
            ``[..., out]``.
        x: The layer's input, the same dtype, device and leading dimensions, ``[..., in]``.
        crow_indices: Start of each row of the stored weight; int32 or int64, ``[out + 1]``.
        col_indices: Column of each stored weight; the same dtype, ``[nnz]``.
        k: How many, from 0 to the number of positions that are not stored.
        validate: Check every index first. Without it, indices that are no CSR matrix's give an
            error on the CPU and undefined results on CUDA.

    Returns:
        Positions and values. Not differentiable.

    Raises:
        TypeError: If an argument is no tensor, or dtypes are wrong or differ.
        ValueError: If shapes or devices do not fit together, or ``k`` is too large.

    References:
        Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery, ICML 2020.

    Example:
        >>> grad, x = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.0, 5.0]])
        >>> crow_indices, col_indices = torch.tensor([0, 1, 2]), torch.tensor([0, 2])
        >>> dense_grad_topk(grad, x, crow_indices, col_indices, 2)  # of [[.., 0, 5], [-6, 0, ..]]
        TopGradients(positions=tensor([2, 3]), values=tensor([ 5., -6.]))
    """
    _check_operands(grad, x, least_dim=1)
    if grad.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"grad: expected the leading dimensions of x, {tuple(x.shape[:-1])}, "
            f"got {tuple(grad.shape[:-1])}"
        )
    shape = (grad.shape[-1], x.shape[-1])
    _check_topology(crow_indices, col_indices, shape, x, k, validate)
    return TopGradients(
        *_OPERATORS.dense_grad_topk.default(grad.detach(), x.detach(), crow_indices, col_indices, k)
    )


def conv2d_dense_grad_topk(
    grad: Tensor,
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    k: int,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    validate: bool = False,
) -> TopGradients:
    r"""Find the ``k`` largest gradients of a 2-d convolution among the weights it does not store.

    As :func:`dense_grad_topk`, for the weight ``[out, in / groups, kh, kw]`` as the matrix
    ``[out, in / groups * kh * kw]``. All of it is computed, in tiles as there: slices of output
    channels, by torch's own convolution gradient, whose working memory comes on top.

    Args:
        grad: Gradient for the layer's output, ``[n, out, h_out, w_out]``.
        x: The layer's input, the same dtype and device, ``[n, in, h, w]``.
        crow_indices: Start of each row of the stored weight; int32 or int64, ``[out + 1]``.
        col_indices: Column of each stored weight; the same dtype, ``[nnz]``.
        k: How many, from 0 to the number of positions that are not stored.
        kernel_size: Height and width of the kernel, or one number for both; so the next three.
        stride: Of the convolution.
        padding: Zeros on each side.
        dilation: Distance of the kernel's taps.
        groups: Groups of channels.
        validate: Check every index first, as for :func:`dense_grad_topk`.

    Returns:
        Positions and values. Not differentiable.

    Raises:
        TypeError: If an argument is no tensor, or dtypes are wrong or differ.
        ValueError: If shapes or devices do not fit together, or ``k`` is too large.

    Example:
        >>> grad, x = torch.ones(1, 1, 1, 1), torch.tensor([[[[1.0, 2.0], [4.0, -3.0]]]])
        >>> crow_indices, col_indices = torch.tensor([0, 1]), torch.tensor([2])
        >>> conv2d_dense_grad_topk(grad, x, crow_indices, col_indices, 2, kernel_size=2)
        TopGradients(positions=tensor([1, 3]), values=tensor([ 2., -3.]))
    """
    _check_operands(grad, x, least_dim=4)
    if grad.dim() != 4 or x.dim() != 4 or grad.shape[0] != x.shape[0]:
        raise ValueError(
            f"grad and x: expected [n, out, h_out, w_out] and [n, in, h, w], "
            f"got shapes {tuple(grad.shape)} and {tuple(x.shape)}"
        )
    sizes = {
        "kernel_size": _pair("kernel_size", kernel_size, 1),
        "stride": _pair("stride", stride, 1),
        "padding": _pair("padding", padding, 0),
        "dilation": _pair("dilation", dilation, 1),
    }
    _checks.check_integer("groups", groups, 1)
    if grad.shape[1] % groups or x.shape[1] % groups:
        raise ValueError(
            f"groups: expected a divisor of the channels, {x.shape[1]} in and {grad.shape[1]} out, "
            f"got {groups}"
        )
    expected = tuple(
        max((size + 2 * p - d * (kernel - 1) - 1) // s + 1, 0)
        for size, kernel, s, p, d in zip(x.shape[2:], *sizes.values(), strict=True)
    )
    if tuple(grad.shape[2:]) != expected:
        raise ValueError(
            f"grad: expected height and width {expected} for this input, kernel, stride, padding "
            f"and dilation, got {tuple(grad.shape[2:])}"
        )
    height, width = sizes["kernel_size"]
    shape = (grad.shape[1], x.shape[1] // groups * height * width)
    _check_topology(crow_indices, col_indices, shape, x, k, validate)
    return TopGradients(
        *_OPERATORS.conv2d_dense_grad_topk.default(
            grad.detach(), x.detach(), crow_indices, col_indices, k, *sizes.values(), groups
        )
    )


def _check_operands(grad: Tensor, x: Tensor, least_dim: int) -> None:
    for name, tensor in (("grad", grad), ("x", x)):
        _checks.check_tensor(name, tensor)
        _checks.check_values(name, tensor)
        if tensor.dim() < least_dim:
            raise ValueError(
                f"{name}: expected at least {least_dim} dimensions, got {tuple(tensor.shape)}"
            )
    _checks.check_same("grad", grad, "x", x)


def _check_topology(
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: tuple[int, int],
    x: Tensor,
    k: int,
    validate: bool,
) -> None:
    _checks.check_csr(crow_indices, col_indices, shape, validate=validate)
    if col_indices.device != x.device:
        raise ValueError(f"col_indices is on {col_indices.device} but x is on {x.device}")
    _checks.check_integer("k", k, 0)
    free = shape[0] * shape[1] - col_indices.shape[0]
    if k > free:
        raise ValueError(f"k: expected at most the {free} positions that are not stored, got {k}")


def _pair(name: str, size: Pair, least: int) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"{name}: expected one int or two, got {size}")
    for one in pair:
        _checks.check_integer(name, one, least)
    return pair


@torch.library.register_fake("fullspectrum::dense_grad_topk")
def _fake(
    grad: Tensor, x: Tensor, crow_indices: Tensor, col_indices: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    return x.new_empty((k,), dtype=torch.int64), x.new_empty((k,))


@torch.library.register_fake("fullspectrum::conv2d_dense_grad_topk")
def _fake_conv2d(
    grad: Tensor,
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    k: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    return x.new_empty((k,), dtype=torch.int64), x.new_empty((k,))
