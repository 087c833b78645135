"""Bad arguments in words: which one, what was expected, what came."""

from collections.abc import Collection

import torch
from torch import Tensor

_INDEX_DTYPES = (torch.int32, torch.int64)
VALUE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_tensor(name: str, tensor: object) -> None:
    """Raise TypeError unless ``tensor`` is a torch tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")


def check_values(name: str, values: Tensor) -> None:
    """Raise TypeError unless ``values`` has a floating-point dtype that the operators take."""
    if values.dtype not in VALUE_DTYPES:
        raise TypeError(
            f"{name}: expected float32, float64, float16 or bfloat16, got {values.dtype}"
        )


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise unless ``value`` is an int (else TypeError) in ``[least, most]`` (else ValueError)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least or (most is not None and value > most):
        interval = f"at least {least}" if most is None else f"an int in [{least}, {most}]"
        raise ValueError(f"{name}: expected {interval}, got {value}")


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Raise ValueError unless ``value`` is one of the known names."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def check_same(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors share dtype (TypeError) and device (ValueError)."""
    if tensor.dtype != other.dtype:
        raise TypeError(f"{name} is {tensor.dtype} but {other_name} is {other.dtype}")
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device} but {other_name} is on {other.device}")


def check_csr(
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: tuple[int, int],
    values: Tensor | None = None,
    *,
    validate: bool = False,
) -> None:
    """Raise unless the fields describe a CSR matrix of ``shape``.

    The cheap checks (types, lengths, dtypes, devices) are always made. ``validate=True`` also reads
    every index: the offsets start at 0, never decrease and end at nnz; the columns lie in range
    and rise strictly within each row.

    Args:
        crow_indices: Start of each row, int32 or int64, ``[rows + 1]``.
        col_indices: Column of each stored entry, the same dtype and device, ``[nnz]``.
        shape: Rows and columns.
        values: Stored entries, floating point, ``[nnz]``; None where there are none to check.
        validate: Check every index, at the price of reading them (on CUDA, of waiting for them).

    Raises:
        TypeError: If an argument is no tensor or has a wrong dtype.
        ValueError: If lengths, devices or (with ``validate``) indices are wrong.
    """
    rows, cols = shape
    for name, tensor in (("crow_indices", crow_indices), ("col_indices", col_indices)):
        check_tensor(name, tensor)
        if tensor.dtype not in _INDEX_DTYPES:
            raise TypeError(f"{name}: expected int32 or int64, got {tensor.dtype}")
        if tensor.dim() != 1:
            raise ValueError(f"{name}: expected one dimension, got shape {tuple(tensor.shape)}")
    check_same("crow_indices", crow_indices, "col_indices", col_indices)
    if rows < 0 or cols < 0:
        raise ValueError(f"shape: expected (rows, cols) >= 0, got {tuple(shape)}")
    if crow_indices.numel() != rows + 1:
        raise ValueError(
            f"crow_indices: expected rows + 1 = {rows + 1} entries, got {crow_indices.numel()}"
        )
    if values is not None:
        check_tensor("values", values)
        check_values("values", values)
        if values.dim() != 1 or values.numel() != col_indices.numel():
            raise ValueError(
                f"values: expected one for each of the {col_indices.numel()} col_indices, "
                f"got shape {tuple(values.shape)}"
            )
        if values.device != col_indices.device:
            raise ValueError(
                f"values is on {values.device} but col_indices is on {col_indices.device}"
            )
    if validate:
        _check_indices(crow_indices, col_indices, cols)


def _check_indices(crow_indices: Tensor, col_indices: Tensor, cols: int) -> None:
    nnz = col_indices.numel()
    first, last = int(crow_indices[0]), int(crow_indices[-1])
    if first != 0 or last != nnz:
        raise ValueError(
            f"crow_indices: expected to start at 0 and end at nnz = {nnz}, got {first} and {last}"
        )
    lengths = crow_indices.diff()
    if bool((lengths < 0).any()):
        row = int((lengths < 0).nonzero()[0])
        raise ValueError(f"crow_indices: expected offsets that never decrease, row {row} does")
    if nnz == 0:
        return
    smallest, largest = int(col_indices.min()), int(col_indices.max())
    if smallest < 0 or largest >= cols:
        wrong = smallest if smallest < 0 else largest
        raise ValueError(f"col_indices: expected values in [0, {cols}), got {wrong}")
    row_of = torch.repeat_interleave(torch.arange(lengths.numel(), device=lengths.device), lengths)
    bad = (row_of[1:] == row_of[:-1]) & (col_indices[1:] <= col_indices[:-1])
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        kind = "duplicate" if col_indices[at] == col_indices[at + 1] else "unsorted"
        raise ValueError(
            f"col_indices: expected columns that rise strictly within each row, "
            f"got {kind} columns in row {int(row_of[at])}"
        )
