"""What the operators with a sparse weight share: checks in words, and the autocast rule."""

import torch
from torch import Tensor

from fullspectrum_ext import _checks
from fullspectrum_ext.ops.csr import CsrTranspose

_AUTOCAST = torch.library.Library("fullspectrum", "IMPL")


def check_operands(x: Tensor, values: Tensor, bias: Tensor | None, outputs: str, rows: int) -> None:
    """Raise unless ``values`` and ``bias``, one for each of ``rows``, go together with ``x``.

    Args:
        x: The input.
        values: The stored weights.
        bias: None, or one element for each row of the weight matrix.
        outputs: What the rows are called, for the message.
        rows: Their number.

    Raises:
        TypeError: If ``bias`` is no tensor, or dtypes are wrong or differ.
        ValueError: If ``bias`` has another shape, or devices differ.
    """
    if bias is not None:
        _checks.check_tensor("bias", bias)
        _checks.check_values("bias", bias)
        if bias.shape != (rows,):
            raise ValueError(
                f"bias: expected shape ({rows},), one for each of {outputs}, "
                f"got {tuple(bias.shape)}"
            )
    autocasts = _autocasts(x.device.type)
    for name, tensor in (("values", values), ("bias", bias)):
        if tensor is None:
            continue
        if not autocasts:
            _checks.check_same(name, tensor, "x", x)
        elif tensor.device != x.device:  # the dtypes will be made to agree
            raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}")


def _autocasts(device_type: str) -> bool:
    # some devices (meta) know no autocast, and asking for its state is an error there
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def transpose_fields(
    transpose: CsrTranspose | None, col_indices: Tensor, cols: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the transposed index as the operators take it; raise if it is of another matrix."""
    if transpose is None:
        return None, None, None
    ccol_indices, row_indices, permutation = transpose
    nnz = col_indices.shape[0]
    lengths = (ccol_indices.shape[0], row_indices.shape[0], permutation.shape[0])
    if lengths != (cols + 1, nnz, nnz):
        raise ValueError(
            f"transpose: expected the csr_transpose of a matrix with {cols} columns and {nnz} "
            f"entries, of lengths {(cols + 1, nnz, nnz)}, got {lengths}"
        )
    _checks.check_same("transpose", row_indices, "col_indices", col_indices)
    return ccol_indices, row_indices, permutation


def register_autocast(name: str) -> None:
    """Let an operator take all its floating arguments in autocast's dtype, float64 excepted."""
    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _register_autocast(name, device_type, key)


def _register_autocast(name: str, device_type: str, key: str) -> None:
    # torch.library.register_autocast fixes one dtype; this follows the one that is active.
    def cast(argument: object) -> object:
        if (
            not isinstance(argument, Tensor)
            or not argument.is_floating_point()
            or argument.dtype == torch.float64
        ):
            return argument
        return argument.to(torch.get_autocast_dtype(device_type))

    def kernel(*arguments: object) -> object:
        arguments = tuple(cast(argument) for argument in arguments)
        with torch.autocast(device_type, enabled=False):
            return getattr(torch.ops.fullspectrum, name).default(*arguments)

    _AUTOCAST.impl(name, kernel, key)
