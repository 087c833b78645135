"""What a job found: one table and one figure, made from ``results.json`` and ``records.jsonl``."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from fullspectrum_ext._files import write_atomically
from fullspectrum_ext.experiments.figures import new_figure, png
from fullspectrum_ext.experiments.folder import RunFolder
from fullspectrum_ext.experiments.records import read_json, read_records

Figures = Mapping[str, Any]


def results_table(results: Figures) -> Table:
    """One line a method: exact sparsity, accuracy, coordinate before and after, time.

    Args:
        results: What ``results.json`` holds.

    Returns:
        A table for people; spreads are standard deviations over the seeds.
    """
    config = results["config"]
    has_teacher = "support_recovered" in results["runs"][0]
    shares = ("test_accuracy", "support_recovered") if has_teacher else ("test_accuracy",)
    table = Table(
        title=f"{config['data']}, {config['model']}, {_seeds(config['seeds'])}",
        caption=(
            "± is the standard deviation over seeds. Test accuracy is that after the last epoch. "
            "The norm is that of the full-spectrum coordinate, before and after training under the "
            "same mask; the anchor distance is how far training moved it. Seconds: pruning + "
            "training."
            + (" Support: the share of the teacher's weights that is kept." * has_teacher)
        ),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("method", overflow="fold")  # where it is narrow, names give way to figures
    for header in (
        "sparsity\nkept / all",
        "accuracy and\nsupport %" if has_teacher else "test\naccuracy %",
        "norm before\nand after",
        "anchor\ndistance",
        "seconds",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for method, runs in _by_method(results["runs"]).items():
        sparsity, kept = (statistics.mean(run[key] for run in runs) for key in ("sparsity", "kept"))
        table.add_row(
            method,
            f"{sparsity:.4f}\n{kept:.0f} / {runs[0]['total']}",  # only pags:BASE:drift varies it
            "\n".join(mean_and_deviation([100 * run[key] for run in runs]) for key in shares),
            "\n".join(
                mean_and_deviation([run[key] for run in runs])
                for key in ("norm_before", "norm_after")
            ),
            mean_and_deviation([run["anchor_distance"] for run in runs]),
            " + ".join(
                f"{statistics.mean(run[key] for run in runs):.1f}"
                for key in ("pruning_seconds", "training_seconds")
            ),
        )
    return table


def draw_figure(folder: RunFolder) -> None:
    """Draw accuracy over epochs and against the coordinate, into the run folder.

    Where the coordinate was measured during training, its way is a third panel.

    Args:
        folder: Of a finished job.
    """
    records = read_records(folder.records)
    is_logged = any(record.get("coordinate_steps") for record in records)
    figure, (left, right, *trajectory) = new_figure(columns=3 if is_logged else 2)
    results = read_json(folder.results)
    curves = _by_method(records)
    for color, (method, runs) in enumerate(_by_method(results["runs"]).items()):
        epochs = sorted({record["epoch"] for record in curves[method]})
        accuracies = [
            [100 * r["validation_accuracy"] for r in curves[method] if r["epoch"] == epoch]
            for epoch in epochs
        ]
        left.plot(epochs, [statistics.mean(a) for a in accuracies], color=f"C{color}", label=method)
        left.fill_between(
            epochs, [min(a) for a in accuracies], [max(a) for a in accuracies], alpha=0.2, lw=0
        )
        for run in runs:
            y = 100 * run["test_accuracy"]
            right.plot([run["norm_before"], run["norm_after"]], [y, y], color=f"C{color}", lw=0.8)
            right.plot(run["norm_before"], y, "o", color=f"C{color}", mfc="white")
            right.plot(run["norm_after"], y, "o", color=f"C{color}")
    left.set(xlabel="epoch", ylabel="validation accuracy, % (mean; band: all seeds)")
    left.legend()
    right.set(
        xlabel="norm of the full-spectrum coordinate (open: initial, filled: trained weights)",
        ylabel="test accuracy, %",
    )
    if is_logged:
        _draw_trajectories(trajectory[0], curves)
    write_atomically(folder.figure, png(figure))


def _draw_trajectories(panel: Any, curves: Mapping[str, Sequence[Figures]]) -> None:
    """Draw the norm of the coordinate over the steps, one line a run."""
    for color, (method, records) in enumerate(curves.items()):
        for number, seed in enumerate(dict.fromkeys(record["seed"] for record in records)):
            run = [record for record in records if record["seed"] == seed]
            steps, norms = (
                [value for record in run for value in record[key]]
                for key in ("coordinate_steps", "coordinate_norms")
            )
            label = None if number else method
            panel.plot(steps, norms, color=f"C{color}", lw=1, label=label)
    panel.set(xlabel="optimizer step", ylabel="norm of the full-spectrum coordinate")
    panel.legend()


def _by_method(items: Iterable[Figures]) -> dict[str, list[Figures]]:
    groups: dict[str, list[Figures]] = {}
    for item in items:
        groups.setdefault(item["method"], []).append(item)
    return groups


def _seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Write the mean and, of more than one value, the standard deviation (that of a sample)."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
