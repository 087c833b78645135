"""Masks that are Ramanujan graphs by construction, layer by layer."""

import math

import torch
from torch import Tensor

from fullspectrum_ext import _checks
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning.base import ScoringContext, register_pruner
from fullspectrum_ext.pruning.densities import layer_counts
from fullspectrum_ext.spectral.ramanujan import biregular_random

_LEAST_DEGREE = 2  # below, the graph is little more than a forest and the bound says nothing


@register_pruner("ramanujan", scopes=("erk", "er", "layer"), varies_by="seed")
def ramanujan(context: ScoringContext, *, tries: int = 20) -> MaskSet:
    r"""Give every layer a random biregular mask, drawn again until it is a Ramanujan graph.

    A layer is the matrix of its outputs and its ``C_in * kh * kw`` input taps. Outputs have equal
    degrees up to one, and so have taps. The counts are those of the scope's densities, exactly;
    neither weights nor data matter.

    The masks' ``meta["ramanujan"]`` holds each layer's certificate: ``bound``, ``sigma1``,
    ``sigma2`` and how far it can be off (``sigma2_bound``), ``gap``, ``is_ramanujan``, and
    ``too_sparse``: whether outputs or taps have fewer than two edges on average. Such layers are
    biregular too, but no draw can be expected below the bound, so that there is only one. A layer
    without a weight has None.

    Args:
        context: What to prune.
        tries: Draws of a layer at most; the best is taken where none is Ramanujan.

    Returns:
        The masks.

    Raises:
        TypeError: If ``tries`` is no int.
        ValueError: If ``tries`` is below 1.

    References:
        See :func:`fullspectrum_ext.spectral.ramanujan.biregular_random`.
    """  # noqa: DOC502 (the checks below raise)
    _checks.check_integer("tries", tries, 1)
    shapes = {name: tuple(weight.shape) for name, weight in context.weights.items()}
    counts = layer_counts(shapes, context.density, context.scope)
    masks: dict[str, Tensor] = {}
    certificates: dict[str, dict[str, float | bool] | None] = {}
    for name, weight in context.weights.items():
        if counts[name] == 0:
            masks[name] = torch.zeros_like(weight, dtype=torch.bool)
            certificates[name] = None
            continue
        rows, cols = weight.shape[0], math.prod(weight.shape[1:])
        too_sparse = counts[name] < _LEAST_DEGREE * max(rows, cols)
        found = biregular_random(
            rows,
            cols,
            edges=counts[name],
            generator=context.generator,
            tries=1 if too_sparse else tries,
        )
        masks[name] = found.mask.reshape(weight.shape).to(weight.device)
        certificates[name] = {**found.certificate(), "too_sparse": too_sparse}
    return MaskSet(masks, meta={"ramanujan": certificates})
