"""How many weights the outputs and the inputs of layers have, where training begins and ends."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fullspectrum_ext.experiments.report.figures import WIDTH, short_name, styles
from fullspectrum_ext.experiments.report.study import Panel, Run
from fullspectrum_ext.experiments.report.svg import INK, drawing

_BINS = 24  # of a histogram, at most
_BEFORE, _AFTER = "degrees_before", "degrees_after"

Counts = Mapping[int, int]  # units, by their degree


def degree_counts(runs: Sequence[Run], layer: str, side: str, moment: str) -> Counts:
    """Add up how often a degree comes in a layer.

    Args:
        runs: Seeds of a method.
        layer: Name of its weight.
        side: ``"in"``, of the outputs, or ``"out"``, of the input taps.
        moment: ``"degrees_before"`` or ``"degrees_after"``.

    Returns:
        Degree to number of units, of all runs together.
    """
    counts: Counter[int] = Counter()
    for run in runs:
        layers = run.figures.get(moment) or {}
        for degree, count in layers.get(layer, {}).get(side, ()):
            counts[degree] += count
    return counts


def draw_degrees(
    name: str,
    panel: Panel,
    cells: Mapping[str, Sequence[Run]],
    layers: Sequence[str],
    begun: Collection[str],
) -> str:
    """Draw the share of units by their degree, a row for each method.

    Args:
        name: Of the drawing.
        panel: The runs.
        cells: Method to its runs.
        layers: Those to show, on both sides.
        begun: Methods to show as they began, too.

    Returns:
        The drawing.
    """
    looks = styles(panel.methods)

    def draw(_figure: Any, axes: Any) -> None:
        places = [(side, layer) for side in ("in", "out") for layer in layers]
        for column, (side, layer) in enumerate(places):
            ends = {m: degree_counts(r, layer, side, _AFTER) for m, r in cells.items()}
            begins = {m: degree_counts(cells[m], layer, side, _BEFORE) for m in begun}
            edges = _edges([d for counts in (*ends.values(), *begins.values()) for d in counts])
            for axis, method in zip(axes[:, column], cells, strict=True):
                color = looks[method].color
                axis.stairs(_shares(ends[method], edges), edges, fill=True, color=color, alpha=0.55)
                if method in begins:
                    axis.stairs(_shares(begins[method], edges), edges, color=INK, lw=0.9)
                axis.tick_params(labelsize=7, labelbottom=axis is axes[-1, column])
            axes[0, column].set_title(f"{side}: {short_name(layer)}", fontsize=8.5)
            axes[-1, column].set_xlabel(f"{side}-degree", fontsize=8.5)
        for axis, method in zip(axes[:, 0], cells, strict=True):
            axis.set_ylabel(method, fontsize=8.5)

    height, columns = 0.6 + 1.05 * len(cells), 2 * len(layers)
    return drawing(name, draw, width=WIDTH, height=height, rows=len(cells), columns=columns)


def _edges(degrees: Sequence[int]) -> list[float]:
    """Bounds of bins of equal width that hold whole numbers of degrees."""
    if not degrees:
        return [-0.5, 0.5]
    low, high = min(degrees), max(degrees)
    width = math.ceil((high - low + 1) / _BINS)
    bins = math.ceil((high - low + 1) / width)
    return [low - 0.5 + width * place for place in range(bins + 1)]


def _shares(counts: Counts, edges: Sequence[float]) -> list[float]:
    shares, total = [0.0] * (len(edges) - 1), sum(counts.values())
    for degree, count in counts.items():
        shares[int((degree - edges[0]) / (edges[1] - edges[0]))] += count / total
    return shares
