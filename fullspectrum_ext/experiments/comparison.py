"""Scores side by side: the distances between two files, and tables of figures as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from fullspectrum_ext.experiments.scoring import FileScore
from fullspectrum_ext.spectral.coordinates import COORDINATES

Rows = Sequence[Mapping[str, Any]]


def compare(scores: Mapping[str, FileScore]) -> dict[str, Any]:
    """Return the distances between two files, layer by layer and in all.

    Args:
        scores: Title to score, of two files.

    Returns:
        ``files``; ``distance``, the mean over the layers; ``layers``, name to its ``distance`` and
        to the difference of each coordinate, second file minus first, undefined ones as 0.

    Raises:
        ValueError: If there are not two files, or their layers differ.
    """
    if len(scores) != 2:
        raise ValueError(f"--compare: expected two different files, got {len(scores)}")
    first, second = (score.spectrum for score in scores.values())
    layers = {}
    for name, distance in first.distances(second).items():
        differences = second.layers[name].vector - first.layers[name].vector
        coordinates = dict(zip(COORDINATES, differences.tolist(), strict=True))
        layers[name] = {"distance": distance, **coordinates}
    return {"files": list(scores), "distance": first.distance(second), "layers": layers}


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """Return a table of what :func:`compare` found, for people, one line a layer."""
    table = Table(
        title="Distance in the full-spectrum view",
        caption="Coordinates: second file minus first.",
        show_footer=True,
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("layer", footer="mean", overflow="fold")
    table.add_column("distance", justify="right", footer=f"{comparison['distance']:.4f}")
    for header in ("Δ_R", "λ", "IMDB", "λ_imsg"):
        table.add_column(header, justify="right")
    for name, layer in comparison["layers"].items():
        differences = [f"{layer[coordinate]:+.4f}" for coordinate in COORDINATES]
        table.add_row(escape(name), f"{layer['distance']:.4f}", *differences)
    return table


def comparison_rows(comparison: Mapping[str, Any]) -> Rows:
    """Return what :func:`compare` found as one row a layer."""
    return [{"layer": name, **layer} for name, layer in comparison["layers"].items()]


def score_rows(scores: Mapping[str, FileScore]) -> Rows:
    """Return every single figure of each file's layers: one row a layer.

    Args:
        scores: Title to score.

    Returns:
        Rows with the same keys; of ``subgraphs`` their number, of bounds one column each.
    """
    rows = []
    for title, score in scores.items():
        for name, layer in score.to_dict()["layers"].items():
            row = {"file": title, "layer": name, "pattern": layer.pop("pattern")}
            for key, value in layer.items():
                if key == "subgraphs":
                    row[key] = len(value)
                elif isinstance(value, list):
                    row |= {f"{key}_{i}": part for i, part in enumerate(value, 1)}
                else:
                    row[key] = value
            rows.append(row)
    return rows


def csv_text(rows: Rows) -> str:
    """Write rows with the same keys as CSV with a header; what is undefined (None) is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
