"""What a person sees of a sweep: a bar and a line for each run, then tables."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fullspectrum_ext.experiments.config import TrainConfig
from fullspectrum_ext.experiments.summary import mean_and_deviation
from fullspectrum_ext.experiments.sweep import Sweep
from fullspectrum_ext.experiments.workers import Outcome


class SweepProgress:
    """A bar over the runs on a terminal; there and elsewhere a line for each that ends.

    Args:
        console: Where to write.
        total: Runs to do.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=24 * 3600,  # runs are long: the rate is that of all so far
        )
        self._all = self.bars.add_task("sweep", total=total)

    def end_run(self, outcome: Outcome) -> None:
        """Say what came of a run."""
        what = {
            "finished": f"test accuracy {outcome.accuracy:.2%}, {outcome.seconds:.1f} s",
            "failed": f"failed: {_last_line(outcome.message)}",
            "busy": "left to the process that is at work on it",
        }
        self.bars.console.print(
            f"{_title(outcome.config)}: {what[outcome.status]}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        self.bars.advance(self._all)


def sweep_line(sweep: Sweep, todo: int) -> str:
    """Where a sweep is and how much of it is done, in one line."""
    all_runs, own = len(sweep.plan.runs), len(sweep.runs)
    count = f"{all_runs} runs" if own == all_runs else f"{own} of {all_runs} runs in this shard"
    return f"{sweep.path}: {count}, {own - todo} finished"


def sweep_table(runs: Iterable[Mapping[str, Any]], title: str) -> Table:
    """One line for each model, sparsity and method, with accuracy over the seeds.

    Args:
        runs: As :func:`fullspectrum_ext.experiments.runs_file.read_runs` returns them.
        title: Of the table.

    Returns:
        A table for people.
    """
    blocks: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for entry in runs:
        config = entry["config"]
        block = blocks.setdefault((config["data"], config["model"], str(config["sparsity"])), {})
        accuracy = 100 * entry["run"]["test_accuracy"]
        block.setdefault(config["methods"][0], []).append(accuracy)
    table = _table(title, "data", "model")
    for header in ("sparsity", "method", "seeds", "test accuracy, %"):
        table.add_column(header, no_wrap=True, justify="left" if header == "method" else "right")
    for names, block in blocks.items():
        for method, accuracies in block.items():
            row = (*names, method, str(len(accuracies)), mean_and_deviation(accuracies))
            table.add_row(*map(escape, row))
        table.add_section()
    return table


def failures_table(outcomes: Iterable[Outcome]) -> Table:
    """What is wrong, and with which runs."""
    groups: dict[str, list[TrainConfig]] = {}
    for outcome in outcomes:
        if outcome.status == "failed":
            groups.setdefault(_last_line(outcome.message), []).append(outcome.config)
    table = _table("Failed runs; error.txt in a run's folder says more", "runs")
    table.add_column("reason", overflow="fold")
    for reason, configs in groups.items():
        titles = [_title(config) for config in configs[:3]]
        more = f"\nand {len(configs) - 3} more" if len(configs) > 3 else ""
        table.add_row(escape("\n".join(titles)) + more, escape(reason))
    return table


def plan_table(sweep: Sweep) -> Table:
    """Every run of a sweep and how far it is."""
    table = _table("", "data", "model")
    for header in ("sparsity", "method", "seed", "status"):
        justify = "left" if header in {"method", "status"} else "right"
        table.add_column(header, no_wrap=True, justify=justify)  # type: ignore[arg-type]
    for config in sweep.runs:
        names = config.data, config.model, str(config.sparsity), config.methods[0]
        table.add_row(*map(escape, names), str(config.seeds[0]), sweep.status(config))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _title(config: TrainConfig) -> str:
    return (
        f"{config.data}, {config.model}, {config.sparsity}, {config.methods[0]}, "
        f"seed {config.seeds[0]}"
    )


def _last_line(message: str) -> str:
    return message.rpartition("\n")[2]
