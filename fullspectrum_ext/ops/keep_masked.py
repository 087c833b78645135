"""Zero what a mask removes, in place."""

import torch
from torch import Tensor

from fullspectrum_ext import _checks


def keep_masked_(x: Tensor, mask: Tensor) -> Tensor:
    """Set ``x`` to zero wherever ``mask`` is False, in place, in one pass over memory.

    It selects and does not multiply: NaN and infinite values under a False become zero too. Not
    differentiable.

    Args:
        x: float32, float64, float16 or bfloat16, contiguous, any shape; it is changed.
        mask: Bool tensor of the same shape and device, contiguous.

    Returns:
        ``x`` itself.

    Raises:
        TypeError: If an argument is no tensor or of a wrong dtype.
        ValueError: If shapes, devices or strides do not fit.

    Example:
        >>> keep_masked_(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
        tensor([1., 0.])
    """
    _checks.check_tensor("x", x)
    _checks.check_values("x", x)
    _checks.check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected bool, got {mask.dtype}")
    if mask.shape != x.shape:
        raise ValueError(
            f"mask: expected the shape of x, {tuple(x.shape)}, got {tuple(mask.shape)}"
        )
    if mask.device != x.device:
        raise ValueError(f"mask is on {mask.device} but x is on {x.device}")
    if not (x.is_contiguous() and mask.is_contiguous()):
        raise ValueError("x, mask: expected contiguous tensors")
    torch.ops.fullspectrum.keep_masked_.default(x, mask)
    return x


@torch.library.register_fake("fullspectrum::keep_masked_")
def _fake_keep_masked(x: Tensor, mask: Tensor) -> None:
    return None
