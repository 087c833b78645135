"""A 2-d convolution with a sparse weight, and its derivatives."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fullspectrum_ext import _checks
from fullspectrum_ext.ops._arguments import check_operands, register_autocast, transpose_fields
from fullspectrum_ext.ops.csr import CsrTranspose, csr_transpose

_OPERATORS = torch.ops.fullspectrum

IntOrPair = int | Sequence[int]


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    kernel_size: IntOrPair,
    bias: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    transpose: CsrTranspose | None = None,
    validate: bool = False,
) -> Tensor:
    r"""Convolve images with a sparse weight.

    Computes what ``torch.nn.functional.conv2d`` does with the weight :math:`W` as the matrix
    ``weight.reshape(out_channels, -1)``, one row an output channel and one column an input tap, in
    CSR form:

    .. math::
        y_{n, o, i, j} = b_o + \sum_{p:\, r_p = o} v_p\;
            x_{n,\, c_p,\, s\, i + d\, k_p - \pi,\, s\, j + d\, l_p - \pi}

    where the column of entry :math:`p` is channel :math:`c_p` and tap :math:`(k_p, l_p)`, with
    stride :math:`s`, dilation :math:`d` and padding :math:`\pi`. Only the stored entries take part,
    forward and backward, and no column matrix (im2col) is made. Sums of float16 and bfloat16 are
    kept in float32 and rounded once. The result is in channels-last order where ``x`` is. Under
    autocast all floating arguments take its dtype, as those of torch's convolution do.

    Args:
        x: Input; float32, float64, float16 or bfloat16, ``[batch, in_channels, height, width]``.
            Differentiable (twice).
        values: Stored entries of :math:`W`, of the dtype and device of ``x``, ``[nnz]``.
            Differentiable (twice).
        crow_indices: Start of each row of :math:`W`; int32 or int64, ``[out_channels + 1]``.
        col_indices: Column of each stored entry, below ``in_channels / groups * kernel height *
            kernel width``; the same dtype, ``[nnz]``.
        kernel_size: Height and width of the kernel, or one int for both.
        bias: Added to the result, ``[out_channels]``. Differentiable (twice).
        stride: Pixels from one output to the next, an int or a pair.
        padding: Zeros on each side of the input, an int or a pair; ``"valid"`` for none; ``"same"``
            for an output of the input's size (stride 1 only).
        dilation: Pixels from one tap to the next, an int or a pair.
        groups: Into how many groups both the input's and the output's channels are cut; each group
            of outputs sees its own group of inputs.
        transpose: What :func:`csr_transpose` gives for this topology. The gradient for ``x`` needs
            it; where it is not given, each backward pass computes it again.
        validate: Check every index first. Without it, indices that are no CSR matrix's give an
            error on the CPU and undefined results on CUDA.

    Returns:
        The result, ``[batch, out_channels, out_height, out_width]``.

    Raises:
        TypeError: If an argument is no tensor or no int, or dtypes are wrong or differ.
        ValueError: If shapes or devices do not fit together, the kernel is larger than the padded
            input, or indices are found to be wrong.

    Note:
        On the CPU a pixel that is not finite makes the gradients of all values of its input channel
        not finite, also of those whose taps do not meet it.

    References:
        Park, Li, Wen, Tang, Li, Chen, Dubey: Faster CNNs with Direct Sparse Convolutions and Guided
        Pruning, ICLR 2017.

    Example:
        >>> crow_indices, col_indices = torch.tensor([0, 2]), torch.tensor([0, 3])
        >>> values = torch.tensor([1.0, 10.0])  # the kernel [[1, 0], [0, 10]]
        >>> x = torch.arange(9.0).view(1, 1, 3, 3)
        >>> sparse_conv2d(x, values, crow_indices, col_indices, kernel_size=2)
        tensor([[[[40., 51.],
                  [73., 84.]]]])
    """  # noqa: DOC502
    _checks.check_tensor("x", x)
    _checks.check_values("x", x)
    if x.dim() != 4:
        raise ValueError(
            f"x: expected [batch, in_channels, height, width], got shape {tuple(x.shape)}"
        )
    kernel, strides, dilations = (
        _pair(name, value, 1)
        for name, value in (
            ("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation),
        )
    )  # fmt: skip
    x, paddings = _padded(x, padding, kernel, strides, dilations)
    rows, cols = check_topology(crow_indices, x.shape[1], kernel, groups)
    _checks.check_csr(crow_indices, col_indices, (rows, cols), values, validate=validate)
    check_operands(x, values, bias, "the output channels", rows)
    output_size(x.shape[-2:], kernel, strides, paddings, dilations)
    return _OPERATORS.sparse_conv2d.default(
        x,
        values,
        crow_indices,
        col_indices,
        kernel,
        bias,
        strides,
        paddings,
        dilations,
        groups,
        *transpose_fields(transpose, col_indices, cols),
    )


def _pair(name: str, value: IntOrPair, least: int) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name}: expected an int or two, got {value!r}")
    for one in values:
        _checks.check_integer(name, one, least)
    return values


def _padded(
    x: Tensor,
    padding: IntOrPair | str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[Tensor, tuple[int, int]]:
    """Return the padding as numbers, and ``x`` with the one more row or column "same" may need."""
    if not isinstance(padding, str):
        return x, _pair("padding", padding, 0)
    if padding == "valid":
        return x, (0, 0)
    if padding != "same":
        raise ValueError(f'padding: expected numbers, "same" or "valid", got {padding!r}')
    if stride != (1, 1):
        raise ValueError(f'padding: "same" is for stride 1, got stride {stride}')
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(t % 2 for t in total):
        x = torch.nn.functional.pad(x, (0, total[1] % 2, 0, total[0] % 2))
    return x, (total[0] // 2, total[1] // 2)


def check_topology(
    crow_indices: Tensor, in_channels: int, kernel: tuple[int, int], groups: int
) -> tuple[int, int]:
    """Return the shape of the weight as a matrix; raise where the groups do not divide it."""
    _checks.check_tensor("crow_indices", crow_indices)
    _checks.check_integer("groups", groups, 1)
    rows = max(crow_indices.numel() - 1, 0)
    if in_channels % groups or rows % groups:
        raise ValueError(
            f"groups: expected a divisor of the {in_channels} input and the {rows} output "
            f"channels, got {groups}"
        )
    return rows, in_channels // groups * kernel[0] * kernel[1]


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Return the output's height and width; raise where the kernel is larger than the input."""
    sizes = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        spanned = d * (k - 1) + 1
        if n + 2 * p < spanned:
            raise ValueError(
                f"kernel_size: spans {spanned} pixels with its dilation, more than the padded "
                f"input's {n + 2 * p}"
            )
        sizes.append((n + 2 * p - spanned) // s + 1)
    return sizes


# ---- shapes ------------------------------------------------------------------------------------


def _empty_image(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor in the order of ``x``: channels last only if it is so unambiguously."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)


@torch.library.register_fake("fullspectrum::sparse_conv2d")
def _fake_sparse_conv2d(  # type: ignore[no-untyped-def]
    x,
    values,
    crow_indices,
    col_indices,
    kernel_size,
    bias,
    stride,
    padding,
    dilation,
    groups,
    *transposed,
):
    size = output_size(x.shape[-2:], kernel_size, stride, padding, dilation)
    return _empty_image(x, (x.shape[0], crow_indices.shape[0] - 1, *size))


@torch.library.register_fake("fullspectrum::sparse_conv2d_backward")
def _fake_backward(  # type: ignore[no-untyped-def]
    grad,
    x,
    values,
    crow_indices,
    col_indices,
    kernel_size,
    stride,
    padding,
    dilation,
    groups,
    need_x,
    need_values,
    *transposed,
):
    grad_x = _empty_image(x, x.shape) if need_x else x.new_empty((0,))
    return grad_x, x.new_empty((col_indices.shape[0] if need_values else 0,))


# ---- derivatives -------------------------------------------------------------------------------
#
# y(x, v) is linear in x and in v, and with D = dL/dy the second operator gives X(D, v) = dL/dx and
# V(D, x) = dL/dv. For gradients a of X and u of V,  <a, X(D, v)> = <D, y(a, v)> and
# <u, V(D, x)> = <D, y(x, u)>.  So their derivatives are y(a, v) + y(x, u) for D, X(D, u) for x and
# V(D, a) for v: the same two operators again.


def _backward_operator(ctx, grad, x, values, index, need_x, need_values):  # type: ignore[no-untyped-def]
    crow_indices, col_indices, *transposed = index
    if need_x and transposed[0] is None:
        transposed = csr_transpose(crow_indices, col_indices, ctx.cols)
    return _OPERATORS.sparse_conv2d_backward.default(
        grad,
        x,
        values,
        crow_indices,
        col_indices,
        *ctx.geometry,
        need_x,
        need_values,
        *transposed,
    )


def _forward_operator(ctx, x, values, index, bias=None):  # type: ignore[no-untyped-def]
    crow_indices, col_indices, *transposed = index
    kernel_size, *others = ctx.geometry
    return _OPERATORS.sparse_conv2d.default(
        x, values, crow_indices, col_indices, kernel_size, bias, *others, *transposed
    )


def _keep_geometry(ctx, x, geometry) -> None:  # type: ignore[no-untyped-def]
    kernel_size, _, _, _, groups = ctx.geometry = geometry
    ctx.cols = x.shape[1] // groups * kernel_size[0] * kernel_size[1]


def _setup_sparse_conv2d(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, values, crow_indices, col_indices, kernel_size, _, *others = inputs
    geometry, transposed = others[:4], others[4:]
    _keep_geometry(ctx, x, (kernel_size, *geometry))
    ctx.shape = x.shape
    ctx.save_for_backward(
        x if ctx.needs_input_grad[1] else None, values, crow_indices, col_indices, *transposed
    )


def _backward_sparse_conv2d(ctx, grad):  # type: ignore[no-untyped-def]
    x, values, *index = ctx.saved_tensors
    need_x, need_values = ctx.needs_input_grad[:2]
    need_bias = ctx.needs_input_grad[5]
    grad_x = grad_values = None
    if need_x or need_values:
        if x is None:  # only its shape is asked for
            x = grad.new_empty(()).expand(ctx.shape)
        grad_x, grad_values = _backward_operator(ctx, grad, x, values, index, need_x, need_values)
    return (
        grad_x if need_x else None,
        grad_values if need_values else None,
        None,
        None,
        None,
        grad.sum(dim=(0, 2, 3)) if need_bias else None,
        *[None] * 7,
    )


def _setup_backward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    grad, x, values, crow_indices, col_indices, *others = inputs
    geometry, ctx.computed, transposed = others[:5], others[5:7], others[7:]
    _keep_geometry(ctx, x, geometry)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, x, values, crow_indices, col_indices, *transposed)


def _backward_backward(ctx, grad_of_x, grad_of_values):  # type: ignore[no-untyped-def]
    grad, x, values, *index = ctx.saved_tensors
    # of an empty output too, torch.compile gives a gradient
    grad_of_x, grad_of_values = (
        of if computed else None
        for of, computed in zip((grad_of_x, grad_of_values), ctx.computed, strict=True)
    )
    need_grad, need_x, need_values = ctx.needs_input_grad[:3]
    need_x = need_x and grad_of_values is not None
    need_values = need_values and grad_of_x is not None
    for_grad = for_x = for_values = None
    if need_grad and grad_of_x is not None:
        for_grad = _forward_operator(ctx, grad_of_x, values, index)
    if need_grad and grad_of_values is not None:
        other = _forward_operator(ctx, x, grad_of_values, index)
        for_grad = other if for_grad is None else for_grad + other
    if need_x:
        for_x, _ = _backward_operator(ctx, grad, x, grad_of_values, index, True, False)
    if need_values:
        _, for_values = _backward_operator(ctx, grad, grad_of_x, values, index, False, True)
    return (for_grad, for_x, for_values, *[None] * 12)


torch.library.register_autograd(
    "fullspectrum::sparse_conv2d", _backward_sparse_conv2d, setup_context=_setup_sparse_conv2d
)
torch.library.register_autograd(
    "fullspectrum::sparse_conv2d_backward", _backward_backward, setup_context=_setup_backward
)
register_autocast("sparse_conv2d")
