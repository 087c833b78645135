"""Ramanujan-guided updates: of several candidates, the topology of the largest coordinate."""

from collections.abc import Sequence
from dataclasses import dataclass

from fullspectrum_ext import _checks
from fullspectrum_ext.dynamic.layer import DynamicLayer, distinct
from fullspectrum_ext.dynamic.method import Change, Method, Turn, register_method
from fullspectrum_ext.dynamic.rigl import RigL
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
        return [
            _longest(layer, changes, self.flavor)
            for layer, changes in zip(layers, zip(*drawn, strict=True), strict=True)
        ]


@register_method("rigl:ramanujan")
@dataclass(kw_only=True)
class RamanujanGuidedRigL(RigL):
    r"""RigL with foresight: of several sets of large gradients it grows the best connected.

    Of the same dense gradient RigL always grows the same. So it is the first candidate, and each
    other one grows as many weights drawn from the ``pool`` times as many largest gradients. Of each
    layer the candidate is taken with the longest coordinate, as in :class:`RamanujanGuided`; it is
    never shorter than that of RigL's own update.

    Args:
        candidates: How many there are, RigL's own among them; with 1 this is RigL.
        pool: How many gradients to draw from, as a multiple of the number that is grown.
        flavor: See :func:`fullspectrum_ext.full_spectrum`.
        every: Steps from one update to the next.
        fraction: Of a layer's weights, dropped at first.
        anneal: How it changes.
        floor: What it falls to.
        until: Share of the training in which the topology changes.

    References:
        As of :class:`RamanujanGuided` and :class:`RigL`; the authors' code draws for both, but from
        RigL's growth it would draw the same each time.

    Example:
        >>> RamanujanGuidedRigL(every=100).pool
        2
    """

    candidates: int = 3
    pool: int = 2
    flavor: Flavor = "neurips"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.check_integer("candidates", self.candidates, 1)
        _checks.check_integer("pool", self.pool, 1)

    def update(self, layers: Sequence[DynamicLayer], turn: Turn) -> list[Change]:
        """Draw candidates, and choose for each layer."""
        return [self._choose(layer, turn) for layer in layers]

    def _choose(self, layer: DynamicLayer, turn: Turn) -> Change:
        drop = self.drop(layer, turn)
        count = drop.numel()
        free = layer.numel - layer.nnz + count
        pool = layer.steepest(drop, min(self.pool * count, free))
        order = pool.values.abs().argsort(descending=True, stable=True)  # of equal ones the first
        grown = [order[:count]]
        grown += [
            distinct(order.numel(), count, turn.generator).to(order.device)
            for _ in range(self.candidates - 1)
        ]
        changes = [Change(drop, pool.positions[of_pool.sort().values]) for of_pool in grown]
        return _longest(layer, changes, self.flavor)


def _longest(layer: DynamicLayer, changes: Sequence[Change], flavor: Flavor) -> Change:
    """Return the change after which a layer's coordinate is longest; of equal ones the first."""
    norms = [_norm(layer, change, flavor) for change in changes]
    return changes[norms.index(max(norms))]


def _norm(layer: DynamicLayer, change: Change, flavor: Flavor) -> float:
    update = topology_update(*layer.topology, *change, layer.shape[1])
    graph = csr_graph(update.crow_indices, update.col_indices, layer.shape)
    weights = carry(layer.values.abs(), update.source)
    spectrum = graph_spectrum({layer.name: graph}, {layer.name: weights}, flavor=flavor)
    return spectrum.layers[layer.name].norm
