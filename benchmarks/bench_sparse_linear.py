"""Time a sparse linear layer, forward and whole step, against what torch offers.

A step is forward, gradient of the input and gradient of the weights under the mask, without the
optimizer. The rivals: the dense layer; the dense layer with its mask multiplied in (the usual way
to train a sparse network); torch's own sparse CSR matrix product, called by hand with a kept
transpose and, for the weights, `torch.sparse.sampled_addmm`; on the CPU also SparseProp and
SparseLab, where they are installed (`peers.py`), and our masked layer, which is there for weights
that are not sparse enough.

On CUDA there are also the dense layer in TF32 and in bfloat16, and ours in bfloat16; calls are
replayed as CUDA graphs where they can be captured, and the share of the machine's bound is given:
the greater of the bytes that a pass must move over the copy bandwidth, and the loads of operands
over the rate of shared memory, a quarter of the measured rate of float32 multiply-adds.

All candidates run in turns in one process, a few calls in a row each (see `in_a_row` in
`measure.py`), and their results are compared before they are timed. Large sizes take minutes: give
them in parts, with --add.
"""

import argparse
import itertools
import json
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from measure import (
    RESULTS,
    Quartiles,
    as_graph,
    cuda_ceilings,
    time_interleaved,
    write_json,
)
from peers import linear_peers
from torch import Tensor
from torch.nn import functional

from fullspectrum_ext.nn import MaskedLinear, SparseLinear

Candidates = dict[str, Callable[[], object]]


def candidates(
    rows: int, cols: int, batch: int, sparsity: float, device: str
) -> tuple[Candidates, Candidates]:
    """Build the forward and the step calls for one size, after checking that they agree."""
    mask = torch.rand(rows, cols, device=device) >= sparsity
    weight = torch.randn(rows, cols, device=device) / cols**0.5
    weight = weight.masked_fill(weight == 0, 1) * mask  # torch's CSR would not store a zero
    x = torch.randn(batch, cols, device=device, requires_grad=True)
    grad = torch.randn(batch, rows, device=device)
    layer = SparseLinear.from_dense(weight, mask)
    dense = weight.clone().requires_grad_()
    float_mask = mask.to(weight.dtype)
    csr, transposed = weight.to_sparse_csr(), weight.T.contiguous().to_sparse_csr()

    def torch_csr_step() -> tuple[Tensor, Tensor]:
        _ = csr @ x.detach().T
        grad_x = (transposed @ grad.T).T
        return grad_x, torch.sparse.sampled_addmm(csr, grad.T, x.detach(), beta=0.0).values()

    forward: Candidates = {
        "fullspectrum": lambda: layer(x),
        "dense": lambda: functional.linear(x, dense),
        "dense with mask": lambda: functional.linear(x, dense * float_mask),
        "torch CSR": lambda: (csr @ x.detach().T).T,
    }
    step: Candidates = {
        "fullspectrum": lambda: torch.autograd.grad(layer(x), (x, layer.values), grad),
        "dense": lambda: torch.autograd.grad(functional.linear(x, dense), (x, dense), grad),
        "dense with mask": lambda: torch.autograd.grad(
            functional.linear(x, dense * float_mask), (x, dense), grad
        ),
        "torch CSR": torch_csr_step,
    }
    if device == "cpu":
        for others in (linear_peers(weight, x, grad), masked_layer(layer, x.detach(), grad, mask)):
            for calls, more in zip((forward, step), others, strict=True):
                calls.update(more)
    check_agreement(forward, step, mask)
    return forward, step


def masked_layer(
    layer: SparseLinear, x: Tensor, grad: Tensor, mask: Tensor
) -> tuple[Candidates, Candidates]:
    """Build the calls of the masked layer with the same weights."""
    rows, cols = mask.shape
    dense = torch.nn.Linear(cols, rows, bias=False)
    dense.weight = torch.nn.Parameter(layer.to_dense().detach())
    masked, masked_x = MaskedLinear(dense, mask), x.clone().requires_grad_()
    forward: Candidates = {"masked layer": lambda: masked(masked_x)}
    step: Candidates = {
        "masked layer": lambda: torch.autograd.grad(
            masked(masked_x), (masked_x, masked.weight), grad
        )
    }
    return forward, step


