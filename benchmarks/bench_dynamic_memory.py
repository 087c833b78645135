"""What RigL holds in memory at its peak: truly sparse, and over dense weights with masks.

    python benchmarks/bench_dynamic_memory.py --threads 1

A network of square layers in training with Adam, and with SGD with momentum, whose topology changes
at every second step. "sparse" is `fs.DynamicSparsity` on layers that are made from CSR fields, so
that nothing dense is there at any time, the building included. "dense" is RigL as it is usually
written: dense weights, gradients and optimizer state, and a bool mask.

Each runs in a process of its own. First a tiny network is trained in the same way, so that what the
libraries hold for themselves is there; then the resident memory is taken as the zero, and all
beyond it counts, activations too. The kernel tells the highest value, for building, training (steps
and updates) and within the updates. Against it stands what dense RigL's weights, gradients and
optimizer state take, by count.

glibc's malloc keeps much of what is freed, and as resident memory that looks as if it were in use.
So all runs twice: told to give back what is freed, where the figures are those of the memory in
use, and with malloc's own settings, where they are those of what the process takes.
"""

import argparse
import ctypes
import itertools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import torch
from measure import RESULTS, memory, write_json
from torch import Tensor, nn

import fullspectrum_ext as fs
from fullspectrum_ext.nn import SparseLinear

