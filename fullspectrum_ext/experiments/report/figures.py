"""The figures of a report."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fullspectrum_ext.experiments.report.names import DENSE, kin
from fullspectrum_ext.experiments.report.study import Panel
from fullspectrum_ext.experiments.report.svg import FAINT, INK, PAPER, drawing

WIDTH = 9.6  # inches
# Read on white and on near-black; families of methods take them in turn.
_COLOURS = (
    "#2f7fd6", "#e07a1f", "#2f9e5f", "#d34a55", "#8d6cd0", "#a5754f",
    "#d465a6", "#17a2b8", "#a59a12", "#7f8c8d", "#5a6fd8", "#00917c",
)  # fmt: skip
# Of a family's own method: one for each turn of the colours.
_PLAIN: tuple[tuple[str, Any], ...] = (("o", "-"), ("*", (0, (7, 1.5))), ("d", (0, (4, 1, 1, 1))))
# Of what is derived from it.
_VARIANTS: tuple[tuple[str, Any], ...] = (
    ("o", "-"),
    ("^", "--"),
    ("s", ":"),
    ("D", "-."),
    ("v", "--"),
    ("P", ":"),
    ("X", "-."),
)
_LEVELS = ("#3f6fb5", "#2a9aa0", "#58b368", "#c2a321", "#e0792b", "#d14b6b")  # of sparsity
_MARKERS = "o^sDvPX"


@dataclass(frozen=True)
class Style:
    """How a method looks in every figure: its family's colour, its variant's marker and line."""

    color: str
    marker: str
    line: Any


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """Give each method its look.

    Args:
        methods: In the order of the legend.

    Returns:
        Method to style: a base and what derives from it share a colour.
    """
    names = {method: kin(method) for method in methods}
    families = list(dict.fromkeys(kin(m).family for m in methods if m != DENSE))
    variants = list(dict.fromkeys(["", "pags", *(name.variant for name in names.values())]))
    found = {}
    for method, name in names.items():
        if method == DENSE:
            found[method] = Style(INK, "o", "-")
            continue
        marker, line = _VARIANTS[variants.index(name.variant) % len(_VARIANTS)]
        turn, place = divmod(families.index(name.family), len(_COLOURS))
        if not name.variant:
            marker, line = _PLAIN[turn % len(_PLAIN)]
        found[method] = Style(_COLOURS[place], marker, line)
    return found


def percent(sparsity: float) -> str:
    """A sparsity in words: 0.95 is ``95 %`` (of one piece)."""
    return f"{round(100 * sparsity, 6):g}\N{NO-BREAK SPACE}%"


def short_name(layer: str) -> str:
    """A layer by the name of its weight, without that word."""
    return layer.removesuffix(".weight")


def draw_accuracy(panel: Panel) -> str:
    """Draw accuracy against sparsity, mean and standard deviation over seeds."""
    looks = styles(panel.methods)

    def draw(figure: Any, axes: Any) -> None:
        axis = axes[0, 0]
        places = {s: -math.log10(1 - s) for s in panel.sparsities}
        span = max(places.values()) - min(places.values()) or 1.0
        shown = [method for method in panel.methods if method != DENSE]
        step = 0.035 * span / max(len(shown), 1) if len(places) > 1 else span / max(len(shown), 1)
        for number, method in enumerate(shown):
            points = [
                (places[s] + (number - (len(shown) - 1) / 2) * step, values)
                for s in panel.sparsities
                if (values := panel.finite(method, s, "test_accuracy"))
            ]
            if points:
                look = looks[method]
                axis.errorbar(
                    [x for x, _ in points],
                    [statistics.fmean(values) for _, values in points],
                    [statistics.stdev(v) if len(v) > 1 else 0.0 for _, v in points],
                    color=look.color, marker=look.marker, linestyle=look.line, label=method,
                    markersize=4.5, linewidth=1.3, elinewidth=0.8, markeredgewidth=0,
                )  # fmt: skip
        dense = panel.finite(DENSE, panel.sparsities[0], "test_accuracy")
        if dense:
            axis.axhline(statistics.fmean(dense), color=INK, linewidth=1, label=DENSE)
        axis.set_xticks(list(places.values()), [percent(s) for s in places])
        axis.set(xlabel="sparsity", ylabel="test accuracy, %")
        axis.grid(visible=False, axis="x")
        legend(figure, axis)

    height = max(4.2, 0.9 + 0.19 * len(panel.methods))
    return drawing(f"accuracy-{panel.key}", draw, width=WIDTH, height=height, rows=1, columns=1)


def draw_seeds(panel: Panel) -> str:
    """Draw each method's accuracy: every seed, and their mean."""
    looks = styles(panel.methods)

    def draw(_figure: Any, axes: Any) -> None:
        for axis, sparsity in _by_sparsity(panel, axes):
            for row, method in enumerate(panel.methods):
                values = panel.finite(method, sparsity, "test_accuracy")
                if values:
                    color, mean = looks[method].color, statistics.fmean(values)
                    axis.plot(values, [row] * len(values), "o", ms=4, mew=0, color=color, alpha=0.4)
                    axis.plot(mean, row, "|", ms=11, mew=2, color=color, zorder=3)
            axis.set_xlabel("test accuracy, %")

    height = 0.9 + 0.2 * len(panel.methods)
    return panels(f"seeds-{panel.key}", draw, len(panel.sparsities), columns=4, height=height)


