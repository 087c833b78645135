"""Figures without a display: started here, returned as the content of a PNG file."""

from io import BytesIO
from typing import Any

from fullspectrum_ext.experiments.extras import MissingExtraError


def new_figure(columns: int) -> tuple[Any, Any]:
    """Start a figure with some panels side by side.

    Args:
        columns: How many.

    Returns:
        The figure and its axes.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no display, no state
    except ImportError as error:
        raise MissingExtraError("figure", "matplotlib", "plots") from error
    figure = Figure(figsize=(6.5 * columns, 4.5), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def png(figure: Any) -> bytes:
    """Return the figure as the content of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
