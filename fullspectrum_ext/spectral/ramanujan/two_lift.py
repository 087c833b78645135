"""Larger Ramanujan masks out of a smaller one, doubled again and again."""

import numpy as np
import torch
from torch import Tensor

from fullspectrum_ext import _checks
from fullspectrum_ext.ops.singular_values import singular_values
from fullspectrum_ext.spectral.graph import layer_graph
from fullspectrum_ext.spectral.ramanujan.certificate import (
    RamanujanMask,
    as_mask,
    certify,
    numpy_generator,
)


def two_lift(
    base: Tensor,
    lifts: int,
    *,
    generator: torch.Generator | None = None,
    tries: int = 20,
) -> RamanujanMask:
    r"""Double a mask ``lifts`` times in rows and columns, with the degrees it has.

    A lift replaces every edge by two: parallel ones where its sign is +, crossed ones where it
    is -. The lifted mask has the singular values of the base and those of the signed base. So the
    signing of smallest :math:`\sigma_1` is kept, of ``tries`` random ones at each lift. That some
    signing keeps a Ramanujan biregular graph Ramanujan is a theorem; that a random one is found is
    not, which the certificate shows.

    Args:
        base: Zeros and ones, ``[rows, cols]``; for instance all ones.
        lifts: How often to double; 0 returns the base, certified.
        generator: Source of randomness; by default torch's global one.
        tries: Signings to draw at each lift.

    Returns:
        The mask, ``[rows * 2**lifts, cols * 2**lifts]``, with its certificate.

    Raises:
        TypeError: If the base is no tensor or a number no int.
        ValueError: If the base is no mask or a number is out of range.

    References:
        Marcus, Spielman, Srivastava: Interlacing families I: bipartite Ramanujan graphs of all
        degrees, Annals of Mathematics 182, 2015. Bilu, Linial: Lifts, discrepancy and nearly
        optimal spectral gap, Combinatorica 26, 2006.

    Example:
        >>> cube = two_lift(torch.ones(4, 4), 3, generator=torch.Generator().manual_seed(0))
        >>> tuple(cube.mask.shape), cube.mask.sum(1).unique().tolist(), cube.is_ramanujan
        ((32, 32), [4], True)
    """  # noqa: DOC502 (the checks below raise)
    mask = as_mask("base", base)
    _checks.check_integer("lifts", lifts, 0)
    _checks.check_integer("tries", tries, 1)
    rng = numpy_generator(generator)
    for _ in range(lifts):
        signs = 2 * rng.integers(2, size=(tries, int(mask.count_nonzero()))) - 1
        mask = lifted(mask, _best_signing(mask, torch.from_numpy(signs)))
    return certify(mask)


def lifted(mask: Tensor, signs: Tensor) -> Tensor:
    """Lift a mask by a signing of its edges.

    Args:
        mask: Bool, ``[rows, cols]``.
        signs: +1 or -1 for each edge in row-major order, ``[edges]``.

    Returns:
        Bool, ``[2 rows, 2 cols]``.
    """
    parallel, crossed = torch.zeros_like(mask), torch.zeros_like(mask)
    parallel[mask] = signs > 0
    crossed[mask] = signs < 0
    return torch.cat([torch.cat([parallel, crossed], 1), torch.cat([crossed, parallel], 1)])


def _best_signing(mask: Tensor, signs: Tensor) -> Tensor:
    """Choose the signing, of ``[tries, edges]``, with the smallest first singular value."""
    graph = layer_graph("base", mask)
    tries = len(signs)
    sigma = singular_values(
        [graph.crow_indices] * tries,
        [graph.col_indices] * tries,
        list(signs.double()),
        [graph.shape] * tries,
        1,
    )
    return signs[int(np.argmin(sigma.values[:, 0].numpy()))]
