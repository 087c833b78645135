"""Draw what results/cpu holds of sparse layers and of training as figures.

The first figure shows how many times faster than the dense layer with its mask a training step of a
layer is, at each sparsity; the second the images per second of whole networks. Bands lie between
the quartiles of a line's own times.

    python benchmarks/plot_speed.py docs/figures/sparse_layers.png docs/figures/training.png
"""

import argparse
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, StrMethodFormatter
from measure import RESULTS, Quartiles

Rows = list[dict[str, Any]]
Line = Sequence[tuple[float, Quartiles]]
"""Points: sparsity, and what is drawn at it with its quartiles."""

LINEAR = ((300, 784, 512), (1024, 1024, 128), (1024, 1024, 512), (4096, 4096, 128))
CONV2D = ((64, 32), (128, 16), (256, 8), (512, 4))
COLORS = {
    "ours": "C0",
    "dense": "black",
    "dense, channels last": "C4",
    "dense with mask": "0.55",
    "torch CSR": "C1",
    "SparseProp": "C2",
    "SparseLab": "C3",
}


def rows_of(name: str) -> Rows:
    """Read the rows of a results file."""
    rows: Rows = json.loads((RESULTS / "cpu" / f"{name}.json").read_text())["rows"]
    return rows


def faster(time: dict[str, float], base: float) -> Quartiles:
    """Turn seconds into how many times faster than ``base`` they are."""
    return Quartiles(base / time["upper"], base / time["median"], base / time["lower"])


def layer_lines(rows: Iterable[dict[str, Any]]) -> dict[str, Line]:
    """Return a line for each candidate: its speed over that of the dense layer with its mask.

    Of dense and SparseProp's convolution there are two, and the faster one is taken.
    """
    lines: dict[str, list[tuple[float, Quartiles]]] = {}
    for row in sorted(rows, key=lambda row: row["sparsity"]):
        best: dict[str, dict[str, float]] = {}
        for call, time in row["seconds"].items():
            name = call.split(",")[0].replace("fullspectrum", "ours")
            if name not in best or time["median"] < best[name]["median"]:
                best[name] = time
        base = best["dense with mask"]["median"]
        for name, time in best.items():
            if name in COLORS:
                lines.setdefault(name, []).append((row["sparsity"], faster(time, base)))
    return lines  # type: ignore[return-value]


def draw(panel: Axes, lines: dict[str, Line], title: str) -> None:
    """Draw lines over the sparsity, both axes logarithmic; a step to the right is less density."""
    for name, line in lines.items():
        density = [1 - sparsity for sparsity, _ in line]
        lower, median, upper = zip(*(value for _, value in line), strict=True)
        color = COLORS[name]
        panel.plot(density, median, color=color, label=name, marker="o", markersize=3)
        panel.fill_between(density, lower, upper, color=color, alpha=0.2, linewidth=0)
    panel.set_xscale("log")
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.invert_xaxis()
    shown = sorted({sparsity for line in lines.values() for sparsity, _ in line})
    panel.xaxis.set_major_locator(FixedLocator([1 - sparsity for sparsity in shown]))
    panel.xaxis.set_major_formatter(FixedFormatter([f"{sparsity:.0%}" for sparsity in shown]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(alpha=0.3)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("sparsity")


def draw_layers(out: pathlib.Path) -> None:
    """Draw the steps of single layers."""
    linear = [row for row in rows_of("sparse_linear") if row["pass"] == "step"]
    conv2d = [row for row in rows_of("sparse_conv2d") if row["pass"] == "step"]
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    panels = figure.subplots(2, 4, sharey="row")
    for panel, (outputs, inputs, batch) in zip(panels[0], LINEAR, strict=True):
        size = {"out_features": outputs, "in_features": inputs, "batch": batch, "threads": 2}
        own = [row for row in linear if size.items() <= row.items()]
        draw(panel, layer_lines(own), f"Linear {inputs} to {outputs}, batch {batch}")
    for panel, (channels, pixels) in zip(panels[1], CONV2D, strict=True):
        shape = {"channels": channels, "size": pixels}
        own = [row for row in conv2d if shape.items() <= row.items()]
        title = f"3 x 3, {channels} channels, {pixels} x {pixels}, batch {own[0]['batch']}"
        draw(panel, layer_lines(own), title)
    for row in panels:
        row[0].set_ylabel("times faster than dense with mask")
        row[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)


def draw_training(out: pathlib.Path) -> None:
    """Draw the images per second of whole networks."""
    rows = [row for row in rows_of("training") if row["form"] in COLORS]
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(3.3 * len(models), 3.4), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        own = [row for row in rows if row["model"] == model]
        lines = {
            form: [
                (row["sparsity"], faster(row["seconds"], row["batch"]))
                for row in own
                if row["form"] == form
            ]
            for form in dict.fromkeys(row["form"] for row in own)
        }
        draw(panel, lines, f"{model}, batch {own[0]['batch']}")
    panels[0].set_ylabel("images per second, whole training step")
    panels[-1].legend(fontsize=8, loc="upper left")  # where every form is
    figure.savefig(out, dpi=110)


def main() -> None:
    """Draw both figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layers", type=pathlib.Path)
    parser.add_argument("training", type=pathlib.Path)
    options = parser.parse_args()
    draw_layers(options.layers)
    draw_training(options.training)


if __name__ == "__main__":
    main()
