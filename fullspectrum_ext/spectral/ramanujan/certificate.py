"""What is known for certain about a mask: its bound and its two leading singular values."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fullspectrum_ext import _checks
from fullspectrum_ext.ops.singular_values import singular_values
from fullspectrum_ext.spectral.bounds import delta_r
from fullspectrum_ext.spectral.graph import layer_graph


@dataclass(frozen=True, eq=False)
class RamanujanMask:
    r"""A mask and its certificate.

    Attributes:
        mask: True where a weight is kept; bool ``[rows, cols]``, on the CPU.
        bound: :math:`\sqrt{d_L - 1} + \sqrt{d_R - 1}`, the degrees averaged over the columns and
            the rows that have an edge. It says little where one of them is below 2.
        sigma1: First singular value of the mask.
        sigma2: Second one.
        sigma2_bound: How far ``sigma2`` can be off, as certified by
            :func:`fullspectrum_ext.ops.singular_values`.
    """

    mask: Tensor
    bound: float
    sigma1: float
    sigma2: float
    sigma2_bound: float

    @property
    def gap(self) -> float:
        r"""The Ramanujan gap :math:`\Delta_R`, ``bound - sigma2``."""
        return self.bound - self.sigma2

    @property
    def is_ramanujan(self) -> bool:
        """Whether the gap is not negative, whatever the error of ``sigma2``."""
        return self.gap >= self.sigma2_bound

    def certificate(self) -> dict[str, float | bool]:
        """Return all but the mask as values that JSON can hold."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {**numbers, "gap": self.gap, "is_ramanujan": self.is_ramanujan}

    def __repr__(self) -> str:
        rows, cols = self.mask.shape
        return (
            f"{type(self).__name__}({rows} x {cols}, {int(self.mask.count_nonzero())} edges, "
            f"sigma2 {self.sigma2:.4f}, bound {self.bound:.4f}, gap {self.gap:+.4f})"
        )


_NUMBERS = [field.name for field in fields(RamanujanMask) if field.name != "mask"]


def certify(mask: Tensor) -> RamanujanMask:
    r"""Measure how far the second singular value of a mask is below the Ramanujan bound.

    Args:
        mask: Zeros and ones, any dtype, ``[rows, cols]``, or a weight's mask
            ``[C_out, C_in, kH, kW]``, which is read as ``[C_out, C_in kH kW]``.

    Returns:
        The mask with its certificate.

    Raises:
        TypeError: If the mask is no tensor.
        ValueError: If it has fewer than two dimensions, other values than 0 and 1, or no one.

    Example:
        >>> certify(torch.ones(3, 3))
        RamanujanMask(3 x 3, 9 edges, sigma2 0.0000, bound 2.8284, gap +2.8284)
    """  # noqa: DOC502 (the checks below raise)
    kept = as_mask("mask", mask)
    return RamanujanMask(kept, **measure(kept))


def measure(kept: Tensor) -> dict[str, Any]:
    """Compute the fields of a certificate but for the mask.

    Args:
        kept: What :func:`as_mask` returned.

    Returns:
        Field name to value.
    """
    graph = layer_graph("mask", kept)
    sigma, bounds = singular_values(graph.crow_indices, graph.col_indices, None, graph.shape, 2)
    return {
        "bound": delta_r(graph.left_degree, graph.right_degree, 0.0),
        "sigma1": float(sigma[0]),
        "sigma2": float(sigma[1]),
        "sigma2_bound": float(bounds[1]),
    }


def as_mask(name: str, mask: Tensor) -> Tensor:
    """Return a mask as a bool matrix on the CPU, after checking it.

    Args:
        name: The argument's name, for the message.
        mask: Zeros and ones, two or more dimensions.

    Returns:
        Bool, ``[rows, cols]``.

    Raises:
        ValueError: If there are fewer than two dimensions, other values, or no one.
    """
    _checks.check_tensor(name, mask)
    if mask.dim() < 2:
        raise ValueError(f"{name}: expected at least two dimensions, got {tuple(mask.shape)}")
    flat = mask.detach().cpu().flatten(1)
    kept = flat != 0
    if flat.dtype != torch.bool and not torch.equal(kept.to(flat.dtype), flat):
        raise ValueError(f"{name}: expected only zeros and ones")
    if not bool(kept.any()):
        raise ValueError(f"{name}: expected at least one 1, got none")
    return kept


def numpy_generator(generator: torch.Generator | None) -> np.random.Generator:
    """Seed a NumPy generator by the next number of torch's, by default of its global one."""
    device = None if generator is None else generator.device
    seed = torch.randint(2**63 - 1, (), generator=generator, device=device)
    return np.random.default_rng(int(seed))
