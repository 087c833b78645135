"""PAGS: pruning at initialisation as graph sampling."""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import rich.progress
import torch
from torch import Tensor

from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.ops.csr import csr_to_dense
from fullspectrum_ext.ops.topk_scores import topk_topologies
from fullspectrum_ext.pruning.base import (
    RegisteredMethod,
    ScoringContext,
    find_method,
    register_pruner,
)
from fullspectrum_ext.pruning.pags_checkpoint import SearchFile
from fullspectrum_ext.pruning.selection import SCOPES, Scores, check_scores
from fullspectrum_ext.spectral import LayerSpectrum
from fullspectrum_ext.spectral.full_spectrum import graph_spectrum
from fullspectrum_ext.spectral.graph import (
    Flavor,
    LayerGraph,
    csr_graph,
    kept_values,
    layer_graph,
)

Rule = Literal["loose", "strict", "alt", "l2_only"]
Progress = bool | Callable[[int, int], None]
Item = TypeVar("Item")
# Singular values are exact to this, relatively: a smaller difference is no difference.
_TOLERANCE = 1e-6
_MOST_TOGETHER, _MOST_EDGES = 16, 2**22  # candidates measured at a time


@register_pruner("pags", scopes=("base", *SCOPES))
def pags(
    context: ScoringContext,
    *,
    base: str = "snip",
    candidates: int = 100,
    batches_per_candidate: int = 4,
    rule: Rule = "loose",
    selection: Literal["per_layer", "global"] = "per_layer",
    drift: bool = False,
    flavor: Flavor = "neurips",
    base_options: Mapping[str, Any] | None = None,
    progress: Progress = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> MaskSet:
    r"""Sample masks of another method and keep, layer by layer, those of the largest coordinate.

    The first masks are the base method's on all of the data. Every candidate is the base method
    again, varied: on a few freshly shuffled batches, with another seed, or (for methods that look
    at neither) on weights with Gaussian noise added, of standard deviation
    :math:`\sqrt{2 / (k_h k_w C_{out})}` for convolutions and 0.01 for linear layers. A layer of a
    candidate replaces the incumbent when the rule says so. It is cut from the candidate's scores at
    the incumbent's count, so that no layer's density drifts. All are measured on the model's own
    weights, and the length :math:`s = \lVert (\Delta_R, \lambda, IMDB, \lambda_{imsg}) \rVert` of
    an accepted layer's vector is never smaller than before. Hence the norm of the result is at
    least that of the base masks.

    The masks' ``meta["pags"]`` records the run: ``"norm"``, the norm of the base masks and of what
    was best after each candidate, ``"accepted"``, how many candidates each layer took, and
    ``"trace"``, a line for every layer of the base masks (``"candidate"`` 0) and for every one that
    was accepted later (1, 2, ...), with how many weights it keeps, its norm and its coordinates as
    the rules see them, where undefined is 0.

    Args:
        context: What to prune, with data where the base method needs it.
        base: The method to sample. With scope ``"base"``, the default, it has its own default.
        candidates: How many to draw. The authors' code takes 2000 to 3000 (and finds about 2000 to
            be converged for VGG on CIFAR). On scikit-learn's digits, a small network's norm rises
            by a hundred candidates about six tenths of what it rises by a thousand.
        batches_per_candidate: Batches for a candidate of a method that looks at data. The authors'
            option says 2, which their loop makes 4.
        rule: When a layer is accepted. ``"loose"``: IMDB and :math:`s` do not fall. ``"strict"``:
            nor does :math:`\lambda_{imsg}` rise. ``"alt"``: :math:`\Delta_R` falls and :math:`s`
            does not. ``"l2_only"``: :math:`s` does not fall.
        selection: ``"per_layer"``, or ``"global"``: whole candidates are taken, by the same rule on
            the means over the layers.
        drift: Cut each candidate at the density asked for and take its layers as they are, as the
            authors' code does. Layers of different masks need not add up to that density: the
            composites are often denser, by several per cent (``masks.density`` says it), and part
            of what they gain is due to that.
        flavor: See :func:`fullspectrum_ext.full_spectrum`.
        base_options: Options of the base method, for instance ``{"input_shape": (1, 28, 28)}``.
            SynFlow's candidates take 10 rounds instead of 100 unless this says otherwise.
        progress: True shows a progress bar; a function is called with (done, all) instead.
        checkpoint: A file to keep the search in, every few candidates. Where it is there already,
            the search goes on from it, to the same masks bit for bit if the data is the same; with
            more ``candidates`` than before it goes on beyond its end.

    Returns:
        The composite masks, each layer with as many weights as the base method gave it, unless they
        drift.

    Raises:
        TypeError: If ``drift`` is no bool, or ``checkpoint`` no path.
        ValueError: If an option is out of range, or the checkpoint is of another search.

    References:
        Hoang, Kundu, Liu, Wang: Don't just prune by magnitude! Your mask topology is a secret
        weapon, NeurIPS 2023, algorithm 1; the rules as in the authors' code.
    """
    if rule not in _RULES:
        raise ValueError(f"rule: expected one of {', '.join(map(repr, _RULES))}, got {rule!r}")
    if selection not in {"per_layer", "global"}:
        raise ValueError(f"selection: expected 'per_layer' or 'global', got {selection!r}")
    for name, number, least in (
        ("candidates", candidates, 0),
        ("batches_per_candidate", batches_per_candidate, 1),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {number!r}")
    if not isinstance(drift, bool):
        raise TypeError(f"drift: expected True or False, got {drift!r}")
    sampler = _Sampler(context, base, dict(base_options or {}), batches_per_candidate)
    settings: dict[str, Any] = {
        "base": base,
        "base_options": base_options,
        "batches_per_candidate": batches_per_candidate,
        "rule": rule,
        "selection": selection,
        "drift": drift,
        "flavor": flavor,
    }
    file = None if checkpoint is None else SearchFile(checkpoint, context, settings)
    found = file.load() if file else None
    if found is None:
        search = _Search(sampler.base_graphs(), context.weights, rule, flavor)
    else:
        graphs = {name: layer_graph(name, mask) for name, mask in found.items()}
        search = _Search(graphs, context.weights, rule, flavor, found.meta["pags"])
    seen = len(search.norms) - 1
    if seen > candidates:
        raise ValueError(f"candidates: expected at least the checkpoint's {seen}, got {candidates}")

    def save() -> None:
        if file:
            file.save(search.masks(base))

    counts = None if drift else {name: graph.edges for name, graph in search.graphs.items()}
    drawn = (sampler.candidate(counts) for _ in range(seen, candidates))
    for candidate, measures in _counted(search.measured(drawn, save), seen, candidates, progress):
        search.consider(candidate, measures, per_layer=selection == "per_layer")
    return search.masks(base)


class _Measures(NamedTuple):
    """What the rules compare, of a layer or averaged over layers; undefined is 0."""

    norm: float
    ramanujan_gap: float
    imdb: float
    imsg: float


Graphs = dict[str, LayerGraph]
Measured = dict[str, _Measures]


class _Sampler:
    """Draws graphs of the base method, each from other data, another seed or other weights."""

    def __init__(
        self,
        context: ScoringContext,
        base: str,
        options: dict[str, Any],
        batches_per_candidate: int,
    ):
        self.method: RegisteredMethod = find_method(base)
        if self.method.function is pags:
            raise ValueError("base: expected another method than 'pags'")
        self.method.check_options(options)
        scope = self.method.resolve_scope(None if context.scope == "base" else context.scope)
        self.context = dataclasses.replace(context, scope=scope)
        self.options = options
        self.batches_per_candidate = batches_per_candidate

    def base_graphs(self) -> Graphs:
        return self._cut(self._found(self.context, self.options))

    def candidate(self, counts: Mapping[str, int] | None) -> Graphs:
        """Draw one, with these layer counts or, without any, cut as the base masks were."""
        changed = self.context
        if self.method.varies_by == "batches":
            changed = changed.drawing(self.batches_per_candidate)
        elif self.method.varies_by == "nothing":
            changed = dataclasses.replace(changed, weights=_with_noise(changed))
        found = self._found(changed, {**self.method.candidate_options, **self.options})
        if counts is not None and not isinstance(found, MaskSet):
            return _top_graphs(found, counts)
        graphs = self._cut(found)
        if counts not in (None, {name: graph.edges for name, graph in graphs.items()}):
            raise ValueError(
                f"base: expected a method that gives scores, or masks of always the same layer "
                f"counts; the counts of {self.method.name!r} changed; drift=True allows it"
            )
        return graphs

    def _cut(self, found: Scores | MaskSet) -> Graphs:
        masks = found if isinstance(found, MaskSet) else self.context.select(found)
        return {name: layer_graph(name, mask) for name, mask in masks.items()}

    def _found(self, context: ScoringContext, options: dict[str, Any]) -> Scores | MaskSet:
        """Return what the base method does: scores for every weight, or whole masks."""
        found = self.method.function(context, **options)
        if isinstance(found, MaskSet):
            return found
        return check_scores(self.method.name, found, context.weights)


class _Search:
    """The best graphs so far and what is known about them."""

    def __init__(
        self,
        graphs: Graphs,
        weights: Mapping[str, Tensor],
        rule: Rule,
        flavor: Flavor,
        record: Mapping[str, Any] | None = None,
    ):
        self.weights = weights
        self.accepts = _RULES[rule]
        self.flavor = flavor
        self.graphs: Graphs = {}
        if record is None:
            (self.measures,) = self._measured_together([graphs])
            self.graphs = graphs
            self.norms = [_mean(self.measures).norm]
            self.trace = [self._line(0, name) for name in graphs]
        else:
            self.graphs = graphs
            self.norms, self.trace = record["norm"], record["trace"]
            self.measures = {  # the latest line of a layer wins
                line["layer"]: _Measures(*(line[field] for field in _Measures._fields))
                for line in self.trace
            }

    def measured(
        self, candidates: Iterable[Graphs], after_each_group: Callable[[], None]
    ) -> Iterator[tuple[Graphs, Measured]]:
        """Measure candidates, several together: a GPU takes one row of launches for all of them."""
        group: list[Graphs] = []
        edges = 0
        for candidate in candidates:
            group.append(candidate)
            edges += sum(graph.edges for graph in candidate.values())
            if len(group) >= _MOST_TOGETHER or edges >= _MOST_EDGES:
                yield from zip(group, self._measured_together(group), strict=True)
                after_each_group()
                group, edges = [], 0
        yield from zip(group, self._measured_together(group), strict=True)
        after_each_group()

    def consider(self, candidate: Graphs, measures: Measured, *, per_layer: bool) -> None:
        """Take over a candidate's layers, or all of it, where the rule accepts."""
        changed = [
            name for name in candidate if not candidate[name].has_edges_of(self.graphs[name])
        ]
        if per_layer:
            taken = [n for n in changed if self._is_better(measures[n], self.measures[n])]
        else:
            taken = changed if self._is_better(_mean(measures), _mean(self.measures)) else []
        for name in taken:
            self.graphs[name] = candidate[name]
            self.measures[name] = measures[name]
            self.trace.append(self._line(len(self.norms), name))
        self.norms.append(_mean(self.measures).norm)

    def masks(self, base: str) -> MaskSet:
        """Return what came of it, with the record in the masks' meta."""
        masks = {
            name: _mask(graph).reshape(self.weights[name].shape)
            for name, graph in self.graphs.items()
        }
        lines = Counter(line["layer"] for line in self.trace)
        accepted = {name: lines[name] - 1 for name in self.graphs}
        record = {"base": base, "accepted": accepted, "norm": self.norms, "trace": self.trace}
        return MaskSet(masks, meta={"pags": record})

    def _line(self, candidate: int, name: str) -> dict[str, Any]:
        kept, measures = self.graphs[name].edges, self.measures[name]._asdict()
        return {"candidate": candidate, "layer": name, "kept": kept, **measures}

    def _is_better(self, new: _Measures, best: _Measures) -> bool:
        # The rules forgive the error of the singular values; the norm must not creep down by it.
        return new.norm >= best.norm and self.accepts(new, best)

    def _measured_together(self, candidates: Sequence[Graphs]) -> list[Measured]:
        """Measure the layers of several candidates, but for those that are the incumbents."""
        found: list[Measured] = [
            {
                name: self.measures[name]
                for name, graph in candidate.items()
                if name in self.graphs and graph.has_edges_of(self.graphs[name])
            }
            for candidate in candidates
        ]
        new = [
            (i, n) for i, candidate in enumerate(candidates) for n in candidate if n not in found[i]
        ]
        if not new:
            return found
        graphs = {f"{i} {name}": candidates[i][name] for i, name in new}
        values = {f"{i} {n}": kept_values(self.weights[n], candidates[i][n]) for i, n in new}
        spectrum = graph_spectrum(graphs, values, flavor=self.flavor, tol=_TOLERANCE)
        for (i, name), layer in zip(new, spectrum.layers.values(), strict=True):
            found[i][name] = _measures(layer)
        return found


def _top_graphs(scores: Scores, counts: Mapping[str, int]) -> dict[str, LayerGraph]:
    """Cut scores at the count of each layer; no mask is made on the way."""
    graphs = {}
    for name, score in scores.items():
        matrix = score.reshape(score.shape[0], math.prod(score.shape[1:]))
        (topology,) = topk_topologies([matrix], [counts[name]])
        graphs[name] = csr_graph(*topology, (matrix.shape[0], matrix.shape[1]))
    return graphs


def _mask(graph: LayerGraph) -> Tensor:
    kept = torch.ones(graph.edges, dtype=torch.bool, device=graph.col_indices.device)
    return csr_to_dense(graph.crow_indices, graph.col_indices, kept, graph.shape)


def _not_below(new: float, best: float) -> bool:
    return new >= best - _TOLERANCE * abs(best)


def _loose(new: _Measures, best: _Measures) -> bool:
    return _not_below(new.imdb, best.imdb)


def _strict(new: _Measures, best: _Measures) -> bool:
    return _loose(new, best) and _not_below(best.imsg, new.imsg)


def _alt(new: _Measures, best: _Measures) -> bool:
    return new.ramanujan_gap < best.ramanujan_gap


def _l2_only(new: _Measures, best: _Measures) -> bool:
    return True


_RULES: dict[str, Callable[[_Measures, _Measures], bool]] = {
    "loose": _loose,
    "strict": _strict,
    "alt": _alt,
    "l2_only": _l2_only,
}


def _measures(layer: LayerSpectrum) -> _Measures:
    gap, _, imdb, imsg = layer.vector.tolist()
    return _Measures(layer.norm, gap, imdb, imsg)


def _mean(measures: Mapping[str, _Measures]) -> _Measures:
    columns = zip(*measures.values(), strict=True)
    return _Measures(*(math.fsum(column) / len(measures) for column in columns))


def _with_noise(context: ScoringContext) -> dict[str, Tensor]:
    noisy = {}
    for name, weight in context.weights.items():
        kernel = math.prod(weight.shape[2:])
        spread = math.sqrt(2 / (kernel * weight.shape[0])) if weight.dim() == 4 else 0.01
        noise = spread * torch.randn(weight.shape, generator=context.generator)
        noisy[name] = weight + noise.to(weight)
    return noisy


def _counted(items: Iterator[Item], seen: int, total: int, progress: Progress) -> Iterator[Item]:
    """Pass items on, and show or tell how many are done."""
    if progress is True:
        yield from rich.progress.track(items, total=total - seen, description="PAGS candidates")
        return
    for done, item in enumerate(items, start=seen + 1):
        yield item
        if progress:
            progress(done, total)
