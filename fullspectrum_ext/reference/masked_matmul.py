"""Pillar 1, masked matmul, by dense products."""

import torch
from torch import Tensor


def sparse_linear(
    x: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    out_features: int,
    bias: Tensor | None = None,
) -> Tensor:
    r"""Compute :math:`y = x W^\top + b` with the dense matrix :math:`W`.

    Args:
        x: Input, ``[..., in]``.
        values: Stored entries of :math:`W`, ``[nnz]``.
        crow_indices: Start of each row, ``[out + 1]``.
        col_indices: Column of each stored entry, ``[nnz]``.
        out_features: Rows of :math:`W`.
        bias: Added to the result, ``[out]``.

    Returns:
        The product, ``[..., out]``.

    Example:
        >>> x, values = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        >>> sparse_linear(x, values, torch.tensor([0, 1, 2]), torch.tensor([1, 0]), 2)
        tensor([6., 4.])
    """
    rows = _row_indices(crow_indices)
    weight = values.new_zeros(out_features, x.shape[-1])
    weight = weight.index_put((rows, col_indices.long()), values)
    return torch.nn.functional.linear(x, weight, bias)


def sparse_linear_backward(
    grad: Tensor, x: Tensor, values: Tensor, crow_indices: Tensor, col_indices: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Compute :math:`D W`, and read the stored positions out of the dense :math:`D^\top x`.

    Args:
        grad: Gradient :math:`D` of the output, ``[..., out]``.
        x: Input, ``[..., in]``.
        values: Stored entries of :math:`W`, ``[nnz]``.
        crow_indices: Start of each row, ``[out + 1]``.
        col_indices: Column of each stored entry, ``[nnz]``.

    Returns:
        The gradients for ``x`` and for ``values``.

    Example:
        >>> grad, x = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
        >>> index = (torch.tensor([0, 1, 2]), torch.tensor([1, 0]))
        >>> sparse_linear_backward(grad, x, torch.tensor([5.0, 6.0]), *index)
        (tensor([[12.,  5.]]), tensor([4., 6.]))
    """
    rows, cols = _row_indices(crow_indices), col_indices.long()
    weight = values.new_zeros(grad.shape[-1], x.shape[-1]).index_put((rows, cols), values)
    batch = x.shape[:-1].numel()
    dense = grad.reshape(batch, grad.shape[-1]).T @ x.reshape(batch, x.shape[-1])
    return grad @ weight, dense[rows, cols]


def keep_masked_(x: Tensor, mask: Tensor) -> Tensor:
    """Set ``x`` to zero where ``mask`` is False, in place.

    Args:
        x: Any shape.
        mask: Bool tensor of the same shape.

    Returns:
        ``x`` itself.

    Example:
        >>> keep_masked_(torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
        tensor([1., 0.])
    """
    return x.masked_fill_(~mask, 0)


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    kernel_size: tuple[int, int],
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    r"""Convolve with the dense weight.

    Args:
        x: Input, ``[batch, in_channels, height, width]``.
        values: Stored entries of the weight as a matrix with one row an output channel, ``[nnz]``.
        crow_indices: Start of each row, ``[out_channels + 1]``.
        col_indices: Column of each stored entry, an input tap, ``[nnz]``.
        kernel_size: Height and width of the kernel.
        bias: Added to the result, ``[out_channels]``.
        stride: As of ``torch.nn.functional.conv2d``, like the three below.
        padding: Zeros around the input.
        dilation: Pixels from one tap to the next.
        groups: Groups of channels.

    Returns:
        The result, ``[batch, out_channels, height, width]``.

    Example:
        >>> x, values = torch.ones(1, 1, 2, 2), torch.tensor([3.0, 4.0])
        >>> sparse_conv2d(x, values, torch.tensor([0, 2]), torch.tensor([0, 3]), (2, 2)).item()
        7.0
    """
    rows, in_channels = crow_indices.numel() - 1, x.shape[1] // groups
    weight = values.new_zeros(rows, in_channels * kernel_size[0] * kernel_size[1])
    weight = weight.index_put((_row_indices(crow_indices), col_indices.long()), values)
    weight = weight.view(rows, in_channels, *kernel_size)
    return torch.nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _row_indices(crow_indices: Tensor) -> Tensor:
    rows = torch.arange(crow_indices.numel() - 1, device=crow_indices.device)
    return torch.repeat_interleave(rows, crow_indices.diff())
