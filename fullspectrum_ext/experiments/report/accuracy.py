"""The sections on accuracy, on published numbers and on the support of a teacher."""

import math
import statistics
from collections.abc import Sequence

from fullspectrum_ext.experiments.plan import Published
from fullspectrum_ext.experiments.report.content import (
    Block,
    Cell,
    Column,
    Figure,
    Finding,
    Heading,
    Section,
    Table,
)
from fullspectrum_ext.experiments.report.figures import draw_accuracy, draw_seeds, percent
from fullspectrum_ext.experiments.report.names import DENSE
from fullspectrum_ext.experiments.report.statistics import spread
from fullspectrum_ext.experiments.report.study import Panel, Study
from fullspectrum_ext.experiments.report.words import (
    NOTHING,
    mean_cell,
    signed_cell,
    usual_count,
)

_DEVIATIONS = "± is the standard deviation over seeds (that of a sample)"


def accuracy(study: Study) -> Section:
    """Show accuracy against sparsity, and beside what papers say.

    Args:
        study: All runs.

    Returns:
        The section.
    """
    blocks: list[Block] = []
    for panel in study.panels:
        blocks += [
            Heading(panel.name),
            *(Finding(panel.name, words) for words in _best(panel)),
            Figure(
                f"accuracy-{panel.key}",
                draw_accuracy(panel),
                f"{panel.name}: test accuracy after the last epoch, mean and standard deviation "
                "over seeds. Methods of one base share a colour; PAGS is dashed, with triangles. "
                "Points of one sparsity lie side by side.",
            ),
            Figure(
                f"seeds-{panel.key}",
                draw_seeds(panel),
                f"{panel.name}: test accuracy of each method, every seed and their mean.",
            ),
            _over_sparsities(panel, "test_accuracy", "Test accuracy, %"),
        ]
    if study.published:
        blocks += [Heading("Beside published numbers"), _published(study)]
    return Section("Accuracy against sparsity", blocks)


def support(study: Study) -> Section | None:
    """Show the share of a teacher's weights that was kept.

    Args:
        study: All runs.

    Returns:
        The section; None where no data set has a teacher.
    """
    name = "support_recovered"
    panels = [p for p in study.panels if any(name in run.figures for run in p.runs)]
    blocks: list[Block] = []
    for panel in panels:
        title = "Share of the teacher's weights that the mask kept, %"
        blocks += [Heading(panel.name), _over_sparsities(panel, name, title)]
    return Section("Recovery of a known teacher", blocks) if panels else None


def _best(panel: Panel) -> list[str]:
    """Name the best mean at each sparsity."""
    found = []
    for sparsity in panel.sparsities:
        values = {m: panel.finite(m, sparsity, "test_accuracy") for m in panel.methods}
        spreads = {m: spread(v) for m, v in values.items() if v and m != DENSE}
        if spreads:
            best = max(spreads, key=lambda method: spreads[method].mean)
            found.append(
                f"{best} at {percent(sparsity)} ({spreads[best].mean:.2f}\N{NO-BREAK SPACE}%)"
            )
    return [f"Highest mean accuracy: {', '.join(found)}."] if found else []


def _over_sparsities(panel: Panel, name: str, title: str) -> Table:
    """One row a method, one column a sparsity."""
    table = {m: [panel.finite(m, s, name) for s in panel.sparsities] for m in panel.methods}
    usual = usual_count([len(values) for row in table.values() for values in row if values])
    best = [
        max((m for m in table if m != DENSE and table[m][column]),
            key=lambda m: statistics.fmean(table[m][column]), default=None)
        for column in range(len(panel.sparsities))
    ]  # fmt: skip
    rows = []
    for method, row in table.items():
        cells = [mean_cell(values, usual=usual) for values in row]
        marked = [
            Cell(cell.text, cell.value, cell.note, is_best=method == best[column])
            for column, cell in enumerate(cells)
        ]
        rows.append([Cell(method), *marked])
    columns = [Column("method", is_text=True), *(Column(percent(s)) for s in panel.sparsities)]
    caption = f"{title}, {panel.name}. {_DEVIATIONS}; n = {usual} unless noted; bold: the highest."
    return Table(columns, rows, caption)


def _published(study: Study) -> Table:
    """Print each published number with what was measured."""
    titles = ("model, data", "method", "sparsity", "measured", "n", "published", "difference")
    columns = [Column(title, is_text=title in titles[:2]) for title in titles]
    rows = [
        _published_row(panel, number)
        for number in study.published
        for panel in _of_model(study.panels, number.model)
    ]
    caption = f"Test accuracy, %. {_DEVIATIONS}. Difference: measured less published."
    return Table([*columns, Column("source", is_text=True)], rows, caption)


def _of_model(panels: Sequence[Panel], model: str) -> list[Panel | None]:
    return [p for p in panels if p.runs[0].config["model"] == model] or [None]


def _published_row(panel: Panel | None, number: Published) -> list[Cell]:
    values = panel.finite(number.method, number.sparsity, "test_accuracy") if panel else []
    deviation = "" if math.isnan(number.spread) else f" ± {number.spread:g}"
    return [
        Cell(panel.name if panel else f"{number.model} (not run)"),
        Cell(number.method),
        Cell(percent(number.sparsity), number.sparsity),
        mean_cell(values, usual=len(values)),
        Cell(str(len(values)), len(values)),
        Cell(f"{number.accuracy:g}{deviation}", number.accuracy),
        signed_cell(statistics.fmean(values) - number.accuracy) if values else NOTHING,
        Cell(number.source),
    ]
