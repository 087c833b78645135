"""Masks of shifted identity matrices: a few integers say where all the weights are."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fullspectrum_ext import _checks
from fullspectrum_ext.spectral.ramanujan.certificate import (
    RamanujanMask,
    measure,
    numpy_generator,
)


@dataclass(frozen=True, eq=False, repr=False)
class QuasiCyclicMask(RamanujanMask):
    """A mask that is a grid of shifted identity matrices.

    Attributes:
        shifts: Shift of each block, int64 ``[block_rows, block_cols]``; :func:`mask_from_shifts`
            makes the mask of them.
        q: Side of a block.
    """

    shifts: Tensor
    q: int


def mask_from_shifts(shifts: Tensor, q: int) -> Tensor:
    """Expand a grid of shifts: block (i, j) has its ones at ``(a, (a + shifts[i, j]) % q)``.

    Args:
        shifts: int64 ``[block_rows, block_cols]``.
        q: Side of a block, at least 1.

    Returns:
        Bool, ``[block_rows * q, block_cols * q]``.

    Raises:
        TypeError: If ``shifts`` is no int64 tensor or ``q`` no int.
        ValueError: If ``shifts`` does not have two dimensions, or ``q`` is below 1.

    Example:
        >>> mask_from_shifts(torch.tensor([[0, 1]]), 2).int()
        tensor([[1, 0, 0, 1],
                [0, 1, 1, 0]], dtype=torch.int32)
    """
    _checks.check_tensor("shifts", shifts)
    _checks.check_integer("q", q, 1)
    if shifts.dtype != torch.int64:
        raise TypeError(f"shifts: expected int64, got {shifts.dtype}")
    if shifts.dim() != 2:
        raise ValueError(f"shifts: expected two dimensions, got {tuple(shifts.shape)}")
    block_rows, block_cols = shifts.shape
    mask = torch.zeros(block_rows, q, block_cols, q, dtype=torch.bool, device=shifts.device)
    columns = (shifts[:, None, :] + torch.arange(q, device=shifts.device)[None, :, None]) % q
    mask.scatter_(3, columns[..., None], True)
    return mask.reshape(block_rows * q, block_cols * q)


def quasi_cyclic(
    block_rows: int,
    block_cols: int,
    q: int,
    *,
    generator: torch.Generator | None = None,
    tries: int = 100,
) -> QuasiCyclicMask:
    r"""Choose the best of some random grids of ``q x q`` shifted identity matrices.

    Every row has ``block_cols`` ones and every column ``block_rows``. The Fourier transform turns
    the mask, shifts :math:`s_{ij}`, into ``q`` matrices as small as the grid, whose singular values
    are together those of the mask. That of frequency 0 is all ones; hence

    .. math:: \sigma_2 = \max_{f = 1, \dots, q - 1} \bigl\| e^{2 \pi i f s_{ij} / q} \bigr\|_2

    for blocks with ``q > 1``: a try costs some small eigenvalue problems.

    Args:
        block_rows: Rows of the grid.
        block_cols: Columns of the grid.
        q: Side of a block.
        generator: Source of randomness; by default torch's global one.
        tries: Grids to draw.

    Returns:
        The mask of the smallest second singular value, its shifts and its certificate.

    Raises:
        TypeError: If a number is no int.
        ValueError: If a number is below 1.

    References:
        Fossorier: Quasi-cyclic low-density parity-check codes from circulant permutation matrices,
        IEEE Transactions on Information Theory 50, 2004.

    Example:
        >>> found = quasi_cyclic(4, 4, 16, generator=torch.Generator().manual_seed(0))
        >>> tuple(found.mask.shape), found.is_ramanujan
        ((64, 64), True)
    """  # noqa: DOC502 (the checks below raise)
    for name, size in (("block_rows", block_rows), ("block_cols", block_cols), ("q", q)):
        _checks.check_integer(name, size, 1)
    _checks.check_integer("tries", tries, 1)
    rng = numpy_generator(generator)
    drawn = (rng.integers(q, size=(block_rows, block_cols)) for _ in range(tries))
    return _certified(min(drawn, key=lambda shifts: fourier_sigma2(shifts, q)), q)


def array_code(
    q: int, block_rows: int | None = None, block_cols: int | None = None
) -> QuasiCyclicMask:
    r"""Return the array code's mask: block (i, j) is the identity shifted by ``i * j``.

    For a prime ``q`` no two rows have more than one column in common. Where ``block_cols = q``,
    the default, or ``block_rows = q``, :math:`\sigma_2 = \sqrt{q}`. Smaller grids are corners of
    that one, with a smaller gap.

    Args:
        q: Side of a block, a prime.
        block_rows: Rows of the grid, in ``[1, q]``.
        block_cols: Columns of the grid, in ``[1, q]``.

    Returns:
        The mask, its shifts and its certificate.

    Raises:
        TypeError: If a number is no int.
        ValueError: If ``q`` is no prime, or the grid is larger than ``q``.

    References:
        Fan: Array codes as low-density parity-check codes, 2nd International Symposium on Turbo
        Codes, 2000.

    Example:
        >>> code = array_code(11)
        >>> tuple(code.mask.shape), round(code.sigma2**2, 6), code.is_ramanujan
        ((121, 121), 11.0, True)
    """  # noqa: DOC502 (the checks below raise)
    _checks.check_integer("q", q, 2)
    if any(q % divisor == 0 for divisor in range(2, math.isqrt(q) + 1)):
        raise ValueError(f"q: expected a prime, got {q}")
    block_rows = q if block_rows is None else block_rows
    block_cols = q if block_cols is None else block_cols
    _checks.check_integer("block_rows", block_rows, 1, q)
    _checks.check_integer("block_cols", block_cols, 1, q)
    return _certified(np.outer(np.arange(block_rows), np.arange(block_cols)) % q, q)


def fourier_sigma2(shifts: np.ndarray, q: int) -> float:
    """Return the second singular value of the mask of some shifts, by its Fourier blocks.

    Args:
        shifts: Integers in ``[0, q)``, ``[block_rows, block_cols]``.
        q: Side of a block.

    Returns:
        The largest singular value of the blocks of frequency 1 to ``q - 1``; 0 if ``q`` is 1.
    """
    if q == 1:
        return 0.0
    # Frequencies f and q - f give conjugate blocks.
    frequencies = np.arange(1, q // 2 + 1)
    blocks = np.exp(2j * np.pi / q * (frequencies[:, None, None] * shifts % q))
    if shifts.shape[0] > shifts.shape[1]:
        blocks = blocks.swapaxes(1, 2)
    gram = blocks @ blocks.conj().swapaxes(1, 2)
    return math.sqrt(np.linalg.eigvalsh(gram)[:, -1].max())


def _certified(shifts: np.ndarray, q: int) -> QuasiCyclicMask:
    grid = torch.from_numpy(shifts)
    mask = mask_from_shifts(grid, q)
    return QuasiCyclicMask(mask, **measure(mask), shifts=grid, q=q)
