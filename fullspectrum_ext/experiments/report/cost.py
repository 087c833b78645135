"""The section on time and memory."""

import math

from fullspectrum_ext.experiments.report.content import (
    Block,
    Cell,
    Column,
    Heading,
    Section,
    Table,
    Text,
)
from fullspectrum_ext.experiments.report.figures import percent
from fullspectrum_ext.experiments.report.study import Panel, Study
from fullspectrum_ext.experiments.report.words import many, mean_cell, median_cell, usual_count

_FIGURES = {
    "pruning_seconds": ("pruning, s", 1.0),
    "training_seconds": ("training, s", 1.0),
    "held_bytes": ("held, MB", 1e-6),
    "peak_bytes": ("peak, MB", 1e-6),
}
_MACHINE = ("platform", "cpu_features", "gpu", "threads")


def cost(study: Study) -> Section:
    """Show seconds and bytes, with the accuracy that they bought.

    Args:
        study: All runs.

    Returns:
        The section.
    """
    blocks: list[Block] = [Text(_machines(study))]
    for panel in study.panels:
        blocks += [Heading(panel.name), _table(panel)]
    return Section("Time and memory", blocks)


def _machines(study: Study) -> str:
    kinds = {tuple(run.environment.get(fact) for fact in _MACHINE) for run in study.runs}
    where = (
        "on machines of one kind, with one number of threads"
        if len(kinds) == 1
        else f"on {many(len(kinds), 'kind')} of machines or numbers of threads, and compare only "
        "between runs of the same"
    )
    return (
        f"The seconds were measured {where}. They depend on the machine and on what else ran "
        "there: of a sweep that ran in several processes, they hold the others' load as well."
    )


def _table(panel: Panel) -> Table:
    shown = {
        name: head
        for name, head in _FIGURES.items()
        if any(math.isfinite(run.number(name)) for run in panel.runs)
    }
    columns = [Column("method", is_text=True), Column("sparsity"), Column("test accuracy, %")]
    columns += [Column(title) for title, _ in shown.values()]
    cells = [
        (method, sparsity)
        for method in panel.methods
        for sparsity in panel.sparsities
        if panel.cell(method, sparsity)
    ]
    usual = usual_count([len(panel.cell(*place)) for place in cells])
    rows = [
        [
            Cell(method),
            Cell(percent(sparsity), sparsity),
            mean_cell(panel.finite(method, sparsity, "test_accuracy"), usual=usual),
            *(
                median_cell([scale * value for value in panel.finite(method, sparsity, name)])
                for name, (_, scale) in shown.items()
            ),
        ]
        for method, sparsity in cells
    ]
    caption = (
        f"{panel.name}: medians over seeds, below them the quartiles (of fewer than four seeds, "
        "the ends); accuracy as mean ± standard deviation."
    )
    if "held_bytes" in shown:
        caption += " Held: weights, gradients and the optimizer's state."
    return Table(columns, rows, caption)
