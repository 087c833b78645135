"""The full-spectrum coordinate of a network: graphs, singular values, gaps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fullspectrum_ext._layers import Patterns, model_layers, select_names
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.ops.regular_subgraphs import RegularSubgraph, regular_subgraphs
from fullspectrum_ext.ops.singular_values import singular_values, subgraph_singular_values
from fullspectrum_ext.spectral.bounds import cheeger_factor, delta_r, delta_s, narc
from fullspectrum_ext.spectral.coordinates import FullSpectrum, LayerSpectrum, SubgraphSpectrum
from fullspectrum_ext.spectral.graph import Flavor, LayerGraph, is_valid, layer_graph

Source = nn.Module | Mapping[str, Tensor]
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
            :class:`fullspectrum_ext.MaskSet`, or a mapping of names to tensors of zeros and ones.
        weights: Name to weight, or a model; by default the model's own. Without any, the two
            weighted coordinates are undefined. Only compare networks on the same weights:
            :math:`\lambda` grows with their scale.
        flavor: ``"neurips"``: subgraphs of two taps or more, each gap times
            ``max(|L|, |R|) / (|L| + |R| - 1)``. ``"iclr"``: of three taps or more and both degrees
            at least ``min_degree``, without the factor.
        min_degree: Graphs of smaller degree have no gap; see
            :func:`fullspectrum_ext.spectral.graph.is_valid`.
        tol: Relative tolerance of the singular values; their certified bounds are in the result.
        include: Glob patterns of parameter or layer names; only these are looked at.
        exclude: Glob patterns of names to leave out.

    Returns:
        The spectrum, layer by layer.

    Raises:
        TypeError: If ``source`` or ``weights`` is no model and no mapping of tensors.
        ValueError: If a mask or weight is missing, of a wrong shape or value, or not finite.

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
    if flavor not in _FEWEST_TAPS:
        raise ValueError(f"flavor: expected 'neurips' or 'iclr', got {flavor!r}")
    masks, found = _masks_and_weights(source, weights)
    names = select_names(masks, include, exclude)
    if not names:
        raise ValueError("include, exclude: no layer is left to look at")
    graphs = [layer_graph(name, masks[name]) for name in names]
    values = None
    if found is not None:
        values = [
            _edge_weights(name, masks[name], graph, found)
            for name, graph in zip(names, graphs, strict=True)
        ]
    groups = _groups_that_count(graphs, min_degree, flavor)
    spectra = _Spectra(graphs, values, groups, tol)
    layers = {
        name: _layer_spectrum(graph, spectra, i, min_degree, flavor)
        for i, (name, graph) in enumerate(zip(names, graphs, strict=True))
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
    """
    masks, found = _masks_and_weights(source, weights)
    full = MaskSet({name: torch.ones_like(mask) for name, mask in masks.items()})
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
        self.sigmas, self.bounds, self.group_sigmas = _solve(graphs, None, groups, tol)
        if values is None:
            self.weighted_sigmas = self.weighted_bounds = [_UNDEFINED] * len(graphs)
            self.group_weighted = [[_UNDEFINED] * len(layer) for layer in groups]
        else:
            solved = _solve(graphs, values, groups, tol)
            self.weighted_sigmas, self.weighted_bounds, self.group_weighted = solved


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
    graph: LayerGraph, spectra: _Spectra, i: int, min_degree: float, flavor: Flavor
) -> LayerSpectrum:
    sigma1, sigma2 = spectra.sigmas[i]
    weighted1, weighted2 = spectra.weighted_sigmas[i]
    valid = is_valid(graph.left_degree, graph.right_degree, min_degree, flavor, regular=False)
    subgraphs = _subgraph_spectra(
        spectra.groups[i], spectra.group_sigmas[i], spectra.group_weighted[i], flavor
    )
    counts = (graph.edges, graph.live_taps, graph.live_outputs, graph.shape)
    return LayerSpectrum(
        ramanujan_gap=(
            delta_r(graph.left_degree, graph.right_degree, sigma2) if valid else math.nan
        ),
        weighted_gap=weighted1 - weighted2 if valid else math.nan,
        imdb=_mean([part.factor * part.ramanujan_gap for part in subgraphs]),
        imsg=_mean([part.factor * part.weighted_gap for part in subgraphs]),
        ramanujan_gap_s=delta_s(sigma1, sigma2) if valid else math.nan,
        narc=narc(sigma2, *counts) if valid else math.nan,
        narc_undirected=narc(sigma2, *counts, directed=False) if valid else math.nan,
        density=graph.density,
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
    for group, (_, sigma2), (weighted1, weighted2) in zip(groups, sigmas, weighted, strict=True):
        taps = len(group.taps)
        spectra.append(
            SubgraphSpectrum(
                degree=group.degree,
                taps=taps,
                live_outputs=group.live_outputs,
                factor=cheeger_factor(taps, group.live_outputs) if flavor == "neurips" else 1.0,
                ramanujan_gap=delta_r(group.degree, group.edges / group.live_outputs, sigma2),
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
            if len(group.taps) >= _FEWEST_TAPS[flavor]
            and group.edges
            and is_valid(
                group.degree, group.edges / group.live_outputs, min_degree, flavor, regular=True
            )
        ]
        for groups in found
    ]


def _masks_and_weights(
    source: Source, weights: Source | None
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    own = None
    masks: Mapping[str, Tensor]
    if isinstance(source, nn.Module):
        layers = model_layers(source)
        if not layers:
            raise ValueError("source: expected a model with a Linear or Conv2d layer, found none")
        masks = {name: layer.mask for name, layer in layers.items()}
        own = {name: layer.weight for name, layer in layers.items()}
    elif isinstance(source, Mapping):
        masks = source if isinstance(source, MaskSet) else MaskSet(source)
    else:
        raise TypeError(
            f"source: expected a model, a MaskSet or a mapping, got {type(source).__name__}"
        )
    if len({mask.device for mask in masks.values()}) > 1:  # one native call wants one device
        masks = {name: mask.cpu() for name, mask in masks.items()}
    if weights is None:
        return masks, own
    if isinstance(weights, nn.Module):
        return masks, {name: layer.weight for name, layer in model_layers(weights).items()}
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights: expected a model or a mapping, got {type(weights).__name__}")
    return masks, weights


def _edge_weights(
    name: str, mask: Tensor, graph: LayerGraph, weights: Mapping[str, Tensor]
) -> Tensor:
    """Return the absolute weights under the mask, row by row, ``[edges]``."""
    if name not in weights:
        raise ValueError(f"weights: there is none for the mask {name!r}")
    weight = weights[name]
    if not isinstance(weight, Tensor):
        raise TypeError(f"weights[{name!r}]: expected a torch.Tensor, got {type(weight).__name__}")
    if weight.shape != mask.shape:
        raise ValueError(
            f"weights[{name!r}]: expected the mask's shape {tuple(mask.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    outputs, taps = graph.shape
    first = torch.arange(outputs, device=mask.device) * taps  # place of each row's first weight
    at = first.repeat_interleave(graph.crow_indices.diff()) + graph.col_indices
    values = weight.detach().to(mask.device).flatten()[at].abs()
    if not bool(values.isfinite().all()):
        raise ValueError(f"weights[{name!r}]: expected finite weights, got NaN or infinity")
    return values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
