"""Time the whole training step of four networks, and weigh them: dense, dense with mask, and ours.

A step is forward, loss, backward and the optimizer (SGD with momentum). "dense with mask" is the
usual way to train a sparse network: the weight is multiplied by its mask in every forward pass.
Dense convolutions are also timed in channels-last order, which is faster on some machines. "ours"
is `sparsify(model, masks, backend="auto", example=batch)`, whose choices are measured anew. The
masks are random and of equal sparsity in every layer but the last and a first convolution, which
stay dense, as is usual.

All forms of a network run in turns in one process. With --compiled, dense and ours are also timed
under `torch.compile`, which fuses batch normalisation, ReLU and residual additions for both alike.

Memory is taken from three steps with Adam in a process of its own for each form, with the
allocator's own settings: the bytes of weights, gradients, Adam's state and buffers (masks, indices,
statistics), counted tensor by tensor, and the peak of what the process held, imports apart.

The file is written anew after every network and sparsity, so that an interrupted run keeps what it
has. Choose parts by --models and --sparsities; --output then names their file.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import torch
from measure import RESULTS, memory, time_interleaved, write_json
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.nn import SparseConv2d, SparseLinear, sparsify

SHAPE, CLASSES = (3, 32, 32), 10
BATCHES = {"mlp-4096": 128, "resnet20": 128, "resnet20-64": 64, "vgg16": 32}
DENSE, MASKED, OURS = "dense", "dense with mask", "ours"
CHANNELS_LAST = "dense, channels last"


class _Mask(nn.Module):
    """The mask product that people write."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def masks_of(model: nn.Module, sparsity: float) -> dict[str, Tensor]:
    """Draw masks for all weights but the last, and but a convolution of the image's channels."""
    weights = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    first = int(model.get_parameter(weights[0]).dim() == 4)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(model.get_parameter(name).shape, generator=generator) >= sparsity
        for name in weights[first:-1]
    }


def build(form: str, name: str, sparsity: float, x: Tensor) -> nn.Module:
    """Build a network in one of its forms."""
    model = build_model(name, SHAPE, CLASSES, seed=0)
    if form == DENSE:
        return model
    if form == CHANNELS_LAST:
        return model.to(memory_format=torch.channels_last)
    masks = masks_of(model, sparsity)
    if form == OURS:
        return sparsify(model, masks, example=x)
    for weight, mask in masks.items():
        layer = model.get_submodule(weight.rpartition(".")[0])
        parametrize.register_parametrization(layer, "weight", _Mask(mask))
    return model


class Step:
    """One training step of a model, with an optimizer of its parameters."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
    ) -> None:
        self.model, self.optimizer, self.x, self.y = model.train(), optimizer, x, y

    def __call__(self) -> None:
        """Forward, backward, optimizer."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()


def timed_step(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Return the step whose time is taken."""
    return Step(model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), x, y)


def examples(batch: int) -> tuple[Tensor, Tensor]:
    """Draw a batch of images and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *SHAPE, generator=generator)
    return x, torch.randint(CLASSES, (batch,), generator=generator)


def memory_in_training(form: str, name: str, sparsity: float, batch: int) -> dict[str, int]:
    """Train three steps with Adam; return the bytes of what is held, and the process's peak."""
    imports = memory("VmRSS")
    x, y = examples(batch)
    model = build(form, name, sparsity, x)
    optimizer = torch.optim.Adam(model.parameters())
    step = Step(model, optimizer, x, y)
    for _ in range(3):
        step()
    held = {
        "weights": list(model.parameters()),
        "gradients": [p.grad for p in model.parameters() if p.grad is not None],
        "optimizer": [tensor for state in optimizer.state.values() for tensor in state.values()],
        "buffers": list(model.buffers()),
    }
    counted = {what: sum(tensor.nbytes for tensor in tensors) for what, tensors in held.items()}
    return {**counted, "peak_rss": memory("VmHWM") - imports}


def memory_in_own_process(form: str, name: str, sparsity: float, batch: int) -> dict[str, int]:
    """Call :func:`memory_in_training` in a new process.

    It has the allocator's own settings: told to keep its pages, malloc would also keep those of the
    dense weights that a sparse network is made from.
    """
    arguments = ["--child", form, "--models", name, "--sparsities", str(sparsity)]
    arguments += ["--batch", str(batch), "--threads", str(torch.get_num_threads())]
    own = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, env=own, capture_output=True, text=True, check=True).stdout
    result: dict[str, int] = json.loads(output)
    return result


