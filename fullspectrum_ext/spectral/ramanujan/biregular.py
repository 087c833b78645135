"""Random masks whose rows have equal degrees, and whose columns do: almost surely Ramanujan."""

import numpy as np
import torch

from fullspectrum_ext import _checks
from fullspectrum_ext.spectral.ramanujan.certificate import (
    RamanujanMask,
    certify,
    numpy_generator,
)

_ROUNDS = 200  # a draw is repaired in about ten; small crowded ones can get stuck


def biregular_random(
    rows: int,
    cols: int,
    *,
    edges: int | None = None,
    degree: int | None = None,
    generator: torch.Generator | None = None,
    tries: int = 20,
) -> RamanujanMask:
    r"""Draw a random mask with equal degrees, again until it is Ramanujan.

    The degrees of two rows differ by at most one, as do those of two columns, and the number of
    edges is exact. Which rows and columns get one more is random. Stubs of rows and columns are
    joined at random (the configuration model); then each surplus copy of an edge
    :math:`(r_1, c_1)` and a random other edge :math:`(r_2, c_2)` become :math:`(r_1, c_2)` and
    :math:`(r_2, c_1)`, which keeps all degrees, until no edge is double. More than half of all
    edges are drawn as the complement of such a mask.

    Second singular values of random biregular graphs are near
    :math:`\sqrt{d_L - 1} + \sqrt{d_R - 1}`, some above it and some below: of ``tries`` draws the
    first below is taken, or else the best.

    Args:
        rows: Output units.
        cols: Input taps, for a convolution ``C_in * kH * kW``.
        edges: How many ones the mask has, in ``[1, rows * cols]``. Give this or ``degree``.
        degree: How many ones each row has, in ``[1, cols]``.
        generator: Source of randomness; by default torch's global one.
        tries: Draws at most.

    Returns:
        The mask with its certificate.

    Raises:
        TypeError: If a number is no int.
        ValueError: If a number is out of range, or not exactly one of ``edges`` and ``degree`` is
            given.

    References:
        Bollobás: A probabilistic proof of an asymptotic formula for the number of labelled regular
        graphs, 1980 (the configuration model). Brito, Dumitriu, Harris: Spectral gap in random
        bipartite biregular graphs and applications, 2022.

    Example:
        >>> seven = biregular_random(7, 7, degree=3, generator=torch.Generator().manual_seed(0))
        >>> seven.mask.sum(0).tolist(), seven.mask.sum(1).tolist(), seven.is_ramanujan
        ([3, 3, 3, 3, 3, 3, 3], [3, 3, 3, 3, 3, 3, 3], True)
    """  # noqa: DOC502 (the checks below raise)
    edges = _edges(rows, cols, edges, degree)
    _checks.check_integer("tries", tries, 1)
    rng = numpy_generator(generator)
    best = _certified_draw(rows, cols, edges, rng)
    for _ in range(tries - 1):
        if best.is_ramanujan:
            break
        drawn = _certified_draw(rows, cols, edges, rng)
        best = drawn if drawn.gap > best.gap else best
    return best


def _edges(rows: int, cols: int, edges: int | None, degree: int | None) -> int:
    _checks.check_integer("rows", rows, 1)
    _checks.check_integer("cols", cols, 1)
    if (edges is None) == (degree is None):
        given = "neither" if edges is None else "both"
        raise ValueError(f"edges, degree: expected exactly one of them, got {given}")
    if degree is not None:
        _checks.check_integer("degree", degree, 1, cols)
        return rows * degree
    _checks.check_integer("edges", edges, 1, rows * cols)
    assert edges is not None
    return edges


def _certified_draw(rows: int, cols: int, edges: int, rng: np.random.Generator) -> RamanujanMask:
    return certify(torch.from_numpy(_draw(rows, cols, edges, rng)))


def _draw(rows: int, cols: int, edges: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a mask; bool ``[rows, cols]``."""
    if 2 * edges > rows * cols:
        return ~_draw(rows, cols, rows * cols - edges, rng)
    while True:
        row_of = np.repeat(np.arange(rows), _degrees(rows, edges, rng))
        col_of = rng.permutation(np.repeat(np.arange(cols), _degrees(cols, edges, rng)))
        kept = _without_doubles(row_of, col_of, (rows, cols), rng)
        if kept is not None:
            return kept


def _degrees(nodes: int, edges: int, rng: np.random.Generator) -> np.ndarray:
    """Spread the edges over the nodes, as evenly as can be; ``[nodes]``."""
    degrees = np.full(nodes, edges // nodes)
    degrees[rng.permutation(nodes)[: edges % nodes]] += 1
    return degrees


def _without_doubles(
    row_of: np.ndarray, col_of: np.ndarray, shape: tuple[int, int], rng: np.random.Generator
) -> np.ndarray | None:
    """Switch surplus copies of edges away.

    Args:
        row_of: Row of each edge, ``[edges]``.
        col_of: Column of each edge, ``[edges]``; changed in place.
        shape: Rows and columns.
        rng: Chooses the edges to switch with.

    Returns:
        The mask, bool ``[rows, cols]``; None where switching got stuck.
    """
    edges = len(row_of)
    kept = np.zeros(shape, dtype=bool)
    kept[row_of, col_of] = True
    first = np.unique(row_of * shape[1] + col_of, return_index=True)[1]
    surplus = np.setdiff1d(np.arange(edges), first, assume_unique=True)
    for _ in range(_ROUNDS):
        if not len(surplus):
            return kept
        partners, chosen = np.unique(rng.integers(edges, size=len(surplus)), return_index=True)
        switched = _switch(row_of, col_of, kept, surplus, chosen, partners)
        surplus = np.delete(surplus, switched)
    return None


def _switch(
    row_of: np.ndarray,
    col_of: np.ndarray,
    kept: np.ndarray,
    surplus: np.ndarray,
    chosen: np.ndarray,
    partners: np.ndarray,
) -> np.ndarray:
    """Exchange the columns of surplus copies and their partners where only new edges come of it.

    Args:
        row_of: Row of each edge, ``[edges]``.
        col_of: Column of each edge, ``[edges]``; changed in place, as is ``kept``.
        kept: The mask, bool ``[rows, cols]``.
        surplus: Edges that are there already, ``[surplus]``.
        chosen: Positions in ``surplus`` to treat, ``[n]``.
        partners: The edge to switch each with, all different, ``[n]``.

    Returns:
        Positions in ``surplus`` that were switched.
    """
    cols = kept.shape[1]
    copies = surplus[chosen]
    new = np.stack([
        row_of[copies] * cols + col_of[partners],
        row_of[partners] * cols + col_of[copies],
    ])
    flat = kept.reshape(-1)
    doubled = row_of[surplus] * cols + col_of[surplus]
    # An edge with a copy is no partner: taking it away would leave the copy in its place.
    fine = ~np.isin(row_of[partners] * cols + col_of[partners], doubled) & ~flat[new].any(axis=0)
    chosen, copies, partners, new = chosen[fine], copies[fine], partners[fine], new[:, fine]
    # Two switches may not make the same edge: the first of them does.
    is_first = np.zeros(new.size, dtype=bool)
    is_first[np.unique(new, return_index=True)[1]] = True
    alone = is_first.reshape(new.shape).all(axis=0)
    copies, partners = copies[alone], partners[alone]
    flat[row_of[partners] * cols + col_of[partners]] = False
    flat[new[:, alone].reshape(-1)] = True
    col_of[copies], col_of[partners] = col_of[partners], col_of[copies]
    return chosen[alone]
