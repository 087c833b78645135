"""The section on what was run: settings, commits and machines, and what is missing."""

from collections import Counter
from typing import Any

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
from fullspectrum_ext.experiments.report.study import Panel, Study, differing
from fullspectrum_ext.experiments.report.words import listed, many

_SHOWN = ("epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "candidates")
_SHOWN_FAILURES = 20


def setup(study: Study) -> Section:
    """Say what was run, by what and where, and what is missing.

    Args:
        study: All runs.

    Returns:
        The section.
    """
    blocks: list[Block] = [_panel_table(study)]
    for panel in study.panels:
        for name, values in differing(panel.runs).items():
            words = f"{panel.name}: the runs differ in {name}: {listed(values)}."
            blocks.append(Text(words))
    if study.repeated:
        runs = many(study.repeated, "run")
        blocks.append(Text(f"{runs} came again with the same settings; the first one is taken."))
    blocks += _missing(study)
    blocks += [Heading("Commits and environments"), _environments(study)]
    return Section("What was run", blocks)


def _panel_table(study: Study) -> Table:
    columns = [Column(title, is_text=True) for title in ("model, data", "methods", "sparsities")]
    columns += [Column("seeds"), Column("runs"), Column("settings", is_text=True)]
    rows = [
        [
            Cell(panel.name),
            Cell(f"{len(panel.methods)}: {listed(panel.methods, 40)}", len(panel.methods)),
            Cell(", ".join(map(percent, panel.sparsities))),
            _count(len({run.seed for run in panel.runs})),
            _count(len(panel.runs)),
            Cell(_settings(panel)),
        ]
        for panel in study.panels
    ]
    return Table(columns, rows, "Each run is one method with one seed at one sparsity.")


def _count(number: int) -> Cell:
    return Cell(str(number), number)


def _settings(panel: Panel) -> str:
    known = [name for name in _SHOWN if all(name in run.config for run in panel.runs)]
    values = {name: dict.fromkeys(run.config[name] for run in panel.runs) for name in known}
    return ", ".join(f"{k.replace('_', ' ')} {' / '.join(map(str, v))}" for k, v in values.items())


def _missing(study: Study) -> list[Block]:
    """Say which runs are planned and not there, and which failed."""
    blocks: list[Block] = []
    if study.absent is not None:
        runs = many(len(study.absent), "planned run")
        words = f"{runs} not finished: {listed(study.absent)}." if study.absent else ""
        other = "other " * bool(study.failures)
        blocks.append(Text(words or f"All {other}planned runs are finished."))
    if study.failures:
        columns = [Column("failed run", is_text=True), Column("error", is_text=True)]
        rows = [[Cell(fail.name), Cell(fail.error)] for fail in study.failures[:_SHOWN_FAILURES]]
        more = len(study.failures) - len(rows)
        caption = f"{many(len(study.failures), 'run')} failed{f', {more} not shown' * bool(more)}."
        blocks.append(Table(columns, rows, caption))
    no_accuracy = sum(run.accuracy != run.accuracy for run in study.runs)
    if no_accuracy:
        runs = many(no_accuracy, "run")
        blocks.append(Text(f"Without an accuracy that is a number, and left out below: {runs}."))
    return blocks


def _environments(study: Study) -> Table:
    """One line for each different environment."""
    counts: Counter[tuple[tuple[str, Any], ...]] = Counter(
        tuple(sorted(run.environment.items())) for run in study.runs
    )
    facts = list(dict.fromkeys(name for run in study.runs for name in run.environment))
    facts.sort(key=lambda name: name != "git_commit")
    columns = [Column(name.replace("_", " "), is_text=True) for name in facts]
    rows = [
        [*(Cell(_fact(dict(found).get(name))) for name in facts), _count(number)]
        for found, number in counts.items()
    ]
    caption = "A commit that ends in -dirty had changes that are in no commit."
    return Table([*columns, Column("runs")], rows, caption)


def _fact(value: Any) -> str:
    return "none" if value is None else str(value)
