"""Leading singular values, in plain torch on a dense matrix."""

import torch
from torch import Tensor


def singular_values(matrix: Tensor, k: int = 2) -> Tensor:
    """Compute the k leading singular values in float64, zeros where there are fewer.

    Args:
        matrix: Dense, ``[rows, cols]``.
        k: How many.

    Returns:
        The values, descending, ``float64``, ``[k]``.

    Example:
        >>> singular_values(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 3)
        tensor([4., 3., 0.], dtype=torch.float64)
    """
    result = torch.zeros(k, dtype=torch.float64)
    if matrix.numel() > 0:
        leading = torch.linalg.svdvals(matrix.detach().double().cpu())[:k]
        result[: leading.numel()] = leading
    return result
