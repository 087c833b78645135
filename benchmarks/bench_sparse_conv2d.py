"""Time a sparse 2-d convolution, forward and whole step, against torch's dense one.

A step is forward, gradient of the input and gradient of the weights under the mask, without the
optimizer. The rivals: the dense convolution with its mask multiplied in (the usual way to train a
sparse network), in torch's default order of memory (NCHW) and with the channels last (NHWC); on
the CPU also SparseProp, where it is installed (`peers.py`); on CUDA also the dense ones in TF32,
torch's default there, which are not compared. Ours takes and gives NCHW.

All candidates run in turns in one process, and their results are compared before they are timed.
For images of many megabytes set the allocator to keep its pages, for all alike:
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
"""

import argparse
import itertools
import pathlib
from collections.abc import Callable

import torch
from measure import RESULTS, time_interleaved, write_json
from peers import conv2d_peers
from torch import Tensor
from torch.nn import functional

from fullspectrum_ext.nn import SparseConv2d

Candidates = dict[str, Callable[[], object]]


def candidates(
    channels: int, size: int, batch: int, sparsity: float, device: str
) -> tuple[Candidates, Candidates]:
    """Build the forward and the step calls for one layer, after checking that they agree."""
    mask = torch.rand(channels, channels, 3, 3, device=device) >= sparsity
    weight = torch.randn(mask.shape, device=device) / (9 * channels) ** 0.5 * mask
    x = torch.randn(batch, channels, size, size, device=device, requires_grad=True)
    grad = torch.randn_like(x)
    layer = SparseConv2d.from_dense(weight, mask, padding=1)
    float_mask = mask.to(weight.dtype)

    def dense(order: torch.memory_format) -> tuple[Callable[[], object], Callable[[], object]]:
        w, m, own_x, own_grad = (
            t.detach().clone().to(memory_format=order) for t in (weight, float_mask, x, grad)
        )
        w.requires_grad_()
        own_x.requires_grad_()

        def forward() -> Tensor:
            return functional.conv2d(own_x, w * m, padding=1)

        return forward, lambda: torch.autograd.grad(forward(), (own_x, w), own_grad)

    forward: Candidates = {"fullspectrum": lambda: layer(x)}
    step: Candidates = {
        "fullspectrum": lambda: torch.autograd.grad(layer(x), (x, layer.values), grad)
    }
    for name, order in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        forward[f"dense with mask, {name}"], step[f"dense with mask, {name}"] = dense(order)
    if device == "cpu":
        for calls, more in zip((forward, step), conv2d_peers(weight, x, grad, 1), strict=True):
            calls.update(more)
    check_agreement(forward, step, mask)
    if device == "cuda":
        for calls in (forward, step):
            dense_calls = {name: call for name, call in calls.items() if name.startswith("dense")}
            calls.update({f"{name}, TF32": in_tf32(call) for name, call in dense_calls.items()})
    return forward, step


def in_tf32(call: Callable[[], object]) -> Callable[[], object]:
    """Let torch's convolutions within a call round to TF32."""

    def run() -> object:
        torch.backends.cudnn.allow_tf32 = True
        try:
            return call()
        finally:
            torch.backends.cudnn.allow_tf32 = False

    return run


def check_agreement(forward: Candidates, step: Candidates, mask: Tensor) -> None:
    """Raise AssertionError unless all candidates compute the same."""
    y, (grad_x, grad_values) = forward["fullspectrum"](), step["fullspectrum"]()  # type: ignore[misc]
    for name in list(forward)[1:]:
        other_x, other_weight = step[name]()  # type: ignore[misc]
        if other_weight.dim() == 4:
            other_weight = other_weight[mask]
        for found, wanted in (
            (y, forward[name]()), (grad_x, other_x), (grad_values, other_weight),
        ):  # fmt: skip
            scale = wanted.abs().max()  # type: ignore[attr-defined]
            torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=1e-4)


def main() -> None:
    """Parse the command line, measure, print a table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        default=["64x32", "128x16", "256x8", "512x4"],
        metavar="CHANNELSxSIZE",
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[128])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.98, 0.99])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of torch; its own default otherwise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, help="JSON file, replaced")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    torch.backends.cudnn.allow_tf32 = False

    rows = []
    grid = itertools.product(options.layers, options.batches, options.sparsities)
    print("channels x size batch sparsity    pass  ours ms  times as long as ours")
    for shape, batch, sparsity in grid:
        channels, size = map(int, shape.split("x"))
        both = candidates(channels, size, batch, sparsity, options.device)
        for name, calls in zip(("forward", "step"), both, strict=True):
            times = time_interleaved(calls, options.repeats, warmup=2, device=options.device)
            ours, *others = (time.median for time in times.values())
            print(f"{shape:>15} {batch:>5} {sparsity:>8} {name:>7} {ours * 1e3:8.3f}", end="  ")
            ratios = zip(list(times)[1:], others, strict=True)
            print(", ".join(f"{call} {time / ours:.1f}" for call, time in ratios), flush=True)
            rows.append({
                "channels": channels,
                "size": size,
                "batch": batch,
                "sparsity": sparsity,
                "pass": name,
                "seconds": {call: time._asdict() for call, time in times.items()},
            })
    output = options.output or RESULTS / torch.device(options.device).type / "sparse_conv2d.json"
    write_json(output, rows)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
