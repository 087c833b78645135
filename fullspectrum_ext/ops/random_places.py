"""Free places of a CSR topology, drawn at random."""

import torch
from torch import Tensor

from fullspectrum_ext import _checks

_OPERATORS = torch.ops.fullspectrum


def random_places(
    crow_indices: Tensor,
    col_indices: Tensor,
    cols: int,
    count: int,
    seed: int,
    *,
    validate: bool = False,
) -> Tensor:
    """Draw places where nothing is stored, without replacement: each set is as likely as any other.

    The seed decides, whatever the device and the number of threads: free places are numbered, and
    drawn from in buckets of 4096. How many a bucket gets comes first, by draws from all that are
    left, then each draws its own from a stream of splitmix64 that is its own. Time
    O(rows + nnz + count) as long as no more than half of the matrix is stored, memory O(count), and
    a number for each 4096 places.

    Args:
        crow_indices: Start of each row; int32 or int64, ``[rows + 1]``.
        col_indices: Column of each stored entry, rising within each row; the same dtype, ``[nnz]``.
        cols: Number of columns.
        count: How many, at most ``rows * cols - nnz``.
        seed: An int of 64 bits.
        validate: Check every index of the topology first. Without it, indices that are no CSR
            matrix's give an error on the CPU and undefined results on CUDA.

    Returns:
        Flat, row-major positions ``row * cols + col``, rising; int64, ``[count]``.

    Raises:
        TypeError: If an argument has a wrong type or dtype.
        ValueError: If there are fewer free places, or lengths or devices do not fit.

    References:
        Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.

    Example:
        >>> crow_indices, col_indices = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1])
        >>> random_places(crow_indices, col_indices, cols=3, count=3, seed=0)
        tensor([1, 3, 5])
    """
    _checks.check_integer("cols", cols, 0)
    _checks.check_tensor("crow_indices", crow_indices)
    rows = max(crow_indices.numel() - 1, 0)
    _checks.check_csr(crow_indices, col_indices, (rows, cols), validate=validate)
    _checks.check_integer("count", count, 0, rows * cols - col_indices.shape[0])
    _checks.check_integer("seed", seed, -(2**63), 2**63 - 1)
    return _OPERATORS.random_places.default(
        crow_indices.contiguous(), col_indices.contiguous(), cols, count, seed
    )


@torch.library.register_fake("fullspectrum::random_places")
def _fake(crow_indices: Tensor, col_indices: Tensor, cols: int, count: int, seed: int) -> Tensor:
    return col_indices.new_empty((count,), dtype=torch.int64)
