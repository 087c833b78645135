r"""How the singular values of a layer lie, all of them, beside the laws of random graphs.

Two singular values make the coordinate; the whole density shows what they are part of. It is
estimated by stochastic Lanczos quadrature, from products with the sparse matrix alone: for a random
vector :math:`v` of signs, :math:`\tfrac1d v^T f(B^T B) v` has the mean
:math:`\tfrac1d \sum_i f(\sigma_i^2)`, and Golub-Kahan bidiagonalisation from :math:`v` is the Gauss
quadrature of it. The spread over the probes is the error bar.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fullspectrum_ext.ops.csr import csr_transpose
from fullspectrum_ext.ops.singular_values import singular_values
from fullspectrum_ext.spectral.graph import LayerGraph, layer_graph
from fullspectrum_ext.spectral.sources import Source, csr_tensor, edge_weights, read_source

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SpectralDensity:
    r"""The density of a layer's singular values, an estimate with error bars.

    Of the layer only its live taps and outputs count, so there are
    :math:`d = \min(|L|, |R|)` singular values.

    Attributes:
        sigma: Where the density is given, rising, float64 ``[points]``.
        density: Density there, each singular value widened to a normal curve (folded at 0); its
            integral over all :math:`\sigma \ge 0` is 1.
        error: Standard error of it, from the spread over the probes.
        width: Standard deviation of the normal curves.
        count: How many singular values there are, :math:`d`.
        sigma1: The largest one, which usually lies far outside the others.
        sigma2: The second.
        nodes: Nodes of each probe's quadrature, ``[probes, steps]``.
        weights: Their weights, which add up to 1 for each probe.
        marchenko_pastur: Density at ``sigma`` of a matrix of independent entries of the layer's
            variance: the bulk, without ``sigma1``.
        biregular: Density at ``sigma`` of a random biregular graph of the layer's mean degrees; nan
            for weighted matrices, and where a degree is 1.
    """

    sigma: Array
    density: Array
    error: Array
    width: float
    count: int
    sigma1: float
    sigma2: float
    nodes: Array
    weights: Array
    marchenko_pastur: Array
    biregular: Array

    def plot(self, ax: Any) -> None:
        """Draw the density with two standard errors, and the laws beside it.

        Args:
            ax: Axes of matplotlib.
        """
        ax.plot(self.sigma, self.density, label="estimate ± 2 standard errors")
        low, high = self.density - 2 * self.error, self.density + 2 * self.error
        ax.fill_between(self.sigma, low.clip(0), high, alpha=0.3, lw=0)
        ax.plot(self.sigma, self.marchenko_pastur, "--", label="Marchenko-Pastur")
        if not np.isnan(self.biregular).all():
            ax.plot(self.sigma, self.biregular, ":", label="biregular (Godsil-Mohar)")
        ax.axvline(self.sigma2, color="black", lw=0.8, label="σ2")
        ax.set(xlabel="singular value", ylabel=f"density (σ1 = {self.sigma1:.2f})")
        ax.set(xlim=(0, self.sigma[-1]), ylim=(0, None))
        ax.legend()


def spectral_density(
    source: Source,
    weights: Source | None = None,
    *,
    layer: str | None = None,
    weighted: bool = False,
    probes: int = 16,
    steps: int = 64,
    points: int = 256,
    width: float | None = None,
    seed: int = 0,
) -> SpectralDensity:
    """Estimate the density of the singular values of one layer.

    Args:
        source: As for :func:`fullspectrum_ext.full_spectrum`.
        weights: As there; only read with ``weighted``.
        layer: Name of the layer; may be left out where there is but one.
        weighted: Look at the absolute weights under the mask in the place of the 0/1 matrix.
        probes: Random vectors, at least 2. The error falls with the root of their number.
        steps: Lanczos steps with each. With as many as there are singular values, only the probes
            leave an error.
        points: Points of the grid, from 0 to a tenth beyond the second singular value and the laws.
        width: Standard deviation of the curve that stands for one singular value; by default a
            fiftieth of the grid.
        seed: Of the probes.

    Returns:
        The density with error bars and laws.

    Raises:
        ValueError: If the layer is unknown or has no edge, a weight is not finite, or a number is
            out of range.

    References:
        Ubaru, Chen, Saad: Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature, SIAM J.
        Matrix Anal. Appl. 38, 2017. Golub, Kahan: Calculating the Singular Values and
        Pseudo-Inverse of a Matrix, SIAM J. Numer. Anal. 2, 1965.

    Example:
        >>> mask = torch.rand(40, 90, generator=torch.Generator().manual_seed(0)) < 0.2
        >>> found = spectral_density(mask)
        >>> found.count
        40
        >>> bool(abs(np.trapezoid(found.density, found.sigma) - 1) < 0.05)
        True
    """
    for name, value, least in (("probes", probes, 2), ("steps", steps, 1), ("points", points, 2)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if width is not None and not (width > 0 and math.isfinite(width)):
        raise ValueError(f"width: expected a number > 0, got {width}")
    graph, values = _one_layer(source, weights, layer, weighted)
    crow_indices, col_indices, shape = _live_block(graph)
    count = min(shape)
    first, second = singular_values(crow_indices, col_indices, values, shape).values.tolist()
    variance = _variance(graph.edges, values, shape)
    edge = math.sqrt(variance) * sum(map(math.sqrt, shape))
    sigma = np.linspace(0, 1.1 * max(second, edge, 1e-3 * first), points)
    width = float(sigma[-1]) / 50 if width is None else width
    wide = (crow_indices, col_indices, values, shape)
    nodes, node_weights = _quadrature(*wide, probes, min(steps, count), seed)
    each = np.stack([
        _smoothed(sigma, *probe, width) for probe in zip(nodes, node_weights, strict=True)
    ])
    degrees = graph.right_degree, graph.left_degree
    if shape[0] > shape[1]:
        degrees = degrees[1], degrees[0]
    return SpectralDensity(
        sigma=sigma,
        density=each.mean(axis=0),
        error=each.std(axis=0, ddof=1) / math.sqrt(probes),
        width=width,
        count=count,
        sigma1=first,
        sigma2=second,
        nodes=nodes,
        weights=node_weights,
        marchenko_pastur=marchenko_pastur(sigma, shape, variance),
        biregular=np.full(points, np.nan) if weighted else biregular(sigma, *degrees),
    )


def marchenko_pastur(sigma: Array, shape: tuple[int, int], variance: float) -> Array:
    r"""Return the density of the singular values of a large matrix of independent entries.

    .. math:: \frac{\sqrt{(\sigma_+^2 - \sigma^2)(\sigma^2 - \sigma_-^2)}}{\pi d s^2 \sigma},
        \quad \sigma_\pm = s (\sqrt D \pm \sqrt d)

    Args:
        sigma: Where.
        shape: Of the matrix; ``d`` is the smaller, ``D`` the larger side.
        variance: Of an entry, :math:`s^2`. A mean other than 0 adds one singular value outside.

    Returns:
        The density; zero outside of the bulk, and everywhere where the variance is 0.

    References:
        Marchenko, Pastur: Distribution of Eigenvalues for Some Sets of Random Matrices, 1967.
    """
    if variance <= 0:
        return np.zeros_like(sigma)
    small, large = sorted(shape)
    low = variance * (math.sqrt(large) - math.sqrt(small)) ** 2
    high = variance * (math.sqrt(large) + math.sqrt(small)) ** 2
    safe = np.maximum(sigma, 1e-9 * math.sqrt(high))  # a square has a finite density at 0
    inside = (high - safe**2) * (safe**2 - low)
    return np.sqrt(np.maximum(inside, 0)) / (math.pi * small * variance * safe)


def biregular(sigma: Array, degree: float, other_degree: float) -> Array:
    r"""Return the density of the singular values of a large random biregular graph.

    With :math:`p`, :math:`q` the degrees less 1, such a graph is locally a tree whose resolvent is
    :math:`\sigma / (\sigma^2 - (p + 1)(1 + q t))`, where
    :math:`p q t^2 + (p + q - \sigma^2) t + 1 = 0`. Its bulk is
    :math:`|\sqrt p - \sqrt q| \le \sigma \le \sqrt p + \sqrt q`: the Ramanujan bound is its edge.

    Args:
        sigma: Where.
        degree: Degree of the smaller side, which has the larger degree.
        other_degree: Degree of the other side. Mean degrees make it an approximation.

    Returns:
        The density over the singular values of the smaller side; nan where a degree is 1 or less.

    References:
        Godsil, Mohar: Walk Generating Functions and Spectral Measures of Infinite Graphs, Linear
        Algebra Appl. 107, 1988. McKay: The Expected Eigenvalue Distribution of a Large Regular
        Graph, Linear Algebra Appl. 40, 1981.
    """
    p, q = degree - 1, other_degree - 1
    if not (p > 0 and q > 0):
        return np.full_like(sigma, np.nan)
    safe = np.maximum(sigma, 1e-9 * (math.sqrt(p) + math.sqrt(q)))
    middle = safe**2 - p - q
    root = np.sqrt(np.maximum(4 * p * q - middle**2, 0))
    t = (middle - 1j * root) / (2 * p * q)
    resolvent = safe / (safe**2 - degree * (1 + q * t))
    return np.where(root > 0, 2 / math.pi * np.abs(resolvent.imag), 0.0)


def _one_layer(
    source: Source, weights: Source | None, layer: str | None, weighted: bool
) -> tuple[LayerGraph, Tensor | None]:
    masks, found = read_source(source, weights)
    if layer is None:
        if len(masks) > 1:
            raise ValueError(f"layer: expected one of {', '.join(masks)}, got None")
        layer = next(iter(masks))
    if layer not in masks:
        raise ValueError(f"layer: expected one of {', '.join(masks)}, got {layer!r}")
    graph = layer_graph(layer, masks[layer])
    if not graph.edges:
        raise ValueError(f"source: the layer {layer!r} has no edge")
    if not weighted:
        return graph, None
    if found is None:
        raise ValueError("weights: none are given, but weighted is set")
    return graph, edge_weights(layer, masks[layer], graph, found).double()


def _live_block(graph: LayerGraph) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Leave out the taps and outputs without an edge."""
    lengths = graph.crow_indices.diff()
    starts = graph.crow_indices[:-1][lengths > 0]
    crow_indices = torch.cat([starts, graph.crow_indices[-1:]])
    _, places = graph.col_indices.unique(return_inverse=True)
    shape = (graph.live_outputs, graph.live_taps)
    return crow_indices, places.to(crow_indices.dtype), shape


