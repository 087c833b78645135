"""Time a topology update of a sparse linear layer, against the ways over dense matrices.

What RigL does every hundred or so steps: choose the smallest weights, find the largest gradients
among the others, make the new index, and carry values and optimizer state along. Against it: the
dense gradient with `torch.topk`, and the layer rebuilt from a dense matrix. Beside them stand the
bare product that every exact choice by gradient has to make, and a training step of the layer.

All candidates run in turns in one process. Peak memory is measured in processes of their own.
"""

import argparse
import ctypes
import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import RESULTS, memory, time_interleaved, write_json
from torch import Tensor

from fullspectrum_ext import ops
from fullspectrum_ext.nn import SparseLinear


class Case:
    """One layer with a batch of its inputs and gradients, and what an update of it takes."""

    def __init__(self, size: str, batch: int, sparsity: float, share: float) -> None:
        rows, cols = map(int, size.split("x"))
        self.mask = torch.rand(rows, cols) >= sparsity
        self.layer = SparseLinear.from_dense(torch.randn(rows, cols) / cols**0.5, self.mask)
        # copies: the layer's own change with it
        self.index = (self.layer.crow_indices.clone(), self.layer.col_indices.clone())
        self.x = torch.randn(batch, cols, requires_grad=True)
        self.grad = torch.randn(batch, rows)
        self.k = round(share * self.layer.nnz)
        self.optimizer = torch.optim.Adam(self.layer.parameters(), lr=0.0)
        self.step()
        self.drop = ops.smallest_magnitudes(self.layer.values, self.k)
        self.grow = self.largest().positions
        # an update and the one that undoes it, in turns
        source = ops.topology_update(*self.index, self.drop, self.grow, cols).source
        back = (source < 0).nonzero().view(-1), self.mask.view(-1).nonzero().view(-1)[self.drop]
        self.updates = itertools.cycle([(self.drop, self.grow), back])

    def largest(self) -> ops.TopGradients:
        """Choose what grows without the dense gradient."""
        return ops.dense_grad_topk(self.grad, self.x, *self.index, self.k)

    def product(self, out: Tensor | None = None) -> Tensor:
        """Compute the dense gradient, the bare product that every exact choice has to make."""
        return torch.mm(self.grad.T, self.x.detach(), out=out)

    def dense_topk(self) -> Tensor:
        """Choose what grows from the dense gradient."""
        magnitude = self.product().abs_().masked_fill_(self.mask, -1)
        return magnitude.flatten().topk(self.k, sorted=False).indices

    def step(self) -> None:
        """Train the layer by one step."""
        self.layer(self.x).backward(self.grad)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def update(self) -> None:
        """Update the layer and its optimizer's state."""
        self.layer.update_topology(*next(self.updates), self.optimizer)

    def rebuild(self) -> None:
        """The same by dense matrices: values and both moments to dense, masked, and back."""
        mask = self.mask.clone().view(-1)
        mask[mask.nonzero().view(-1)[self.drop]] = False
        mask[self.grow] = True
        mask = mask.view(self.mask.shape)
        state = self.optimizer.state[self.layer.values]
        for held in (self.layer.values.detach(), state["exp_avg"], state["exp_avg_sq"]):
            dense = ops.csr_to_dense(*self.index, held, tuple(self.mask.shape))
            index = ops.csr_from_dense(dense, mask)[:2]
        ops.csr_transpose(*index, self.mask.shape[1])

    def calls(self) -> dict[str, Callable[[], object]]:
        """Everything that is timed."""
        product = torch.empty(self.mask.shape)
        return {
            "dense_grad_topk": self.largest,
            "bare product": lambda: self.product(product),
            "dense gradient and topk": self.dense_topk,
            "smallest_magnitudes": lambda: ops.smallest_magnitudes(self.layer.values, self.k),
            "topology_update": lambda: ops.topology_update(
                *self.index, self.drop, self.grow, self.mask.shape[1]
            ),
            "update_topology": self.update,
            "rebuilding from dense": self.rebuild,
            "training step": self.step,
        }


def check_agreement(case: Case) -> None:
    """Raise AssertionError unless both choices hold the same gradients, up to rounding."""
    gradient = case.product().flatten().abs()
    ours, theirs = (
        gradient[positions].sort().values for positions in (case.grow, case.dense_topk())
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def peak_memory(arguments: list[str], call: str) -> int:
    """Run one call in a process of its own; return how many bytes it took beyond what was there."""
    command = [sys.executable, __file__, "--child", call, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(json.loads(output))


def child(call: str, case: Case) -> None:
    """Print the peak of one call."""
    ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps of earlier tensors would be taken again
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = memory("VmRSS")
    case.calls()[call]()
    print(memory("VmHWM") - before)


def main() -> None:
    """Parse the command line, measure, print a table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["1024x1024", "4096x4096"], metavar="OUTxIN")
    parser.add_argument("--batches", nargs="+", type=int, default=[128])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.95])
    parser.add_argument("--share", type=float, default=0.3, help="of the weights that change")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, help="of torch; its own default otherwise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, help="JSON file, replaced")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    rows: list[dict[str, Any]] = []
    for size, batch, sparsity in itertools.product(
        options.sizes, options.batches, options.sparsities
    ):
        case = Case(size, batch, sparsity, options.share)
        if options.child:
            child(options.child, case)
            return
        check_agreement(case)
        times = time_interleaved(case.calls(), options.repeats, warmup=1)
        row: dict[str, Any] = {"size": size, "batch": batch, "sparsity": sparsity, "k": case.k}
        arguments = ["--sizes", size, "--batches", str(batch), "--sparsities", str(sparsity)]
        arguments += ["--share", str(options.share), "--seed", str(options.seed)]
        arguments += ["--threads", str(torch.get_num_threads())]
        print(f"{size} batch {batch} sparsity {sparsity}: {case.k} of {case.layer.nnz} weights")
        for call, time in times.items():
            print(f"  {call:>24} {time.median * 1e3:9.2f} ms", end="")
            row[call] = {"seconds": time._asdict()}
            if call in {"dense_grad_topk", "dense gradient and topk"}:
                row[call]["peak_bytes"] = peak_memory(arguments, call)
                print(f", peak {row[call]['peak_bytes'] / 2**20:.1f} MiB", end="")
            print()
        rows.append(row)
    output = options.output or RESULTS / "cpu" / "topology.json"
    write_json(output, rows)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
