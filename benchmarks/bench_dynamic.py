"""What an update of the topology costs, beside an ordinary training step, as a whole and in parts.

    python benchmarks/bench_dynamic.py --threads 2
    python benchmarks/bench_dynamic.py --device cuda --output results.json

One truly sparse linear layer under SGD with momentum, float32; medians. The parts are those of the
layer's first update by each method, each called by itself and in turns with the others.
"""

import argparse
import itertools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import RESULTS, time_interleaved, write_json

import fullspectrum_ext as fs
from fullspectrum_ext.dynamic.layer import dynamic_layers


class Case:
    """One layer in training."""

    def __init__(self, size: int, sparsity: float, batch: int, device: str) -> None:
        self.device = device
        self.model = torch.nn.Sequential(torch.nn.Linear(size, size)).to(device)
        masks = fs.prune(self.model, "random", sparsity=sparsity, seed=0)
        fs.sparsify(self.model, masks, backend="sparse")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.x = torch.randn(batch, size, device=device)

    def now(self) -> float:
        """Read the clock when all that was asked of the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self) -> None:
        """Train by one step."""
        self.optimizer.zero_grad()
        self.model(self.x).square().mean().backward()
        self.optimizer.step()

    def updates(self, method: str, rounds: int) -> dict[str, float]:
        """Time steps, calls of ``dynamic.step()`` that change nothing, and updates, in turns."""
        dynamic = fs.DynamicSparsity(
            self.model, self.optimizer, method, steps=100 * rounds, every=2, seed=0
        )
        times: dict[str, list[float]] = {"step": [], "call": [], "update": []}
        for _ in range(2 * rounds):
            begin = self.now()
            self.step()
            between = self.now()
            changed = dynamic.step()
            end = self.now()
            times["update" if changed else "call"].append(end - between)
            if not changed:  # the steps at which nothing is caught or skipped
                times["step"].append(between - begin)
        dynamic.remove()
        return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}

    def parts(self, share: float, rounds: int) -> dict[str, float]:
        """Time what updates are made of, where a share of the weights changes."""
        (layer,) = dynamic_layers(self.model).values()
        assert layer.tap is not None
        layer.tap.open()
        self.step()
        count = int(share * layer.nnz)
        generator = torch.Generator().manual_seed(0)
        drop = layer.smallest(layer.values.abs(), count)
        grow = layer.random_places(drop, count, generator)
        # an update and the one that undoes it, in turns
        kept = layer.positions
        comes = torch.isin(grow, kept, invert=True)
        goes = torch.isin(kept[drop], grow, invert=True)
        both = torch.cat([layer.staying(drop), grow]).sort().values
        back = torch.isin(both, grow[comes]).nonzero().flatten(), kept[drop][goes]
        changes = itertools.cycle([(drop, grow), back])
        calls: dict[str, Callable[[], object]] = {
            "finding the smallest": lambda: layer.smallest(layer.values.abs(), count),
            "drawing free places": lambda: layer.random_places(drop, count, generator),
            "finding the largest gradients": lambda: layer.steepest_places(drop, count),
            "changing the layer": lambda: layer.change(*next(changes), self.optimizer),
        }
        # an even number of rounds in all, so that the last change is undone
        times = time_interleaved(calls, 2 * rounds, warmup=2, device=self.device)
        layer.tap.close()
        return {name: quartiles.median for name, quartiles in times.items()}


def main() -> None:
    """Parse the command line, measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=["set", "rigl", "itop:rigl"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--output", type=pathlib.Path, default=RESULTS / "cpu" / "dynamic.json", help="replaced"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    case = Case(options.size, options.sparsity, options.batch, options.device)
    about = {name: getattr(options, name) for name in ("size", "sparsity", "batch", "device")}
    rows: list[dict[str, Any]] = []
    for method in options.methods:
        times = case.updates(method, options.rounds)
        ratio = times["update"] / times["step"]
        rows.append({**about, "method": method, "seconds": times, "update_over_step": ratio})
        print(
            f"{method}: step {1e3 * times['step']:.1f} ms, dynamic.step() without an update "
            f"{1e3 * times['call']:.2f} ms, update {1e3 * times['update']:.1f} ms, "
            f"{ratio:.2f} steps"
        )
    for share in (0.3, 0.5):  # what `set` and `rigl`, and what `itop` change at first
        parts = case.parts(share, options.rounds)
        rows.append({**about, "share": share, "seconds": parts})
        print(f"parts, of {share:.0%} of the weights:")
        for name, seconds in parts.items():
            print(f"  {name:<30} {1e3 * seconds:6.2f} ms")
    write_json(options.output, rows)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
