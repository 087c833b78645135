"""What each layer of a model costs dense, dense with a mask and truly sparse."""

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from fullspectrum_ext._layers import PRUNABLE, prunable_weights
from fullspectrum_ext._progress import LateProgress
from fullspectrum_ext.experiments.data import DATASETS
from fullspectrum_ext.experiments.environment import environment
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.experiments.models.layers import Shape
from fullspectrum_ext.nn import sparsify, training_bytes
from fullspectrum_ext.nn.backend import MASKED, SPARSE, choose
from fullspectrum_ext.nn.timing import LayerUse, layer_uses, time_steps

DENSE = "dense"
_SECONDS = 0.3  # for one layer at one sparsity
_ANCHORS = (0.5, 0.95)  # measured as well, so that a break-even lies near what was measured
_FORMS = (DENSE, MASKED, SPARSE)

Number = TypeVar("Number", int, float)


def numbers(name: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """Read numbers with commas between.

    Args:
        name: Of the option, for the message.
        text: What was given.
        kind: ``int`` or ``float``.

    Returns:
        The numbers.

    Raises:
        ValueError: If it holds something else.

    Example:
        >>> numbers("--input-shape", "3,32,32", int)
        [3, 32, 32]
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name}: expected numbers with commas between, got {text!r}") from error


def benched_shape(data: str | None, input_shape: str | None) -> Shape:
    """Return the shape of one input, from a data set's name or as it is given.

    Args:
        data: Key of ``DATASETS``, or None.
        input_shape: Numbers with commas between, or None.

    Returns:
        The shape; that of digits where nothing is given.

    Raises:
        ValueError: If both are given, or one is not what it should be.
    """
    if input_shape is None:
        if data is not None and data not in DATASETS:
            raise ValueError(f"--data: expected one of {', '.join(DATASETS)}, got {data!r}")
        return DATASETS[data or "digits"].shape
    if data is not None:
        raise ValueError("--data, --input-shape: expected at most one of them")
    shape = tuple(numbers("--input-shape", input_shape, int))
    if min(shape) < 1:
        raise ValueError(f"--input-shape: expected sizes of at least 1, got {input_shape}")
    return shape


def bench_model(
    model: str,
    *,
    shape: Shape,
    batch: int,
    sparsities: Sequence[float],
    threads: int = 0,
    progress: LateProgress | None = None,
) -> dict[str, Any]:
    """Time the layers of a model at the shapes they have in it.

    Layers of equal shapes are measured once. The masks are random, of the same sparsity in every
    layer.

    Args:
        model: Key of ``MODELS``, or ``package.module:function``.
        shape: Of one input.
        batch: Inputs in a step.
        sparsities: Of each layer, in [0, 1).
        threads: CPU threads; 0 leaves torch's own number.
        progress: Where to show how far it is.

    Returns:
        ``rows``: for each layer and sparsity the seconds and bytes of the three forms, the
        break-even sparsity (None: never) and the choice; ``totals``, for each sparsity the sums and
        those of what was chosen; ``model``, ``batch``, ``shape``, ``environment``.

    Raises:
        ValueError: If a number is out of range, or the model has no layer that can be sparse or
            cannot be run with such inputs.
    """
    for sparsity in sparsities:
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity: expected a fraction in [0, 1), got {sparsity}")
    if batch < 1 or threads < 0:
        raise ValueError(f"batch, threads: expected at least 1 and 0, got {batch} and {threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        network = build_model(model, shape, 10, seed=0)
        rows = _rows(network, torch.zeros(batch, *shape), sparsities, progress or LateProgress())
        facts = environment()
    finally:
        torch.set_num_threads(before)
    return {
        "model": model,
        "shape": list(shape),
        "batch": batch,
        "environment": facts,
        "rows": rows,
        "totals": [_total(rows, sparsity) for sparsity in sparsities],
    }


def _rows(
    network: nn.Module, x: Tensor, sparsities: Sequence[float], progress: LateProgress
) -> list[dict[str, Any]]:
    named = [
        (name, network.get_submodule(name.rpartition(".")[0]))
        for name, _ in prunable_weights(network)
    ]
    layers = {name: layer for name, layer in named if isinstance(layer, PRUNABLE)}
    if not layers:
        raise ValueError("model: expected Linear or Conv2d layers, it has none")
    uses = layer_uses(network, layers, x)
    cells = list(dict.fromkeys((*sparsities, *_ANCHORS)))
    measured: dict[str, dict[float, dict[str, Any]]] = {}
    rows = []
    for done, (name, layer) in enumerate(layers.items()):
        progress.start(name)
        key = f"{layer} {uses[name]}"
        if key not in measured and uses[name]:
            measured[key] = {}
            for i, cell in enumerate(cells):
                progress.advance(done * len(cells) + i, len(layers) * len(cells))
                measured[key][cell] = _cell(layer, uses[name], cell)
        found = measured.get(key, {})
        rows += [
            {
                "layer": name,
                "input": [list(use.shape) for use in uses[name]],
                "sparsity": cell,
                **found[cell],
                "break_even": _break_even(found),
            }
            for cell in sparsities
            if found
        ]
    return rows


def _cell(layer: nn.Module, uses: list[LayerUse], sparsity: float) -> dict[str, Any]:
    """Time one layer at one sparsity in its three forms."""
    weight = layer.get_parameter("weight")
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(weight.shape, generator=generator) >= sparsity
    forms = {
        DENSE: copy.deepcopy(layer),
        **{
            form: sparsify(copy.deepcopy(layer), {"weight": mask}, backend=form, allow_empty=True)
            for form in (MASKED, SPARSE)
        },
    }
    turns = [time_steps(forms, use, seconds=_SECONDS / len(uses)) for use in uses]
    rounds = min(len(times[DENSE]) for times in turns)
    times = {form: [sum(turn[form][i] for turn in turns) for i in range(rounds)] for form in forms}
    return {
        "density": int(mask.sum()) / mask.numel(),
        "seconds": {form: statistics.median(seconds) for form, seconds in times.items()},
        "bytes": {form: training_bytes(module) for form, module in forms.items()},
        "choice": choose(times[SPARSE], times[MASKED]).backend,
    }


def _break_even(cells: Mapping[float, Mapping[str, Any]]) -> float | None:
    """Return the sparsity from which on the sparse layer is faster; None: never."""
    # where the straight line through its seconds over the density meets the dense layer's
    densities = [cell["density"] for cell in cells.values()]
    seconds = [cell["seconds"][SPARSE] for cell in cells.values()]
    dense = statistics.median(cell["seconds"][DENSE] for cell in cells.values())
    if len(set(densities)) < 2:
        return None  # a handful of weights, of which the masks keep as many at each sparsity
    slope, overhead = statistics.linear_regression(densities, seconds)
    if overhead >= dense:
        return None
    return max(0.0, 1 - (dense - overhead) / slope) if slope > 0 else 0.0


def _total(rows: Sequence[Mapping[str, Any]], sparsity: float) -> dict[str, Any]:
    chosen = [row for row in rows if row["sparsity"] == sparsity]
    total: dict[str, Any] = {"sparsity": sparsity}
    for quantity in ("seconds", "bytes"):
        total[quantity] = {form: sum(row[quantity][form] for row in chosen) for form in _FORMS}
        total[quantity]["auto"] = sum(row[quantity][row["choice"]] for row in chosen)
    return total


def bench_table(found: Mapping[str, Any]) -> Table:
    """Return a table of what :func:`bench_model` found, for people."""
    facts = found["environment"]
    table = Table(
        title=f"{found['model']}, batch {found['batch']}, {facts['threads']} threads: ms a step",
        caption="forward and both gradients; MB of weights, gradients and Adam's state",
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("layer", overflow="fold")
    table.add_column("input")
    for header in ("sparsity", "dense", "masked", "sparse", "dense/sparse", "MB dense", "MB sparse",
                   "break-even"):  # fmt: skip
        table.add_column(header, justify="right")
    table.add_column("auto")
    for row in found["rows"]:
        table.add_row(
            row["layer"],
            " ".join("x".join(map(str, shape)) for shape in row["input"]),
            *_cells(row),
            "never" if row["break_even"] is None else f"{row['break_even']:.0%}",
            row["choice"],
        )
    table.add_section()
    for total in found["totals"]:
        milliseconds, megabytes = total["seconds"]["auto"] * 1e3, total["bytes"]["auto"] / 1e6
        auto = f"{milliseconds:.3g} ms, {megabytes:.3g} MB"
        table.add_row("all layers", "", *_cells(total), "", auto)
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    seconds, held = row["seconds"], row["bytes"]
    return [
        f"{row['sparsity']:g}",
        *(f"{seconds[form] * 1e3:.3g}" for form in _FORMS),
        f"{seconds[DENSE] / seconds[SPARSE]:.1f}",
        f"{held[DENSE] / 1e6:.3g}",
        f"{held[SPARSE] / 1e6:.3g}",
    ]
