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


@torch.library.register_fake("fullspectrum::sparse_linear_grad_values")
def _fake_grad_values(
    grad: Tensor,
    x: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    ccol_indices: Tensor | None = None,
    row_indices: Tensor | None = None,
    permutation: Tensor | None = None,
) -> Tensor:
    return x.new_empty((col_indices.shape[0],))


# ---- derivatives -------------------------------------------------------------------------------
#
# With D = dL/dy, of y = x W^T + b:   dL/dx = D W,   dL/dv = D^T x at the stored positions.
# The first is the same operator on the transposed matrix. The second, s(D, x), is linear in D and
# in x, so for a gradient u of s:    d<u, s>/dD = x U^T,   d<u, s>/dx = D U,   with U = u in W's
# place: the same two operators again.


def _multiply_by_transpose(
    grad: Tensor, values: Tensor, index: tuple[Tensor, ...], in_features: int
) -> Tensor:
    """Return grad W for W with ``values``; ``index`` holds W's and its transpose's fields."""
    crow_indices, col_indices, *transposed = index
    ccol_indices, row_indices, permutation = (
        transposed
        if transposed[0] is not None
        else csr_transpose(crow_indices, col_indices, in_features)
    )
    return _OPERATORS.sparse_linear.default(
        grad, values.index_select(0, permutation), ccol_indices, row_indices, in_features
    )


def _setup_sparse_linear(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, values, crow_indices, col_indices, _, _, *transposed = inputs
    need_x, need_values = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        x if need_values else None,
        values if need_x else None,
        crow_indices,
        col_indices,
        *transposed,
    )
    ctx.in_features = x.shape[-1]


def _backward_sparse_linear(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    x, values, *index = ctx.saved_tensors
    need_x, need_values, _, _, _, *need_bias = ctx.needs_input_grad
    grad_x = grad_values = grad_bias = None
    if need_x:
        grad_x = _multiply_by_transpose(grad, values, index, ctx.in_features)
    if need_values:
        grad_values = _OPERATORS.sparse_linear_grad_values.default(grad, x, *index)
    if any(need_bias):  # empty where no bias was given: the dispatcher drops default arguments
        grad_bias = grad.sum(dim=list(range(grad.dim() - 1))) if grad.dim() > 1 else grad
    return grad_x, grad_values, None, None, None, grad_bias, None, None, None


def _setup_grad_values(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    grad, x, *index = inputs
    ctx.save_for_backward(grad, x, *index)


def _backward_grad_values(ctx, upstream: Tensor):  # type: ignore[no-untyped-def]
    grad, x, *index = ctx.saved_tensors
    need_grad, need_x = ctx.needs_input_grad[:2]
    grad_grad = grad_x = None
    if need_grad:
        crow_indices, col_indices, *transposed = index
        grad_grad = _OPERATORS.sparse_linear.default(
            x, upstream, crow_indices, col_indices, grad.shape[-1], None, *transposed
        )
    if need_x:
        grad_x = _multiply_by_transpose(grad, upstream, index, x.shape[-1])
    return grad_grad, grad_x, None, None, None, None, None


torch.library.register_autograd(
    "fullspectrum::sparse_linear", _backward_sparse_linear, setup_context=_setup_sparse_linear
)
torch.library.register_autograd(
    "fullspectrum::sparse_linear_grad_values",
    _backward_grad_values,
    setup_context=_setup_grad_values,
)


register_autocast("sparse_linear")
