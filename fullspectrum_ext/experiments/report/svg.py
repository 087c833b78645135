"""Drawings as SVG that takes its ink, paper and font from where it is shown."""

import re
from collections.abc import Callable
from io import StringIO
from typing import Any

from fullspectrum_ext.experiments.extras import MissingExtraError

INK, FAINT, PAPER = "#010203", "#030201", "#fdfefd"
"""Colours that stand for the text's, that of lines behind the data, and the ground's."""

_ON_PAGE = {INK: "var(--ink)", FAINT: "var(--line)", PAPER: "var(--paper)"}
_IN_FILE = {INK: "#22262b", FAINT: "#d8dbdf", PAPER: "#ffffff"}
_FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


def drawing(
    name: str, draw: Callable[..., None], *, width: float, height: float, rows: int, columns: int
) -> str:
    """Draw panels and return them as SVG, the same bytes whenever the input is the same.

    Args:
        name: Unique on a page: the ids in the SVG derive from it.
        draw: Called with the figure and its axes, ``[rows, columns]``.
        width: In inches, 72 points each.
        height: In inches.
        rows: Of panels.
        columns: Of panels.

    Returns:
        The SVG, with INK, FAINT and PAPER in it; see :func:`on_page` and :func:`in_file`.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure  # not pyplot: no display, no state
    except ImportError as error:
        raise MissingExtraError("report", "matplotlib", "report") from error
    settings: dict[Any, Any] = {
        "svg.hashsalt": name,
        "svg.fonttype": "none",
        "text.parse_math": False,  # names are text, whatever signs are in them
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.edgecolor": FAINT,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": "none",
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "text.color": INK,
        "xtick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.color": FAINT,
        "ytick.labelcolor": INK,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure, figure.subplots(rows, columns, squeeze=False))
        file = StringIO()
        nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    return _plain(file.getvalue(), name)


def _plain(svg: str, name: str) -> str:
    """Leave out what a page does not need: prolog, namespaces, fonts, repeated ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg id="{name}" \1>', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    return re.sub(r"font: ((?:\w+ )*?)([\d.]+px) [^;\"]*", r"font-size: \2", svg)


def on_page(svg: str) -> str:
    """Let a drawing take the colours of the page that it stands in."""
    return _coloured(svg, _ON_PAGE)


def in_file(svg: str) -> str:
    """Make a file of its own of a drawing, on white."""
    opening = f"<svg xmlns='http://www.w3.org/2000/svg' {_FONT} style='background: #ffffff' "
    return _coloured(svg, _IN_FILE).replace("<svg ", opening, 1)


def _coloured(svg: str, colours: dict[str, str]) -> str:
    return re.sub("|".join(colours), lambda match: colours[match[0]], svg)