def draw_ways(panel: Panel) -> str:
    """Draw each method's norm before and after training, means over seeds."""
    looks = styles(panel.methods)

    def draw(_figure: Any, axes: Any) -> None:
        for axis, sparsity in _by_sparsity(panel, axes):
            for row, method in enumerate(panel.methods):
                ends = [
                    panel.finite(method, sparsity, f"norm_{end}") for end in ("before", "after")
                ]
                if all(ends):
                    before, after = (statistics.fmean(values) for values in ends)
                    color = looks[method].color
                    axis.plot([before, after], [row, row], color=color, lw=1.4, zorder=2)
                    axis.plot(before, row, "o", ms=5, mec=color, mfc=PAPER, mew=1.3, zorder=3)
                    axis.plot(after, row, "o", ms=5, mec=color, mfc=color, mew=1.3, zorder=3)
            axis.set_xlabel("norm")

    height = 0.9 + 0.2 * len(panel.methods)
    return panels(f"norms-{panel.key}", draw, len(panel.sparsities), columns=4, height=height)


@dataclass(frozen=True)
class Cloud:
    """Points of one column of a scatter: a measure against accuracy.

    Attributes:
        title: Of the measure.
        points: What each control leaves of measure and accuracy, by its name.
        sparsities: Of the runs.
    """

    title: str
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    sparsities: Sequence[float]


def draw_clouds(panel: Panel, clouds: Sequence[Cloud]) -> str:
    """Draw measures against accuracy: as they are, and what each control leaves."""
    levels = {s: number for number, s in enumerate(panel.sparsities)}

    def draw(figure: Any, axes: Any) -> None:
        for column, cloud in enumerate(clouds):
            for row, (control, (x, y)) in enumerate(cloud.points.items()):
                axis = axes[row, column]
                for sparsity, level in levels.items():
                    at = [i for i, other in enumerate(cloud.sparsities) if other == sparsity]
                    color = _LEVELS[level * (len(_LEVELS) - 1) // max(len(levels) - 1, 1)]
                    axis.plot(
                        [x[i] for i in at], [y[i] for i in at], linestyle="", color=color,
                        marker=_MARKERS[level % len(_MARKERS)], markersize=3.2, alpha=0.65,
                        markeredgewidth=0, label=percent(sparsity),
                    )  # fmt: skip
                if not column:
                    axis.set(ylabel=f"residual {control}, %" if row else "test accuracy, %")
                if row:
                    axis.axhline(0, color=FAINT, linewidth=1.6, zorder=0.9)
                    axis.axvline(0, color=FAINT, linewidth=1.6, zorder=0.9)
            axes[0, column].set(title=cloud.title)
            axes[-1, column].set(xlabel=f"{cloud.title}, residual")
        legend(figure, axes[0, 0], title="sparsity")

    rows, columns = len(clouds[0].points), len(clouds)
    name = f"prediction-{panel.key}"
    return drawing(name, draw, width=WIDTH, height=2.7 * rows, rows=rows, columns=columns)


def panels(name: str, draw: Any, count: int, *, columns: int, height: float) -> str:
    """Draw so many panels, side by side and below each other."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    width = WIDTH if columns > 1 else 0.75 * WIDTH
    return drawing(name, draw, width=width, height=height * rows, rows=rows, columns=columns)


def _by_sparsity(panel: Panel, axes: Any) -> Iterator[tuple[Any, float]]:
    """Panels with a row for each method; what is drawn comes between this and its next one."""
    for axis, sparsity in zip(used(axes, len(panel.sparsities)), panel.sparsities, strict=True):
        yield axis, sparsity
        axis.set(title=f"sparsity {percent(sparsity)}", ylim=(len(panel.methods) - 0.4, -0.6))
        axis.set_yticks(range(len(panel.methods)), panel.methods)
        axis.tick_params(labelleft=axis.get_subplotspec().is_first_col())


def used(axes: Any, count: int) -> list[Any]:
    """The first panels; the rest is made invisible."""
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return list(axes.flat[:count])


def legend(figure: Any, *axes: Any, title: str | None = None) -> None:
    """One legend for all panels, right of them."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="outside right upper", title=title,
            alignment="left", handlelength=2.6, labelspacing=0.35,
        )  # fmt: skip
