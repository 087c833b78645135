"""What an update of the topology costs, beside an ordinary training step.

    python benchmarks/bench_dynamic.py --threads 2

One truly sparse linear layer under SGD with momentum, float32; medians in milliseconds.
"""

import argparse
import statistics
import time

import torch

import fullspectrum_ext as fs


def main() -> None:
    """Time steps and updates of each method."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=["set", "rigl", "itop:rigl"])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    size = arguments.size
    model = torch.nn.Sequential(torch.nn.Linear(size, size))
    masks = fs.prune(model, "random", sparsity=arguments.sparsity, seed=0)
    fs.sparsify(model, masks, backend="sparse")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(arguments.batch, size)
    for method in arguments.methods:
        dynamic = fs.DynamicSparsity(model, optimizer, method, steps=1000, every=2, seed=0)
        steps, calls, updates = [], [], []
        for _ in range(20):
            begin = time.perf_counter()
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            between = time.perf_counter()
            changed = dynamic.step()
            end = time.perf_counter()
            (updates if changed else calls).append(end - between)
            if not changed:  # the steps at which nothing is caught or skipped
                steps.append(between - begin)
        dynamic.remove()
        step, call, update = (
            1e3 * statistics.median(times[1:]) for times in (steps, calls, updates)
        )
        print(f"{method}: step {step:.1f}, dynamic.step() {call:.2f}, update {update:.1f} ms")


if __name__ == "__main__":
    main()
