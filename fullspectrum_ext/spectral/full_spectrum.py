"""The full-spectrum coordinate of a network: graphs, singular values, gaps."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fullspectrum_ext._layers import Patterns, select_names
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.ops.regular_subgraphs import RegularSubgraph, regular_subgraphs
from fullspectrum_ext.ops.singular_values import singular_values, subgraph_singular_values
from fullspectrum_ext.spectral.bounds import (
    cheeger_factor,
    delta_r,
    delta_s,
    expander_mixing,
    narc,
    ramanujan_bound,
)
from fullspectrum_ext.spectral.coordinates import FullSpectrum, LayerSpectrum, SubgraphSpectrum
from fullspectrum_ext.spectral.graph import Flavor, LayerGraph, is_valid, layer_graph
from fullspectrum_ext.spectral.paths import chain_of, effective_densities
from fullspectrum_ext.spectral.sources import Source, edge_weights, read_source

_FEWEST_TAPS = {"neurips": 2, "iclr": 3}
Pair = tuple[float, float]
_UNDEFINED: Pair = (math.nan, math.nan)


def full_spectrum(
    source: Source,
    weights: Source | None = None,
    *,
    flavor: Flavor = "neurips",
    min_degree: float = 3,
    tol: float = 1e-6,
    chain: bool | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
) -> FullSpectrum:
    r"""Place a sparse network in the full-spectrum view.

    For every layer: the Ramanujan gap :math:`\Delta_R` of its mask, the spectral gap
    :math:`\lambda` of its weights under the mask, and the means of both over its left-regular
    subgraphs, IMDB and :math:`\lambda_{imsg}`. The subgraph of degree ``d`` has the input taps with
    ``d`` edges and the outputs that these reach.

    Args:
        source: A model (its masks as :meth:`fullspectrum_ext.MaskSet.from_model` reads them), a
            :class:`fullspectrum_ext.MaskSet`, a mapping of names to tensors of zeros and ones, a
            state dict (a mapping of tensors that are not all zeros and ones: dense weights, or any
            sparse form that ``fullspectrum score`` reads), a mapping of names to SciPy sparse
            matrices, or a single tensor or SciPy matrix, which gets the name ``"weight"``.
            Tensors and SciPy matrices that hold zeros and ones alone are masks; otherwise they are
            weights, and what is not zero is an edge.
        weights: Name to weight, a state dict or a model; by default the weights of ``source``.
            Without any, the two weighted coordinates are undefined. Only compare networks on the
            same weights: :math:`\lambda` grows with their scale.
        flavor: ``"neurips"``: subgraphs of two taps or more, each gap times
            ``max(|L|, |R|) / (|L| + |R| - 1)``. ``"iclr"``: of three taps or more and both degrees
            at least ``min_degree``, without the factor.
        min_degree: Graphs of smaller degree have no gap; see
            :func:`fullspectrum_ext.spectral.graph.is_valid`.
        tol: Relative tolerance of the singular values; their certified bounds are in the result.
        chain: Whether the layers of ``source`` feed each other one after the other, for the
            effective density. None: if a model is given and they are known to, see
            :func:`fullspectrum_ext.spectral.paths.chain_of`.
        include: Glob patterns of parameter or layer names; only these are looked at.
        exclude: Glob patterns of names to leave out.

    Returns:
        The spectrum, layer by layer.

    Raises:
        TypeError: If ``source`` or ``weights`` is nothing that a spectrum can be taken of.
        ValueError: If a mask or weight is missing, of a wrong shape or value, or not finite, or
            ``chain`` is set and a layer does not fit the one before.

    References:
        Hoang, Kundu, Liu, Wang: Don't just prune by magnitude! Your mask topology is a secret
        weapon, NeurIPS 2023. Hoang, Liu, Marculescu, Wang: Revisiting Pruning at Initialization
        through the Lens of Ramanujan Graph, ICLR 2023.

    Example:
        >>> spectrum = full_spectrum({"fc": torch.ones(3, 3)}, {"fc": torch.ones(3, 3)})
        >>> layer = spectrum.layers["fc"]
        >>> round(layer.ramanujan_gap, 4), round(layer.weighted_gap, 4)
        (2.8284, 3.0)
    """
    masks, found = read_source(source, weights)
    names = select_names(masks, include, exclude)
    if not names:
        raise ValueError("include, exclude: no layer is left to look at")
    graphs = {name: layer_graph(name, masks[name]) for name in names}
    values = None
    if found is not None:
        values = {name: edge_weights(name, masks[name], graphs[name], found) for name in names}
    if chain is None:
        chain = chain_of(source, masks) or chain_of(weights, masks)
    effective = effective_densities(masks) if chain else None
    return graph_spectrum(graphs, values, effective, flavor=flavor, min_degree=min_degree, tol=tol)


def graph_spectrum(
    graphs: Mapping[str, LayerGraph],
    values: Mapping[str, Tensor] | None = None,
    effective: Mapping[str, float] | None = None,
    *,
    flavor: Flavor = "neurips",
    min_degree: float = 3,
    tol: float = 1e-6,
) -> FullSpectrum:
    """Place graphs in the full-spectrum view: what :func:`full_spectrum` does once it has read.

    Args:
        graphs: Layer to graph.
        values: Layer to the absolute weights of its edges, finite, ``[edges]``; or None.
        effective: Layer to its effective density; None where it is not known.
        flavor: As of :func:`full_spectrum`, as are the others.
        min_degree: Graphs of smaller degree have no gap.
        tol: Relative tolerance of the singular values.

    Returns:
        The spectrum, layer by layer.

    Raises:
        ValueError: If the flavor is unknown.
    """
    if flavor not in _FEWEST_TAPS:
        raise ValueError(f"flavor: expected 'neurips' or 'iclr', got {flavor!r}")
    every = list(graphs.values())
    groups = _groups_that_count(every, min_degree, flavor)
    edge_values = None if values is None else [values[name] for name in graphs]
    spectra = _Spectra(every, edge_values, groups, tol)
    density = effective or dict.fromkeys(graphs, math.nan)
    layers = {
        name: _layer_spectrum(graph, spectra, i, density[name], min_degree, flavor)
        for i, (name, graph) in enumerate(graphs.items())
    }
    return FullSpectrum(layers, flavor)


def dense_spectrum(source: Source, weights: Source | None = None, **arguments: Any) -> FullSpectrum:
    """Return the full spectrum of the dense network: the same weights with nothing pruned.

    It is a reference for :meth:`FullSpectrum.distance`. Give the dense weights: those that
    ``source`` has zeroed cannot come back.

    Args:
        source: As for :func:`full_spectrum`; only names and shapes of its masks count.
        weights: As for :func:`full_spectrum`.
        **arguments: Keywords of :func:`full_spectrum`.

    Returns:
        The spectrum.

    Example:
        >>> mask = {"fc": torch.eye(9)}
        >>> dense_spectrum(mask).layers["fc"].ramanujan_gap  # 2 sqrt(9 - 1) - 0
        5.65685...
    """
    masks, found = read_source(source, weights)
    full = MaskSet({
        name: torch.ones(mask.shape, dtype=torch.bool, device=mask.device)
        for name, mask in masks.items()
    })
    return full_spectrum(full, found, **arguments)


class _Spectra:
    """All singular values of a network: one native call for each kind of matrix."""

    def __init__(
        self,
        graphs: Sequence[LayerGraph],
        values: Sequence[Tensor] | None,
        groups: Sequence[Sequence[RegularSubgraph]],
        tol: float,
    ):
        self.groups = groups
        # The weighted solve takes most memory, so it comes before any other has left some behind.
        if values is None:
            self.weighted_sigmas = self.weighted_bounds = [_UNDEFINED] * len(graphs)
            self.group_weighted = [[_UNDEFINED] * len(layer) for layer in groups]
        else:
            solved = _solve(graphs, values, groups, tol)
            self.weighted_sigmas, self.weighted_bounds, self.group_weighted = solved
        self.sigmas, self.bounds, self.group_sigmas = _solve(graphs, None, groups, tol)


def _solve(
    graphs: Sequence[LayerGraph],
    values: Sequence[Tensor] | None,
    groups: Sequence[Sequence[RegularSubgraph]],
    tol: float,
) -> tuple[list[Pair], list[Pair], list[list[Pair]]]:
    """Return the first two singular values of each layer, their bounds, those of its groups."""
    crow_indices = [graph.crow_indices for graph in graphs]
    col_indices = [graph.col_indices for graph in graphs]
    shapes = [graph.shape for graph in graphs]
    layers = singular_values(crow_indices, col_indices, values, shapes, 2, tol=tol)
    parts = subgraph_singular_values(crow_indices, col_indices, values, shapes, groups, 2, tol=tol)
    assert isinstance(parts, list)  # a list of layers in, a list of layers out
    return (
        [(first, second) for first, second in layers.values.tolist()],
        [(first, second) for first, second in layers.bounds.tolist()],
        [[(first, second) for first, second in part.values.tolist()] for part in parts],
    )


def _layer_spectrum(
    graph: LayerGraph,
    spectra: _Spectra,
    i: int,
    effective_density: float,
    min_degree: float,
    flavor: Flavor,
) -> LayerSpectrum:
    sigma1, sigma2 = spectra.sigmas[i]
    weighted1, weighted2 = spectra.weighted_sigmas[i]
    valid = is_valid(graph.left_degree, graph.right_degree, min_degree, flavor, regular=False)

    def gap(function: Callable[..., float], *arguments: Any, **keywords: Any) -> float:
        return function(*arguments, **keywords) if valid else math.nan

    subgraphs = _subgraph_spectra(
        spectra.groups[i], spectra.group_sigmas[i], spectra.group_weighted[i], flavor
    )
    live = (graph.edges, graph.live_taps, graph.live_outputs)
    return LayerSpectrum(
        ramanujan_gap=gap(delta_r, graph.left_degree, graph.right_degree, sigma2),
        weighted_gap=weighted1 - weighted2 if valid else math.nan,
        imdb=_mean([part.factor * part.ramanujan_gap for part in subgraphs]),
        imsg=_mean([part.factor * part.weighted_gap for part in subgraphs]),
        ramanujan_gap_s=gap(delta_s, sigma1, sigma2),
        imdb_s=_mean([part.factor * part.ramanujan_gap_s for part in subgraphs]),
        ramanujan_bound=gap(ramanujan_bound, graph.left_degree, graph.right_degree),
        imdb_normalized=_mean([part.factor * part.normalized_gap for part in subgraphs]),
        narc=gap(narc, sigma2, *live, graph.shape),
        narc_undirected=gap(narc, sigma2, *live, graph.shape, directed=False),
        expander_mixing=gap(expander_mixing, sigma2, *live),
        density=graph.density,
        live_density=graph.live_density,
        effective_density=effective_density,
        edges=graph.edges,
        live_taps=graph.live_taps,
        live_outputs=graph.live_outputs,
        left_degree=graph.left_degree,
        right_degree=graph.right_degree,
        sigma1=sigma1,
        sigma2=sigma2,
        sigma_bounds=spectra.bounds[i],
        weighted_sigma1=weighted1,
        weighted_sigma2=weighted2,
        weighted_sigma_bounds=spectra.weighted_bounds[i],
        subgraphs=subgraphs,
    )


def _subgraph_spectra(
    groups: Sequence[RegularSubgraph],
    sigmas: Sequence[Pair],
    weighted: Sequence[Pair],
    flavor: Flavor,
) -> tuple[SubgraphSpectrum, ...]:
    spectra = []
    for group, (sigma1, sigma2), (weighted1, weighted2) in zip(
        groups, sigmas, weighted, strict=True
    ):
        taps, degrees = group.taps.numel(), (group.degree, group.edges / group.live_outputs)
        spectra.append(
            SubgraphSpectrum(
                degree=group.degree,
                taps=taps,
                live_outputs=group.live_outputs,
                factor=cheeger_factor(taps, group.live_outputs) if flavor == "neurips" else 1.0,
                sigma1=sigma1,
                sigma2=sigma2,
                ramanujan_gap=delta_r(*degrees, sigma2),
                ramanujan_gap_s=delta_s(sigma1, sigma2),
                ramanujan_bound=ramanujan_bound(*degrees),
                weighted_gap=weighted1 - weighted2,
            )
        )
    return tuple(spectra)


def _groups_that_count(
    graphs: Sequence[LayerGraph], min_degree: float, flavor: Flavor
) -> list[list[RegularSubgraph]]:
    """Return the regular subgraphs of each layer that enter its means, by rising degree."""
    found = regular_subgraphs(
        [graph.crow_indices for graph in graphs],
        [graph.col_indices for graph in graphs],
        [graph.shape for graph in graphs],
    )
    return [
        [
            group
            for group in sorted(groups, key=lambda group: group.degree)
            if group.taps.numel() >= _FEWEST_TAPS[flavor]
            and group.edges
            and is_valid(
                group.degree, group.edges / group.live_outputs, min_degree, flavor, regular=True
            )
        ]
        for groups in found
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
