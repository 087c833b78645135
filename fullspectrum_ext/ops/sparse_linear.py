"""A linear layer's product with a sparse weight matrix, and its derivatives."""

import torch
from torch import Tensor

from fullspectrum_ext import _checks
from fullspectrum_ext.ops._arguments import check_operands, register_autocast, transpose_fields
from fullspectrum_ext.ops.csr import CsrTranspose, csr_transpose

_OPERATORS = torch.ops.fullspectrum


def sparse_linear(
    x: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    *,
    transpose: CsrTranspose | None = None,
    validate: bool = False,
) -> Tensor:
    r"""Apply a linear map whose matrix is sparse.

    Computes :math:`y = x W^\top + b` with :math:`W` in CSR form. Only the stored entries take part,
    forward and backward: the gradient for ``values`` is
    :math:`\partial L / \partial v_p = \sum_n (\partial L / \partial y_{n, r_p})\, x_{n, c_p}` at
    the stored positions :math:`(r_p, c_p)`, never a dense matrix. Sums of float16 and bfloat16 are
    kept in float32 and rounded once. Under autocast all floating arguments take its dtype, as those
    of ``torch.nn.functional.linear`` do.

    Args:
        x: Input; float32, float64, float16 or bfloat16, ``[..., in]``. Differentiable (twice).
        values: Stored entries of :math:`W`, of the dtype and device of ``x``, ``[nnz]``.
            Differentiable (twice).
        crow_indices: Start of each row of :math:`W`; int32 or int64, ``[out + 1]``.
        col_indices: Column of each stored entry, below ``in``; the same dtype, ``[nnz]``.
        out_features: Rows of :math:`W`, ``out``.
        bias: Added to the result, ``[out]``. Differentiable (twice).
        transpose: What :func:`csr_transpose` gives for this topology. The gradient for ``x`` needs
            it; where it is not given, each backward pass computes it again.
        validate: Check every index first. Without it, indices that are no CSR matrix's give an
            error on the CPU and undefined results on CUDA.

    Returns:
        The product, ``[..., out]``, contiguous.

    Raises:
        TypeError: If an argument is no tensor, or dtypes are wrong or differ.
        ValueError: If shapes or devices do not fit together, or indices are found to be wrong.

    References:
        Gale, Zaharia, Young, Elsen: Sparse GPU Kernels for Deep Learning, SC 2020.

    Example:
        >>> crow_indices, col_indices = torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1])
        >>> values = torch.tensor([1.0, 10.0, 100.0])  # [[0, 0, 1], [10, 100, 0]]
        >>> sparse_linear(torch.tensor([[1.0, 2.0, 3.0]]), values, crow_indices, col_indices, 2)
        tensor([[  3., 210.]])
    """  # noqa: DOC502
    _checks.check_tensor("x", x)
    _checks.check_values("x", x)
    if x.dim() == 0:
        raise ValueError("x: expected at least one dimension, got a scalar")
    shape = (out_features, x.shape[-1])
    _checks.check_csr(crow_indices, col_indices, shape, values, validate=validate)
    check_operands(x, values, bias, "out_features", out_features)
    return _OPERATORS.sparse_linear.default(
        x,
        values,
        crow_indices,
        col_indices,
        out_features,
        bias,
        *transpose_fields(transpose, col_indices, x.shape[-1]),
    )


# ---- shapes ------------------------------------------------------------------------------------


