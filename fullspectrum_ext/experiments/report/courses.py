"""What is recorded again and again while networks train, and its curves."""

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fullspectrum_ext.experiments.report.figures import (
    WIDTH,
    legend,
    panels,
    percent,
    styles,
    used,
)
from fullspectrum_ext.experiments.report.study import Panel, Run
from fullspectrum_ext.experiments.report.svg import drawing

_MOST_POINTS = 150  # of a curve: more cannot be seen
_MOST_SMALL_POINTS = 60

Course = Sequence[tuple[int, Sequence[float]]]  # steps, and what the seeds have there
Courses = Mapping[str, Course]  # by method


def courses(
    panel: Panel, sparsity: float, steps: str, read: Callable[[Run], Sequence[float | None]]
) -> Courses:
    """Collect what was recorded at some steps of training.

    Args:
        panel: The runs.
        sparsity: Of those looked at.
        steps: Name of the steps in a run's history.
        read: Returns a run's values at these steps; None, or an empty sequence, for none.

    Returns:
        Method to steps and values; methods without any are left out.
    """
    found: dict[str, Course] = {}
    for method in panel.methods:
        values: dict[int, list[float]] = {}
        for run in panel.cell(method, sparsity):
            there = read(run) or [None] * len(run.history.get(steps, ()))
            for step, value in zip(run.history.get(steps, ()), there, strict=True):
                if value is not None:
                    values.setdefault(int(step), []).append(float(value))
        if values:
            found[method] = sorted(values.items())
    return found


def trajectories(panel: Panel, sparsity: float) -> Courses:
    """Collect the norms of the coordinate that were measured during training.

    Args:
        panel: The runs.
        sparsity: Of those looked at.

    Returns:
        Method to steps and norms; methods without any are left out.
    """
    return courses(
        panel, sparsity, "coordinate_steps", lambda run: run.history.get("coordinate_norms", ())
    )


def draw_trajectories(panel: Panel, measured: Mapping[float, Courses]) -> str:
    """Draw the norm over the optimizer's steps: mean, and a band of all seeds."""
    looks = styles(panel.methods)

    def draw(figure: Any, axes: Any) -> None:
        for axis, (sparsity, methods) in zip(
            used(axes, len(measured)), measured.items(), strict=True
        ):
            _draw(axis, methods, looks, _MOST_POINTS)
            axis.set(title=f"sparsity {percent(sparsity)}", xlabel="optimizer step", ylabel="norm")
        legend(figure, *axes.flat)

    return panels(f"trajectories-{panel.key}", draw, len(measured), columns=2, height=3.1)


def draw_grid(
    name: str,
    panel: Panel,
    rows: Mapping[str, Mapping[str, Courses]],
    coming: Collection[str] = (),
) -> str:
    """Draw curves in rows and columns: mean, and a band of all seeds.

    Args:
        name: Of the drawing.
        panel: The runs.
        rows: Title of a row to title of a column to what is drawn there; all rows have the same
            columns.
        coming: Methods that come from far off: only their ends are sure to be within the frame.

    Returns:
        The drawing.
    """
    looks = styles(panel.methods)
    columns = list(next(iter(rows.values())))

    def draw(figure: Any, axes: Any) -> None:
        for line, (row, cells) in zip(axes, rows.items(), strict=True):
            for axis, methods in zip(line, cells.values(), strict=True):
                _draw(axis, methods, looks, _MOST_SMALL_POINTS)
                if coming:
                    axis.set_ylim(_frame(methods, coming))
                axis.tick_params(labelsize=7.5)
            line[0].set_ylabel(row)
        for axis, title in zip(axes[0], columns, strict=True):
            axis.set_title(title)
        for axis in axes[-1]:
            axis.set_xlabel("optimizer step")
        legend(figure, *axes.flat)

    height = 0.5 + 1.75 * len(rows)
    return drawing(name, draw, width=WIDTH, height=height, rows=len(rows), columns=len(columns))


def _frame(methods: Courses, coming: Collection[str]) -> tuple[float, float] | None:
    """Bounds that hold all curves, but of those that come from far off only the ends."""
    values = [
        value
        for method, course in methods.items()
        for _, seeds in (course[-1:] if method in coming else course)
        for value in seeds
    ]
    if not values or min(values) == max(values):
        return None
    margin = 0.06 * (max(values) - min(values))
    return min(values) - margin, max(values) + margin


def _draw(axis: Any, methods: Courses, looks: Mapping[str, Any], most: int) -> None:
    for method, course in methods.items():
        thin = [*course[: -1 : max(1, len(course) // most)], course[-1]]
        steps, look = [step for step, _ in thin], looks[method]
        means = [statistics.fmean(values) for _, values in thin]
        low, high = [min(values) for _, values in thin], [max(values) for _, values in thin]
        axis.plot(steps, means, color=look.color, linestyle=look.line, lw=1.3, label=method)
        axis.fill_between(steps, low, high, color=look.color, alpha=0.13, linewidth=0)