def lower_precision(
    rows: int, cols: int, batch: int, sparsity: float
) -> tuple[Candidates, Candidates]:
    """Build the calls that round more than float32 does, for CUDA."""
    mask = torch.rand(rows, cols, device="cuda") >= sparsity
    weight = torch.randn(rows, cols, device="cuda") / cols**0.5 * mask
    x = torch.randn(batch, cols, device="cuda", requires_grad=True)
    grad = torch.randn(batch, rows, device="cuda")
    dense = weight.clone().requires_grad_()
    half = [t.detach().bfloat16() for t in (weight, x, grad)]
    half_layer = SparseLinear.from_dense(half[0], mask)
    half_weight, half_x = (t.requires_grad_() for t in half[:2])

    def in_tf32(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            torch.backends.cuda.matmul.allow_tf32 = True
            try:
                return call()
            finally:
                torch.backends.cuda.matmul.allow_tf32 = False

        return run

    forward: Candidates = {
        "dense TF32": in_tf32(lambda: functional.linear(x, dense)),
        "dense bfloat16": lambda: functional.linear(half_x, half_weight),
        "fullspectrum bfloat16": lambda: half_layer(half_x),
    }
    step: Candidates = {
        "dense TF32": in_tf32(
            lambda: torch.autograd.grad(functional.linear(x, dense), (x, dense), grad)
        ),
        "dense bfloat16": lambda: torch.autograd.grad(
            functional.linear(half_x, half_weight), (half_x, half_weight), half[2]
        ),
        "fullspectrum bfloat16": lambda: torch.autograd.grad(
            half_layer(half_x), (half_x, half_layer.values), half[2]
        ),
    }
    return forward, step


def time_on_cuda(calls: Candidates, repeats: int) -> dict[str, Quartiles]:
    """Time calls as CUDA graphs of ten."""
    for call in calls.values():
        call()
    graphs = {name: as_graph(call, 10) for name, call in calls.items()}
    times = time_interleaved(
        {name: graph for name, (graph, _) in graphs.items()}, repeats, device="cuda"
    )
    return {name: Quartiles(*(t / graphs[name][1] for t in time)) for name, time in times.items()}


def bound_seconds(
    rows: int, cols: int, batch: int, nnz: int, step: bool, ceilings: dict[str, float]
) -> float:
    """Return the least time of a pass in float32 with activations in shared memory."""
    passes = 2 if step else 1  # forward, and both gradients from one load of each operand
    bytes_moved = 4 * batch * (rows + cols) * passes + 8 * nnz * passes
    multiply_adds_per_load = 4  # a multiprocessor's multiply-adds over words loaded, per clock
    operations = 2 * multiply_adds_per_load * batch * nnz * passes
    return max(
        bytes_moved / ceilings["bytes_per_second"],
        operations / ceilings["float32_operations_per_second"],
    )


def check_agreement(forward: Candidates, step: Candidates, mask: Tensor) -> None:
    """Raise AssertionError unless all candidates compute the same."""
    expected = forward["dense"]()
    expected_x, expected_weight = step["dense"]()  # type: ignore[misc]
    for name in forward:
        grad_x, grad_weight = step[name]()  # type: ignore[misc]
        if grad_weight.dim() == 2:
            grad_weight = grad_weight[mask]
        for found, wanted in (
            (forward[name](), expected),
            (grad_x, expected_x),
            (grad_weight, expected_weight[mask]),
        ):
            torch.testing.assert_close(found.reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-3)


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of both, the new one where both have the same setting."""

    def setting(row: dict[str, Any]) -> tuple[object, ...]:
        measured = ("seconds", "share_of_bound", "ceilings")
        return tuple(value for key, value in row.items() if key not in measured)

    replaced = {setting(row) for row in new}
    return [row for row in old if setting(row) not in replaced] + new


def main() -> None:
    """Parse the command line, measure, print a table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["300x784", "1024x1024"], metavar="OUTxIN")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 128])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--passes", nargs="+", default=["forward", "step"], metavar="PASS")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--in-a-row", type=int, default=4)
    parser.add_argument("--threads", type=int, help="of torch; its own default otherwise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, help="JSON file, replaced")
    parser.add_argument("--add", action="store_true", help="keep the other rows of that file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

    on_cuda = torch.device(options.device).type == "cuda"
    ceilings = cuda_ceilings() if on_cuda else {}
    for what, rate in ceilings.items():
        print(f"{what}: {rate:.3g}")

    rows = []
    grid = itertools.product(options.sizes, options.batches, options.sparsities)
    print("  out x in batch sparsity    pass  ours ms  times as long as ours, and share of bound")
    for size, batch, sparsity in grid:
        out_features, in_features = map(int, size.split("x"))
        shape = (out_features, in_features, batch)
        both = candidates(*shape, sparsity, options.device)
        rounded = lower_precision(*shape, sparsity) if on_cuda else ({}, {})
        for name, calls, more in zip(("forward", "step"), both, rounded, strict=True):
            if name not in options.passes:
                continue
            if on_cuda:
                times = time_on_cuda({**calls, **more}, options.repeats)
            else:
                times = time_interleaved(
                    calls, options.repeats, warmup=1, in_a_row=options.in_a_row
                )
            ours = times["fullspectrum"].median
            ratios = {call: time.median / ours for call, time in times.items()}
            if on_cuda:
                nnz = round((1 - sparsity) * out_features * in_features)
                bound = bound_seconds(*shape, nnz, name == "step", ceilings)
                ratios["bound"] = bound / ours
            print(f"{size:>10} {batch:>5} {sparsity:>8} {name:>7} {ours * 1e3:8.3f}", end="  ")
            del ratios["fullspectrum"]
            print(", ".join(f"{call} {ratio:.2f}" for call, ratio in ratios.items()), flush=True)
            rows.append({
                "out_features": out_features,
                "in_features": in_features,
                "batch": batch,
                "sparsity": sparsity,
                "pass": name,
                "threads": torch.get_num_threads(),
                "seconds": {call: time._asdict() for call, time in times.items()},
                **({"share_of_bound": ratios["bound"], "ceilings": ceilings} if on_cuda else {}),
            })
    output = options.output or RESULTS / torch.device(options.device).type / "sparse_linear.json"
    if options.add and output.exists():
        rows = merged(json.loads(output.read_text())["rows"], rows)
    write_json(output, rows)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
