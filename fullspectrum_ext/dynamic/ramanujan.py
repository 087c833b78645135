"""Ramanujan-guided updates: of several candidates, the topology of the largest coordinate."""

from collections.abc import Sequence
from dataclasses import dataclass

from fullspectrum_ext import _checks
from fullspectrum_ext.dynamic.layer import DynamicLayer
from fullspectrum_ext.dynamic.method import Change, Method, Turn, register_method
from fullspectrum_ext.ops import carry, topology_update
from fullspectrum_ext.spectral.full_spectrum import graph_spectrum
from fullspectrum_ext.spectral.graph import Flavor, csr_graph


@register_method("set:ramanujan")
@dataclass(kw_only=True)
class RamanujanGuided(Method):
    r"""SET with foresight: draws several updates, and takes for each layer the best connected one.

    All candidates drop the same smallest weights, and grow as many at random. Of each layer that
    candidate is taken for which the length of the full-spectrum coordinate
    :math:`\lVert (\Delta_R, \lambda, IMDB, \lambda_{imsg}) \rVert` is largest (the first of equal
    ones), with new weights at 0. The authors' code stops when few new places are explored; here
    ``until`` says when.

    Args:
        candidates: How many to draw.
        flavor: See :func:`fullspectrum_ext.full_spectrum`.
        every: Steps from one update to the next; the authors' is 1500.
        fraction: Of a layer's weights, dropped at first.
        anneal: How it changes.
        floor: What it falls to.
        until: Share of the training in which the topology changes.

    References:
        Hoang, Kundu, Liu, Wang: Don't just prune by magnitude! Your mask topology is a secret
        weapon, NeurIPS 2023; the updates as in the authors' code.

    Example:
        >>> RamanujanGuided(every=100).candidates
        3
    """

    candidates: int = 3
    flavor: Flavor = "neurips"
    every: int = 1500
    fraction: float = 0.5
    until: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.check_integer("candidates", self.candidates, 1)

    def update(self, layers: Sequence[DynamicLayer], turn: Turn) -> list[Change]:
        """Draw candidates, and choose for each layer."""
        drawn = [super(RamanujanGuided, self).update(layers, turn) for _ in range(self.candidates)]
        chosen = []
        for layer, changes in zip(layers, zip(*drawn, strict=True), strict=True):
            norms = [self._norm(layer, change) for change in changes]
            chosen.append(changes[norms.index(max(norms))])
        return chosen

    def _norm(self, layer: DynamicLayer, change: Change) -> float:
        update = topology_update(*layer.topology, *change, layer.shape[1])
        graph = csr_graph(update.crow_indices, update.col_indices, layer.shape)
        weights = carry(layer.values.abs(), update.source)
        spectrum = graph_spectrum({layer.name: graph}, {layer.name: weights}, flavor=self.flavor)
        return spectrum.layers[layer.name].norm