def measure(
    name: str, sparsity: float, batch: int, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Time a network in all its forms at one sparsity; return a row for each."""
    x, y = examples(batch)
    forms = [DENSE] if sparsity == 0 else [DENSE, MASKED, OURS]
    if not name.startswith("mlp"):
        forms.insert(1, CHANNELS_LAST)
    models = {form: build(form, name, sparsity, x) for form in forms}
    if options.compiled:
        for form in (DENSE, OURS):
            if form in models:
                own = build(form, name, sparsity, x)
                models[f"{form}, compiled"] = torch.compile(own)  # type: ignore[assignment]
    last = x.contiguous(memory_format=torch.channels_last)
    steps = {
        form: timed_step(model, last if form == CHANNELS_LAST else x, y)
        for form, model in models.items()
    }
    times = time_interleaved(steps, options.repeats, warmup=1)
    return {
        form: {
            "model": name,
            "sparsity": sparsity,
            "form": form,
            "batch": batch,
            "seconds": times[form]._asdict(),
            "images_per_second": batch / times[form].median,
            "sparse_layers": sum(
                isinstance(layer, SparseLinear | SparseConv2d) for layer in model.modules()
            ),
        }
        for form, model in models.items()
    }


def line(row: dict[str, Any], dense: dict[str, Any]) -> str:
    """Return a row of the table that is printed."""

    def megabytes(what: str) -> str:
        found, of_dense = row["bytes"][what], dense["bytes"][what]
        return f"{found / 1e6:9.1f} ({found / of_dense:4.0%})"

    faster = row["images_per_second"] / dense["images_per_second"]
    text = f"{row['model']:>11} {row['sparsity']:>8} {row['form']:>20} {row['batch']:>5}"
    text += f" {row['images_per_second']:9.1f} {faster:7.2f}"
    if "bytes" in row:
        text += f" {megabytes('held')} {megabytes('peak_rss')}"
    return text + f" {row['sparse_layers']:>6}"


def show_progress(done: int, total: int, title: str) -> None:
    """Draw a bar where a terminal reads the error stream, and go back to its beginning."""
    if sys.stderr.isatty():
        filled = 30 * done // total
        bar = f"[{'#' * filled:<30}] {done}/{total} {title}"
        print(f"\r{bar}\x1b[K\r", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Parse the command line, measure, print a table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument(
        "--sparsities", nargs="+", type=float, default=[0, 0.8, 0.9, 0.95, 0.98, 0.99]
    )
    parser.add_argument("--batch", type=int, help=f"for all networks; otherwise {BATCHES}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="dense and ours compiled as well")
    parser.add_argument("--threads", type=int, help="of torch; its own default otherwise")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file, replaced")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.child:
        setting = (options.models[0], options.sparsities[0], options.batch)
        print(json.dumps(memory_in_training(options.child, *setting)))
        return

    output = options.output or RESULTS / "cpu" / "training.json"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # of measured choices: none of another day
        run(options, output)
    print(f"written to {output}")


def run(options: argparse.Namespace, output: pathlib.Path) -> None:
    """Measure all networks at all sparsities."""
    weigh = functools.cache(memory_in_own_process)
    grid = [(name, sparsity) for name in options.models for sparsity in options.sparsities]
    rows: list[dict[str, Any]] = []
    print("memory in MB, in brackets its share of what dense takes")
    print("      model sparsity                 form batch  images/s x dense", end="")
    print("     held            at peak      sparse layers")
    for done, (name, sparsity) in enumerate(grid):
        show_progress(done, len(grid), f"{name} at {sparsity}")
        batch = options.batch or BATCHES[name]
        measured = measure(name, sparsity, batch, options)
        for form, row in measured.items():
            if form in (DENSE, MASKED, OURS):
                # the same at all sparsities, but for ours
                own = sparsity if form == OURS else max(options.sparsities)
                weighed = weigh(form, name, own, batch)
                held = sum(weighed.values()) - weighed["peak_rss"]
                row["bytes"] = {**weighed, "held": held}
        rows += measured.values()
        write_json(output, rows)
        show_progress(done + 1, len(grid), "")
        for row in measured.values():
            print(line(row, measured[DENSE]), flush=True)


if __name__ == "__main__":
    main()