@torch.library.register_fake("fullspectrum::sparse_linear")
def _fake_sparse_linear(
    x: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    ccol_indices: Tensor | None = None,
    row_indices: Tensor | None = None,
    permutation: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


@torch.library.register_fake("fullspectrum::sparse_linear_backward")
def _fake_backward(
    grad: Tensor,
    x: Tensor | None,
    values: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    in_features: int,
    ccol_indices: Tensor | None = None,
    row_indices: Tensor | None = None,
    permutation: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return (
        grad.new_empty((*grad.shape[:-1], 0 if values is None else in_features)),
        grad.new_empty((0 if x is None else col_indices.shape[0],)),
    )


# ---- derivatives -------------------------------------------------------------------------------
#
# With D = dL/dy, of y = x W^T + b:   dL/dx = D W,   dL/dv = s(D, x), which is D^T x at the stored
# positions. One operator gives both. They are linear in D, in x and in v, so for gradients u of
# the first and t of the second, with T = t in W's place:
#   in D:   u W^T + x T^T,   in x:   D T,   in v:   s(D, u):   the same two operators again.
#
# torch.library.register_autograd would do for this what is below, but looks up the schema at each
# call, which takes longer than a small layer.


def _backward(
    grad: Tensor,
    x: Tensor | None,
    values: Tensor | None,
    in_features: int,
    crow_indices: Tensor,
    col_indices: Tensor,
    *transpose: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return D W wherever ``values`` are given, and s(D, x) wherever ``x`` is."""
    if x is None and values is None:
        return None, None
    if values is not None and transpose[0] is None:
        transpose = csr_transpose(crow_indices, col_indices, in_features)
    arguments = (grad, x, values, crow_indices, col_indices, in_features, *transpose)
    if torch.is_grad_enabled():
        grad_x, grad_values = _OPERATORS.sparse_linear_backward.default(*arguments)
    else:  # straight to the kernel, past the Python that would find nothing to differentiate
        with torch._C._AutoDispatchBelowAutograd():
            grad_x, grad_values = _OPERATORS.sparse_linear_backward.default(*arguments)
    return None if values is None else grad_x, None if x is None else grad_values


def _redispatch(op, keyset, *args):  # type: ignore[no-untyped-def]
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keyset, *args):  # type: ignore[no-untyped-def]
        x, values, crow_indices, col_indices, _, _, *transposed = args
        need_x, need_values = ctx.needs_input_grad[1:3]
        ctx.save_for_backward(
            x if need_values else None,
            values if need_x else None,
            crow_indices,
            col_indices,
            *transposed,
        )
        ctx.in_features = x.shape[-1]
        return _redispatch(_OPERATORS.sparse_linear.default, keyset, *args)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, values, *index = ctx.saved_tensors
        grad_x, grad_values = _backward(grad, x, values, ctx.in_features, *index)
        grad_bias = None
        if ctx.needs_input_grad[6]:
            grad_bias = grad.sum(dim=list(range(grad.dim() - 1))) if grad.dim() > 1 else grad
        return None, grad_x, grad_values, None, None, None, grad_bias, None, None, None


class _SparseLinearBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keyset, *args):  # type: ignore[no-untyped-def]
        grad, x, values, crow_indices, col_indices, in_features, *transposed = args
        ctx.save_for_backward(grad, x, values, crow_indices, col_indices, *transposed)
        ctx.in_features = in_features
        return _redispatch(_OPERATORS.sparse_linear_backward.default, keyset, *args)

    @staticmethod
    def backward(ctx, of_x, of_values):  # type: ignore[no-untyped-def]
        grad, x, values, *index = ctx.saved_tensors
        need_grad, need_x, need_values = ctx.needs_input_grad[1:4]
        grad_grad = None
        if need_grad:
            pairs = ((of_x, values), (x, of_values))
            products = [
                _OPERATORS.sparse_linear.default(
                    left, right, *index[:2], grad.shape[-1], None, *index[2:]
                )
                for left, right in pairs
                if left is not None and right is not None
            ]
            grad_grad = sum(products[1:], start=products[0])
        grad_x, grad_values = _backward(
            grad,
            of_x if need_values else None,
            of_values if need_x else None,
            ctx.in_features,
            *index,
        )
        return None, grad_grad, grad_x, grad_values, None, None, None, None, None, None


def _register_autograd(name: str, function: type[torch.autograd.Function], arguments: int) -> None:
    op = getattr(_OPERATORS, name).default

    def kernel(keyset, *args):  # type: ignore[no-untyped-def]
        args += (None,) * (arguments - len(args))  # the dispatcher drops default arguments
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return function.apply(keyset, *args)
        return _redispatch(op, keyset, *args)

    _LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)


_LIBRARY = torch.library.Library("fullspectrum", "IMPL")
_register_autograd("sparse_linear", _SparseLinear, 9)
_register_autograd("sparse_linear_backward", _SparseLinearBackward, 9)


register_autocast("sparse_linear")