OPTIMIZERS = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-4),
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
}
STEPS, EVERY, FRACTION = 7, 2, 0.3
MALLOC = {
    "in use": {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"},
    "taken": {},
}


def sparse_linear(width: int, sparsity: float) -> SparseLinear:
    """Make a layer with random weights at random places, and never a dense one."""
    count, places = round((1 - sparsity) * width**2), torch.empty(0, dtype=torch.int64)
    while places.numel() < count:
        places = torch.cat([places, torch.randint(width**2, (count // 8 + 1,))]).unique()
    places = places[torch.randperm(places.numel())[:count]].sort().values
    crow_indices = torch.searchsorted(places, torch.arange(width + 1) * width).int()
    values = torch.randn(count).mul_((2 / (width * (1 - sparsity))) ** 0.5)
    fields = crow_indices, (places % width).int(), values
    return SparseLinear(width, width, *fields, torch.zeros(width))


def build(form: str, width: int, layers: int, sparsity: float) -> nn.Sequential:
    """Build the network, with a small dense layer at its end."""
    model = nn.Sequential()
    for _ in range(layers):
        model.append(
            sparse_linear(width, sparsity) if form == "sparse" else nn.Linear(width, width)
        )
        model.append(nn.ReLU())
    return model.append(nn.Linear(width, 10))


class DenseRigL:
    """RigL over dense weights: masks beside them, gradients masked after the backward pass."""

    def __init__(self, model: nn.Sequential, optimizer: torch.optim.Optimizer, sparsity: float):
        self.optimizer, self.steps_done = optimizer, 0
        weights = [layer.weight for layer in model[:-1] if isinstance(layer, nn.Linear)]
        self.masks = {weight: torch.rand_like(weight) >= sparsity for weight in weights}
        for weight, mask in self.masks.items():
            weight.data.mul_(mask)

    @property
    def is_due(self) -> bool:
        """Whether the next step gives way to an update."""
        return (self.steps_done + 1) % EVERY == 0

    @torch.no_grad()
    def step(self) -> None:
        """Take the optimizer's step, or an update in its place."""
        for weight, mask in self.masks.items():
            if self.is_due:
                self.update(weight, mask)
            else:
                weight.grad.mul_(mask)
        if not self.is_due:
            self.optimizer.step()
        self.steps_done += 1

    def update(self, weight: Tensor, mask: Tensor) -> None:
        """Drop the smallest weights, grow those of the largest gradient."""
        count = int(FRACTION * int(mask.sum()))
        drop = weight.abs().masked_fill_(~mask, torch.inf).view(-1).topk(count, largest=False)
        mask.view(-1)[drop.indices] = False
        grow = weight.grad.abs().masked_fill_(mask, -1).view(-1).topk(count)
        new = torch.ones_like(mask).view(-1)
        new[grow.indices] = False
        mask.view(-1)[grow.indices] = True
        for held in (weight, *self.optimizer.state[weight].values()):
            if held is not None and held.shape == weight.shape:
                held.mul_(new.view(mask.shape) & mask)


class Peaks:
    """The highest resident memory of each phase, beyond what there was at the beginning."""

    def __init__(self) -> None:
        ctypes.CDLL(None).malloc_trim(0)  # what is kept of earlier tensors would be taken again
        self.zero = memory("VmRSS")
        self.highest: dict[str, int] = {}
        self.reset()

    def reset(self) -> None:
        """Let the kernel's highest value begin anew."""
        pathlib.Path("/proc/self/clear_refs").write_text("5")

    def note(self, *phases: str) -> None:
        """Count what has been since the last note to some phases."""
        peak = memory("VmHWM") - self.zero
        for phase in phases:
            self.highest[phase] = max(self.highest.get(phase, 0), peak)
        self.reset()


def train(form: str, name: str, width: int, layers: int, sparsity: float, batch: int) -> Any:
    """Train for some steps with updates; return the peaks, and what is held, by count."""
    peaks = Peaks()
    model = build(form, width, layers, sparsity)
    optimizer = OPTIMIZERS[name](model.parameters())
    if form == "sparse":
        rigl = fs.DynamicSparsity(
            model, optimizer, "rigl", steps=2 * STEPS, every=EVERY, fraction=FRACTION, seed=0
        )
    else:
        rigl = DenseRigL(model, optimizer, sparsity)
    x, y = torch.randn(batch, width), torch.randint(10, (batch,))
    peaks.note("building")
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        is_update = rigl.is_due if form == "dense" else rigl.is_listening
        if form == "sparse":
            optimizer.step()
        if is_update:
            peaks.note("training")
        rigl.step()
        peaks.note("training", *(["updates"] if is_update else []))
    held = {
        "weights": list(model.parameters()),
        "gradients": [p.grad for p in model.parameters() if p.grad is not None],
        "optimizer": [t for state in optimizer.state.values() for t in state.values()],
        "topology": list(model.buffers()) if form == "sparse" else list(rigl.masks.values()),
    }
    counted = {what: sum(tensor.nbytes for tensor in tensors) for what, tensors in held.items()}
    return {"held": counted, "peak": peaks.highest}


def in_own_process(
    form: str, name: str, malloc: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Call :func:`train` in a new process with these settings of malloc."""
    command = [sys.executable, __file__, "--child", form, "--optimizers", name]
    for option in ("width", "layers", "sparsity", "batch", "threads"):
        command += [f"--{option}", str(getattr(options, option))]
    own = {key: value for key, value in os.environ.items() if "MALLOC" not in key}
    output = subprocess.run(
        command, env=own | MALLOC[malloc], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--output", type=pathlib.Path, help="JSON file, replaced")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sizes = options.width, options.layers, options.sparsity, options.batch
    if options.child:
        (name,) = options.optimizers
        train(options.child, name, 64, 2, 0.9, 8)  # so that what libraries hold is there
        print(json.dumps(train(options.child, name, *sizes)))
        return
    rows = []
    for name, malloc in itertools.product(options.optimizers, MALLOC):
        forms = {form: in_own_process(form, name, malloc, options) for form in ("dense", "sparse")}
        counted = sum(forms["dense"]["held"][w] for w in ("weights", "gradients", "optimizer"))
        print(
            f"{name}, memory {malloc}; dense weights, gradients and state {counted / 2**20:.0f} MiB"
        )
        for form, found in forms.items():
            parts = [f"{what} {peak / counted:.1%}" for what, peak in found["peak"].items()]
            held = sum(found["held"].values()) / counted
            print(f"  {form}: holds {held:.1%}; at peak, of that: {', '.join(parts)}")
            row = dict(zip(("width", "layers", "sparsity", "batch"), sizes, strict=True))
            row |= {"optimizer": name, "memory": malloc, "form": form, "dense_bytes": counted}
            rows.append({**row, **found})
    output = options.output or RESULTS / "cpu" / "dynamic_memory.json"
    write_json(output, rows)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
