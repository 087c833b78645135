"""The section on topologies that change while networks train."""

import functools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fullspectrum_ext.experiments.report.content import (
    Block,
    Cell,
    Column,
    Figure,
    Finding,
    Heading,
    Section,
    Table,
    Text,
)
from fullspectrum_ext.experiments.report.courses import Courses, courses, draw_grid
from fullspectrum_ext.experiments.report.degrees import draw_degrees
from fullspectrum_ext.experiments.report.figures import percent, short_name
from fullspectrum_ext.experiments.report.statistics import PairedTest, paired_test
from fullspectrum_ext.experiments.report.study import Panel, Run, Study
from fullspectrum_ext.experiments.report.words import (
    NOTHING,
    interval,
    listed,
    many,
    mean_cell,
    signed_cell,
    usual_count,
)

_SHARES = ("overlap", "churn", "explored")  # of an update
_COORDINATES = ("Ramanujan gap", "Spectral gap λ", "IMDB", "λ_imsg")  # in the order of the records

_METHOD = (
    "Overlap is the share of the weights kept before or after an update that are kept before and "
    "after it; churn the share of the weights kept after it that are new; explored the share of "
    "all weights that have been kept at some time (the in-time over-parametrisation rate of ITOP). "
    "All are of the whole network."
)
_RULE = (
    "The sentences above say at which methods and sparsities a coordinate is larger or smaller at "
    "the last measurement than before training: where the 95 % t interval of the mean difference, "
    "paired over seeds, does not hold 0. They are of methods that change the topology and end with "
    "as many weights in each layer as they began with, for the coordinates depend on density. The "
    "Ramanujan gap and IMDB are of the mask alone, and move with the topology only; the other two "
    "also move with the weights. What is undefined for the degrees of a layer counts as 0. Each "
    "interval stands for itself: of many, one in twenty misses 0 by chance."
)


def topology(study: Study) -> Section | None:
    """Show how topologies change, how much of all weights they explore, and where they go.

    Args:
        study: All runs.

    Returns:
        The section; None where no topology changes.
    """
    panels = [panel for panel in study.panels if any(map(_changes, panel.runs))]
    blocks: list[Block] = [Text(_METHOD)]
    is_measured = False
    for panel in panels:
        blocks.append(Heading(panel.name))
        ways = _ways(panel)
        is_measured |= bool(ways)
        blocks += [Finding(panel.name, words) for words in _sentences(panel, ways)]
        blocks += [_updates(panel), _update_table(panel)]
        if ways:
            blocks += [_components(panel), _way_table(panel, ways)]
        for sparsity in panel.sparsities:
            blocks += _layers(panel, sparsity)
            blocks += _degrees(panel, sparsity)
    if is_measured:
        blocks.append(Text(_RULE))
    return Section("Topology over time", blocks) if panels else None


def _changes(run: Run) -> bool:
    return bool(run.history.get("topology_steps"))


# ---- updates -------------------------------------------------------------------------------------


def _updates(panel: Panel) -> Figure:
    rows = {}
    for sparsity in panel.sparsities:
        cells = {name: _shares(panel, sparsity, name) for name in _SHARES}
        if any(cells.values()):
            rows[f"sparsity {percent(sparsity)}"] = cells
    name = f"updates-{panel.key}"
    caption = (
        f"{panel.name}: overlap, churn and explored share at each update of the topology, mean "
        "over seeds; the band holds all of them."
    )
    return Figure(name, draw_grid(name, panel, rows), caption)


def _shares(panel: Panel, sparsity: float, name: str) -> Courses:
    return courses(
        panel, sparsity, "topology_steps", lambda run: run.history.get(f"topology_{name}", ())
    )


