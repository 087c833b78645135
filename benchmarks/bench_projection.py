"""Time the projection of ProbMask's scores, against bisection in torch and against sorting.

The bisection is that of published implementations with 20 passes, which leave the sum of ten
million scores wrong by up to ten; the sort finds the same threshold as ``project_scores_``. All
three run in turns, on a fresh copy of the scores each time; the copy is timed too, and taken off.

Scores: ``normal`` ones; ``trained``, as a step of Adam leaves them late in a training (nearly all
at 0 or 1, and moved by the step); ``early``, all near 1 but for a step.
"""

import argparse
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from measure import RESULTS, time_interleaved, write_json
from torch import Tensor

from fullspectrum_ext import ops
from fullspectrum_ext.reference import projection as reference

SCORES = ("normal", "trained", "early")


def drawn(kind: str, size: int, share: float) -> Tensor:
    """Draw scores of one kind, of which about ``share`` are to be kept."""
    if kind == "normal":
        return torch.randn(size)
    step = 6e-3 * torch.randn(size)
    if kind == "early":
        return 1 + step
    open_scores = torch.rand(size) < 0.02
    return torch.where(open_scores, torch.rand(size), (torch.rand(size) < share).float()) + step


def bisection_(scores: Tensor, budget: float, passes: int = 20) -> None:
    """Project as ProbMask's published implementations do."""
    low, high = 0.0, float(scores.max())
    for _ in range(passes):
        middle = (low + high) / 2
        if float((scores - middle).clamp_(0, 1).sum()) > budget:
            low = middle
        else:
            high = middle
    scores.sub_((low + high) / 2).clamp_(0, 1)


def sort_(scores: Tensor, budget: float) -> None:
    """Project by sorting all kinks."""
    scores.sub_(reference.projection_threshold([scores], budget)).clamp_(0, 1)


def candidates(scores: Tensor, copy: Tensor, budget: float) -> dict[str, Callable[[], object]]:
    """Everything that is timed; each works on the scores' copy."""
    return {
        "copy": lambda: copy.copy_(scores),
        "project_scores_": lambda: ops.project_scores_([copy.copy_(scores)], budget),
        "bisection, 20 passes": lambda: bisection_(copy.copy_(scores), budget),
        "sort": lambda: sort_(copy.copy_(scores), budget),
    }


def main() -> None:
    """Parse the command line, measure, print a table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--kinds", nargs="+", choices=SCORES, default=SCORES)
    parser.add_argument("--share", type=float, default=0.05, help="of the scores, the budget")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; its own default otherwise")
    parser.add_argument("--no-sort", action="store_true", help="leave out the slowest")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file, replaced")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    rows: list[dict[str, Any]] = []
    for size, kind in itertools.product(options.sizes, options.kinds):
        scores = drawn(kind, size, options.share)
        budget = options.share * size
        copy = torch.empty_like(scores)
        calls = candidates(scores, copy, budget)
        if options.no_sort:
            del calls["sort"]
        times = time_interleaved(calls, options.repeats, warmup=1)
        row: dict[str, Any] = {"size": size, "scores": kind, "budget": budget}
        print(f"{size} {kind} scores, threads {torch.get_num_threads()}")
        for call in list(calls)[1:]:
            calls[call]()
            excess = float(copy.double().sum()) - budget
            seconds = times[call].median - times["copy"].median
            row[call] = {"seconds": seconds, "quartiles": times[call]._asdict(), "excess": excess}
            print(f"  {call:>20} {seconds * 1e3:9.2f} ms, sum minus budget {excess:.2g}")
        rows.append(row)
    output = options.output or RESULTS / "cpu" / "projection.json"
    write_json(output, rows)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