def _variance(edges: int, values: Tensor | None, shape: tuple[int, int]) -> float:
    """Variance of an entry of the matrix, where those without an edge are 0."""
    size = shape[0] * shape[1]
    if values is None:
        return edges / size * (1 - edges / size)
    mean = float(values.sum()) / size
    return max(float(values.square().sum()) / size - mean**2, 0.0)


def _quadrature(
    crow_indices: Tensor,
    col_indices: Tensor,
    values: Tensor | None,
    shape: tuple[int, int],
    probes: int,
    steps: int,
    seed: int,
) -> tuple[Array, Array]:
    """Nodes and weights of the Gauss quadrature of each probe, ``[probes, steps]``."""
    if values is None:
        values = torch.ones(len(col_indices), dtype=torch.float64, device=col_indices.device)
    wide = csr_tensor(crow_indices, col_indices, values, shape)
    transposed = csr_transpose(crow_indices, col_indices, shape[1])
    tall = csr_tensor(
        transposed.crow_indices,
        transposed.col_indices,
        values[transposed.permutation.long()],
        shape[::-1],
    )
    if shape[1] > shape[0]:  # from the smaller side: no zeros that are there by shape alone
        wide, tall = tall, wide
    count = wide.shape[1]
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (count, probes), generator=generator).to(values) * 2 - 1
    diagonal, above = _golub_kahan(wide, tall, signs / math.sqrt(count), steps)
    bidiagonal = np.zeros((probes, steps, steps))
    place = np.arange(steps)
    bidiagonal[:, place, place] = diagonal.T.cpu().numpy()
    bidiagonal[:, place[:-1], place[1:]] = above[:-1].T.cpu().numpy()
    _, nodes, right = np.linalg.svd(bidiagonal)
    return nodes, right[:, :, 0] ** 2


