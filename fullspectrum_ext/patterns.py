"""Which regular pattern a mask follows: N:M groups, blocks, whole rows, columns or kernels."""

import torch
from torch import Tensor

_GROUPS = (2, 4, 8, 16, 32)
_BLOCKS = ((4, 4), (1, 4), (4, 1))
_LARGEST_BLOCK = 64
_FEWEST = 16  # groups or blocks: fewer may follow a pattern by chance
_FULL = 0.99  # of the weights a pattern keeps; a kept weight may happen to be zero


def mask_pattern(mask: Tensor) -> str:
    """Name the pattern of a mask.

    The mask is read as the matrix of the layer: one row an output, one column an input tap. The
    first that holds is named:

    * ``"empty"``, ``"dense"``: nothing, or everything, is kept.
    * ``"rows"``, ``"columns"``, ``"rows and columns"``: exactly the weights where a kept row meets
      a kept column; not all rows, not all columns, or neither.
    * ``"kernels"``: of a convolution, each kernel ``(kH, kW)`` is kept or pruned as a whole.
    * ``"N:M"`` with M of 2, 4, 8, 16, 32, the smallest: of each M neighbours along the input
      channels (their number a multiple of M, and at least 2 M) at most N are kept, and exactly N
      in 99 % of the groups; at least 16 groups.
    * ``"RxC blocks"``: tiles of R rows and C columns, from the first row and column on, are kept
      or pruned as a whole: 4x4, 1x4 or 4x1, or such doubled up to 64 while that holds; R and C
      divide the matrix, at least 16 tiles, at least one of them pruned. Of the weights in kept
      tiles (and kernels) 99 % must be kept.
    * ``"unstructured"``: none of these.

    Args:
        mask: Bool, two or more dimensions, outputs first.

    Returns:
        The name.

    Example:
        >>> rows = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]]).bool()
        >>> mask_pattern(rows.repeat(8, 4))
        '2:4'
    """
    bits = mask.reshape(mask.shape[0], -1)
    kept = int(bits.count_nonzero())
    if kept == 0:
        return "empty"
    if kept == bits.numel():
        return "dense"
    rows, columns = bits.any(dim=1), bits.any(dim=0)
    live_rows, live_columns = int(rows.count_nonzero()), int(columns.count_nonzero())
    if kept == live_rows * live_columns:
        parts = {"rows": live_rows < len(rows), "columns": live_columns < len(columns)}
        return " and ".join(name for name, is_part in parts.items() if is_part)
    kernel = mask.shape[2:].numel()
    if kernel > 1 and _is_blocky(_tile_counts(bits, 1, kernel), kernel):
        return "kernels"
    return _group_pattern(mask) or _block_pattern(bits) or "unstructured"


def _group_pattern(mask: Tensor) -> str | None:
    """Return "N:M" where the mask follows it along its second dimension."""
    channels = mask.shape[1]
    last = mask.movedim(1, -1).reshape(-1, channels)
    for size in _GROUPS:
        if channels % size or channels < 2 * size or mask.numel() < _FEWEST * size:
            continue
        if int(_tile_counts(last[:64], 1, size).max()) == size:
            continue  # a few rows are enough to see it
        counts = _tile_counts(last, 1, size)
        most = int(counts.max())
        if most < size and int((counts == most).count_nonzero()) >= _FULL * counts.numel():
            return f"{most}:{size}"
    return None


def _block_pattern(bits: Tensor) -> str | None:
    for shape in _BLOCKS:
        height, width = shape
        found = None
        counts = None
        while max(height, width) <= _LARGEST_BLOCK:
            fits = bits.shape[0] % height == 0 and bits.shape[1] % width == 0
            if not fits or bits.numel() < _FEWEST * height * width:
                break
            # A larger tile's count is the sum of those of the tiles that it is made of.
            if counts is None:
                counts = _tile_counts(bits, height, width)
            else:
                counts = _tile_counts(counts, *(2 if side > 1 else 1 for side in shape))
            if not _is_blocky(counts, height * width):
                break
            found = f"{height}x{width} blocks"
            height, width = (2 * side if side > 1 else 1 for side in (height, width))
        if found is not None:
            return found
    return None


def _tile_counts(matrix: Tensor, height: int, width: int) -> Tensor:
    """Sum a matrix, bool or of counts, over its tiles."""
    rows, columns = matrix.shape
    tiles = matrix.reshape(rows // height, height, columns // width, width)
    return tiles.sum(dim=(1, 3), dtype=torch.int16)


def _is_blocky(counts: Tensor, size: int) -> bool:
    """Tell whether tiles of ``size`` weights are kept as a whole, and some are pruned."""
    live = int(counts.count_nonzero())
    return live < counts.numel() and int(counts.sum()) >= _FULL * live * size