def _update_table(panel: Panel) -> Table:
    columns = [Column("method", is_text=True), Column("sparsity"), Column("updates")]
    columns += [Column("mean overlap"), Column("mean churn"), Column("explored, %")]
    places = [
        (method, sparsity, runs)
        for method in panel.methods
        for sparsity in panel.sparsities
        if (runs := [run for run in panel.cell(method, sparsity) if _changes(run)])
    ]
    usual = usual_count([len(runs) for *_, runs in places])
    rows = []
    for method, sparsity, runs in places:
        counts = [len(run.history["topology_steps"]) for run in runs]
        ends = [run.history.get("topology_explored", [None])[-1] for run in runs]
        explored = [100 * end for end in ends if end is not None]
        rows.append([
            Cell(method),
            Cell(percent(sparsity), sparsity),
            Cell(f"{statistics.median(counts):g}", statistics.median(counts)),
            *(
                mean_cell(
                    [statistics.fmean(run.history[f"topology_{name}"]) for run in runs],
                    3,
                    usual=usual,
                )
                for name in ("overlap", "churn")
            ),
            mean_cell(explored, usual=usual),
        ])
    caption = (
        f"{panel.name}: updates of the topology, overlap and churn as means over them, and the "
        "share of all weights that was kept at some time, after the last one. ± is the standard "
        f"deviation over seeds (that of a sample); n = {usual} unless noted."
    )
    return Table(columns, rows, caption)


# ---- the coordinate ------------------------------------------------------------------------------


Way = tuple[str, float, list[PairedTest]]  # method, sparsity, and a test for each coordinate


def _ways(panel: Panel) -> list[Way]:
    """Compare the last measurement of each coordinate with the first one, over seeds."""
    found = []
    for method in panel.methods:
        for sparsity in panel.sparsities:
            runs = [run for run in panel.cell(method, sparsity) if _starts_at_once(run)]
            ends = [run.history["coordinate_means"] for run in runs]
            if ends:
                tests = [
                    paired_test([means[-1][i] - means[0][i] for means in ends])
                    for i in range(len(_COORDINATES))
                ]
                found.append((method, sparsity, tests))
    return found


def _starts_at_once(run: Run) -> bool:
    return bool(run.history.get("coordinate_means")) and run.history["coordinate_steps"][0] == 0


def _sentences(panel: Panel, ways: Sequence[Way]) -> list[str]:
    """Say of each coordinate where it rises and falls over training."""
    comparable = _comparable(panel)
    sentences = []
    for place, title in enumerate(_COORDINATES):
        tested = {
            f"{method} at {percent(sparsity)}": tests[place]
            for method, sparsity, tests in ways
            if method in comparable and not math.isnan(tests[place].low)
        }
        if tested:
            rises = [name for name, test in tested.items() if test.low > 0]
            falls = [name for name, test in tested.items() if test.high < 0]
            sentences.append(
                f"{title} over training: larger at the end in {_counted(rises)}, smaller in "
                f"{_counted(falls)} of {many(len(tested), 'pair')} of method and sparsity."
            )
    return sentences


def _comparable(panel: Panel) -> set[str]:
    """The methods that change the topology, and no layer's number of weights from begin to end."""
    changing = [run for run in panel.runs if _changes(run)]
    others = {
        run.method
        for run in changing
        if _weights(run, "degrees_before") != _weights(run, "degrees_after")
    }
    return {run.method for run in changing} - others


def _coming(panel: Panel) -> set[str]:
    """The methods that come from another density, where the coordinates are far off."""
    ends = {
        run.method: [sum(_weights(run, f"degrees_{end}").values()) for end in ("before", "after")]
        for run in panel.runs
        if "degrees_before" in run.figures
    }
    return {method for method, (before, after) in ends.items() if before != after}


def _weights(run: Run, moment: str) -> dict[str, int]:
    layers = run.figures.get(moment, {})
    return {name: sum(degree * n for degree, n in sides["in"]) for name, sides in layers.items()}


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} ({listed(names)})" if names else "0"


def _components(panel: Panel) -> Figure:
    rows = {}
    for sparsity in panel.sparsities:
        cells = _coordinates(panel, sparsity)
        if any(cells.values()):
            rows[f"sparsity {percent(sparsity)}"] = cells
    name, coming = f"components-{panel.key}", _coming(panel)
    caption = (
        f"{panel.name}: the four coordinates over the optimizer's steps from before training on, "
        "means over the layers; mean over seeds, and the band holds all of them."
        f"{_of_coming(coming)}"
    )
    return Figure(name, draw_grid(name, panel, rows, coming), caption)