def _golub_kahan(
    matrix: Tensor, transposed: Tensor, v: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Bidiagonalise from each column of ``v`` at once, with full reorthogonalisation.

    Args:
        matrix: CSR, ``[D, d]``.
        transposed: Its transpose, CSR.
        v: Starting vectors of length 1, ``[d, probes]``.
        steps: How many.

    Returns:
        The diagonals and what stands above them, ``[steps, probes]``; zeros from where the Krylov
        space of a probe is exhausted.
    """
    tiny = 1e-12 * float(matrix.values().norm())
    lefts: list[Tensor] = []
    rights, diagonal, above = [v], [], []
    for step in range(steps):
        length, u = _next(matrix @ rights[step], lefts, tiny)
        diagonal.append(length)
        lefts.append(u)
        length, v = _next(transposed @ u, rights, tiny)
        above.append(length)
        rights.append(v)
    return torch.stack(diagonal), torch.stack(above)


def _next(vector: Tensor, basis: list[Tensor], tiny: float) -> tuple[Tensor, Tensor]:
    """Take the part of each column outside of its basis; its length and direction."""
    if basis:
        span = torch.stack(basis)  # [steps, n, probes]
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            vector = vector - torch.einsum("snp,sp->np", span, (span * vector).sum(dim=1))
    length = vector.norm(dim=0)
    alive = length > tiny
    return length * alive, torch.where(alive, vector / length.clamp(min=tiny), 0.0)


def _smoothed(sigma: Array, nodes: Array, weights: Array, width: float) -> Array:
    """A sum of normal curves of area ``weights``; what falls below 0 is folded back."""
    places = (sigma[:, None] - nodes) / width, (sigma[:, None] + nodes) / width
    curves = sum(np.exp(-(place**2) / 2) for place in places)
    return np.asarray(curves @ weights / (width * math.sqrt(2 * math.pi)))
