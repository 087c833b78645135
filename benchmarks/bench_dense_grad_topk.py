"""Time the choice of the largest dense gradients of a sparse linear layer.

Against the same choice from a dense gradient, with `torch.topk`, and against the bare product,
torch's own in float32, which makes that gradient and chooses nothing. All run in turns in one
process.
"""

import argparse
import itertools
import pathlib
from typing import Any

import torch
from bench_topology import Case, check_agreement
from measure import RESULTS, time_interleaved, write_json


def main() -> None:
    """Parse the command line, measure, print a table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ["300x784", "1024x1024", "4096x4096"]
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="OUTxIN")
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 128, 512])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.95, 0.99])
    parser.add_argument("--share", type=float, default=0.3, help="of the weights that change")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, help="of torch; its own default otherwise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=RESULTS / "cpu" / "dense_grad_topk.json",
        help="JSON file, replaced",
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    names = ["dense_grad_topk", "bare product", "dense gradient and topk"]
    rows: list[dict[str, Any]] = []
    for size, batch, sparsity in itertools.product(
        options.sizes, options.batches, options.sparsities
    ):
        case = Case(size, batch, sparsity, options.share)
        check_agreement(case)
        calls = case.calls()
        times = time_interleaved({name: calls[name] for name in names}, options.repeats, warmup=1)
        rows.append({"size": size, "batch": batch, "sparsity": sparsity, "k": case.k})
        rows[-1] |= {name: {"seconds": time._asdict()} for name, time in times.items()}
        ours, product, dense = (times[name].median * 1e3 for name in names)
        print(
            f"{size} batch {batch} sparsity {sparsity}: {ours:.2f} ms, bare product {product:.2f} "
            f"({product / ours:.1f} x), dense and topk {dense:.2f} ({dense / ours:.1f} x)"
        )
    write_json(options.output, rows)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
