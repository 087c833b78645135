"""Time PAGS on a ResNet-34 for CIFAR (37 layers, 21 million weights), and what the engine takes.

The run is the real one, `fullspectrum_ext.prune(model, "pags")`, with clocks around its parts:

* candidate scores: drawing them, and the check that they are finite
* selection:        from scores to topologies with the exact count of each layer
* conversion:       their live nodes, the weights on their edges, the regular subgraphs
* spectra:          the singular values of masks, weights and all their subgraphs
* the rest:         formulas, rules, bookkeeping

A candidate's scores are |w (g + n)|, with one Gaussian "gradient" g and fresh noise n each time, so
that candidates vary as SNIP's do from batch to batch. The forward and backward passes of real
scores are the model's business and not in here.

"Engine alone" is what the spectra take with nothing in between: the engine's last four calls, which
measure a group of candidates, are made again, and the time of all its calls is scaled as theirs is.
"""

import argparse
import contextlib
import functools
import importlib
import pathlib
import statistics
import time
from collections.abc import Callable, Generator
from typing import Any

import torch
from bench_spectrum import resnet34
from measure import RESULTS, write_json
from torch import Tensor, nn

import fullspectrum_ext as fs
from fullspectrum_ext.pruning.base import ScoringContext

_PAGS, _SPECTRUM = "fullspectrum_ext.pruning.pags", "fullspectrum_ext.spectral.full_spectrum"
PARTS = {  # a module and a function that it calls, and the part that its time belongs to
    (_PAGS, "check_scores"): "candidate scores",
    (_PAGS, "topk_topologies"): "selection",
    (_PAGS, "csr_graph"): "conversion",
    (_PAGS, "kept_values"): "conversion",
    (_SPECTRUM, "regular_subgraphs"): "conversion",
    (_SPECTRUM, "singular_values"): "spectra",
    (_SPECTRUM, "subgraph_singular_values"): "spectra",
}


class Clock:
    """Seconds by part, and the last four calls of the engine with their seconds."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self.start = time.perf_counter()
        self.seconds = dict.fromkeys(PARTS.values(), 0.0)
        self.engine: list[tuple[Callable[[], Any], float]] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Add the time of each call of a function to a part."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **keywords)
            seconds = time.perf_counter() - start
            self.seconds[part] += seconds
            if part == "spectra":
                again = functools.partial(function, *arguments, **keywords)
                self.engine = [*self.engine[-3:], (again, seconds)]
            return result

        return call

    @contextlib.contextmanager
    def ticking(self) -> Generator[None, None, None]:
        """Time the parts of PAGS while the context lasts."""
        with contextlib.ExitStack() as stack:
            for (module_name, name), part in PARTS.items():
                module = importlib.import_module(module_name)
                function = getattr(module, name)
                setattr(module, name, self.timed(part, function))
                stack.callback(setattr, module, name, function)
            yield


def network() -> nn.Module:
    """Make the layers whose weights are pruned; nothing is ever computed with them."""
    return nn.ModuleList([
        nn.Conv2d(inputs, outputs, round(area**0.5), bias=False)
        for outputs, inputs, area in resnet34()
    ])


def run(sparsity: float, candidates: int, seed: int) -> dict[str, Any]:
    """Run PAGS once and return where the time of its candidates went."""
    torch.manual_seed(seed)
    model, clock = network(), Clock()
    gradient: dict[str, Tensor] = {}

    def normal(context: ScoringContext) -> dict[str, Tensor]:
        return {
            name: torch.randn(weight.shape, generator=context.generator)
            for name, weight in context.weights.items()
        }

    def noisy_scores(context: ScoringContext) -> dict[str, Tensor]:
        return {
            name: noise.add_(gradient[name]).mul_(context.weights[name]).abs_()
            for name, noise in normal(context).items()
        }

    @fs.register_pruner("noisy_gradient", varies_by="seed")
    def noisy_gradient(context: ScoringContext) -> dict[str, Tensor]:
        if not gradient:  # for the base masks
            gradient.update(normal(context))
            return {name: (gradient[name] * w).abs() for name, w in context.weights.items()}
        return clock.timed("candidate scores", noisy_scores)(context)

    def show_progress(done: int, candidates: int) -> None:
        if done % 50 == 0 or done == candidates:
            print(f"{done} of {candidates} candidates", flush=True)

    pruned = functools.partial(
        fs.prune, model, "pags", base="noisy_gradient", sparsity=sparsity, seed=seed
    )
    pruned(candidates=1)  # warms up
    with clock.ticking():
        clock.restart()
        masks = pruned(candidates=candidates, progress=show_progress)
        driver_seconds = time.perf_counter() - clock.start
    again = []
    for _ in range(5):
        start = time.perf_counter()
        for call, _seconds in clock.engine:
            call()
        again.append(time.perf_counter() - start)
    scale = statistics.median(again) / sum(seconds for _, seconds in clock.engine)
    each = driver_seconds / candidates
    parts = {part: seconds / candidates for part, seconds in clock.seconds.items()}
    parts["the rest"] = each - sum(parts.values())
    return {
        "sparsity": sparsity,
        "candidates": candidates,
        "driver_seconds": driver_seconds,
        "seconds_per_candidate": each,
        "parts_per_candidate": parts,
        "engine_alone": scale * parts["spectra"],
        "norm": [masks.meta["pags"]["norm"][i] for i in (0, -1)],
        "layers_taken": sum(masks.meta["pags"]["accepted"].values()),
    }


def show(row: dict[str, Any]) -> None:
    """Print where a candidate's time goes."""
    each, alone = row["seconds_per_candidate"], row["engine_alone"]
    scoring = each - row["parts_per_candidate"]["candidate scores"]
    print(
        f"sparsity {row['sparsity']}: {row['candidates']} candidates in "
        f"{row['driver_seconds']:.1f} s, {1 / each:.2f} a second; of one candidate's milliseconds:"
    )
    for part, seconds in row["parts_per_candidate"].items():
        print(f"{part:>20} {seconds * 1e3:8.1f}  {seconds / each:6.1%}")
    print(f"{'engine alone':>20} {alone * 1e3:8.1f}")
    print(f"all but the scores: {scoring / alone:.2f} times the engine alone", flush=True)


def main() -> None:
    """Parse the command line, measure, print a table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.99, 0.95, 0.9])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS / "cpu" / "pags.json")
    options = parser.parse_args()
    if options.candidates < 1:
        parser.error("--candidates: expected 1 or more")
    torch.set_num_threads(options.threads)

    rows = []
    for sparsity in options.sparsity:
        rows.append(run(sparsity, options.candidates, options.seed))
        show(rows[-1])
    write_json(options.output, rows)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