def _coordinates(panel: Panel, sparsity: float, layer: str | None = None) -> dict[str, Courses]:
    """The four coordinates over the steps: of a layer, or the means over all."""

    def read(place: int, run: Run) -> Sequence[float]:
        if layer is None:
            vectors = run.history.get("coordinate_means", ())
        else:
            vectors = run.history.get("coordinate_layers", {}).get(layer, ())
        return [vector[place] for vector in vectors]

    return {
        title: courses(panel, sparsity, "coordinate_steps", functools.partial(read, place))
        for place, title in enumerate(_COORDINATES)
    }


def _way_table(panel: Panel, ways: Sequence[Way]) -> Table:
    columns = [Column("method", is_text=True), Column("sparsity"), Column("n")]
    rows = [
        [
            Cell(method),
            Cell(percent(sparsity), sparsity),
            Cell(str(tests[0].n), tests[0].n),
            *map(_change_cell, tests),
        ]
        for method, sparsity, tests in ways
    ]
    caption = (
        f"{panel.name}: each coordinate (mean over the layers) at the last measurement less the "
        "one before training, mean over n seeds with its 95 % paired t interval; bold: the "
        "interval does not hold 0. No interval stands where all differences are equal, or where "
        "there is one seed."
    )
    return Table([*columns, *map(Column, _COORDINATES)], rows, caption)


def _change_cell(test: PairedTest) -> Cell:
    if math.isnan(test.mean):
        return NOTHING
    cell = signed_cell(test.mean, 3)
    note = interval(test.low, test.high, 3)
    return Cell(cell.text, cell.value, note, is_best=test.low > 0 or test.high < 0)


# ---- layers --------------------------------------------------------------------------------------


def _layers(panel: Panel, sparsity: float) -> list[Block]:
    runs = [run for method in panel.methods for run in panel.cell(method, sparsity)]
    known = _names([run.history.get("coordinate_layers", {}) for run in runs])
    shown = _some(known, 6)
    if not shown or not any(map(_changes, runs)):
        return []
    rows = {short_name(layer): _coordinates(panel, sparsity, layer) for layer in shown}
    name, coming = f"layers-{panel.key}-{_word(sparsity)}", _coming(panel)
    caption = (
        f"{panel.name}, sparsity {percent(sparsity)}: the coordinate of each layer over the "
        f"optimizer's steps{_of_layers(shown, known)}; mean over seeds, and the band holds all of "
        f"them.{_of_coming(coming)}"
    )
    return [Figure(name, draw_grid(name, panel, rows, coming), caption)]


def _degrees(panel: Panel, sparsity: float) -> list[Block]:
    cells = {
        method: runs
        for method in panel.methods
        if (runs := [run for run in panel.cell(method, sparsity) if _changes(run)])
        and all(run.figures.get("degrees_after") for run in runs)
    }
    known = _names([run.figures["degrees_after"] for runs in cells.values() for run in runs])
    shown = _some(known, 3)
    if not shown:
        return []
    name = f"degrees-{panel.key}-{_word(sparsity)}"
    caption = (
        f"{panel.name}, sparsity {percent(sparsity)}: share of the outputs by the number of "
        "weights that they keep (in-degree), and of the input taps (out-degree)"
        f"{_of_layers(shown, known)}, all seeds together. Filled: after the last update; line: "
        "before the first one, of methods that keep their number of weights."
    )
    begun = [method for method in cells if method not in _coming(panel)]
    return [Figure(name, draw_degrees(name, panel, cells, shown, begun), caption)]


def _names(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _some(layers: Sequence[str], most: int) -> list[str]:
    """So many layers as a figure can show, from the first to the last, evenly spread."""
    if len(layers) <= most:
        return list(layers)
    way = (len(layers) - 1) / (most - 1)
    return [layers[round(way * place)] for place in range(most)]


def _of_coming(coming: Collection[str]) -> str:
    if not coming:
        return ""
    return f" Partly beyond the frame: {listed(sorted(coming))}, which began with other densities."


def _of_layers(shown: Sequence[str], known: Sequence[str]) -> str:
    if len(shown) == len(known):
        return ""
    return f" ({len(shown)} of {len(known)} layers, evenly spread)"


def _word(sparsity: float) -> str:
    """A sparsity in the name of a file."""
    return f"{100 * sparsity:.6g}".replace(".", "-")
