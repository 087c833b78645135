"""Measure how far masks are below the Ramanujan bound, by how they were made.

The gap is bound - sigma2; a mask is a Ramanujan graph where it is not negative. Every generator of
`fullspectrum_ext.spectral.ramanujan` runs with the seeds 0, 1, ...; for comparison also masks whose
weights are kept independently of each other, and masks with equal row degrees only. Then a
ResNet-34 is pruned by "ramanujan" and by "erk", random masks of the same layer counts. Same seeds,
same gaps. The seconds are those of one call, certificates included, on a machine that does other
things too.
"""

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bench_spectrum import resnet34
from measure import RESULTS, write_json
from torch import nn

from fullspectrum_ext import full_spectrum, prune
from fullspectrum_ext.spectral.ramanujan import (
    RamanujanMask,
    array_code,
    biregular_random,
    certify,
    quasi_cyclic,
    two_lift,
)

Make = Callable[[torch.Generator], RamanujanMask]


class Case(NamedTuple):
    """One line of the table: a generator, a size, and how to run it."""

    generator: str
    example: str
    make: Make


def bernoulli(rows: int, cols: int, degree: int) -> Make:
    """Keep every weight with the same probability."""
    return lambda generator: certify(torch.rand(rows, cols, generator=generator) < degree / cols)


def equal_rows(rows: int, cols: int, degree: int) -> Make:
    """Keep the same number of weights in every row, wherever they are."""

    def make(generator: torch.Generator) -> RamanujanMask:
        kept = torch.rand(rows, cols, generator=generator).argsort(1)[:, :degree]
        return certify(torch.zeros(rows, cols, dtype=torch.bool).scatter_(1, kept, True))

    return make


def biregular(rows: int, cols: int, degree: int, tries: int) -> Make:
    """Keep the same number in every row, and in every column."""
    return lambda generator: biregular_random(
        rows, cols, degree=degree, generator=generator, tries=tries
    )


def shifted(block_rows: int, block_cols: int, q: int) -> Make:
    """Choose the best of a hundred grids of shifts."""
    return lambda generator: quasi_cyclic(block_rows, block_cols, q, generator=generator)


def lifted(base: int, lifts: int, tries: int) -> Make:
    """Lift a complete graph."""
    return lambda generator: two_lift(
        torch.ones(base, base), lifts, generator=generator, tries=tries
    )


def code(q: int, block_rows: int, block_cols: int) -> Make:
    """Make an array code, which nothing is random in."""
    return lambda _: array_code(q, block_rows, block_cols)


def cases() -> list[Case]:
    """List what is measured."""
    squares = [(512, 512, degree) for degree in (5, 16, 51)]
    sizes = [*squares, (512, 4608, 45), (64, 576, 27)]
    grids = [(16, 16, 32), (8, 8, 64), (4, 36, 128), (64, 64, 8), (6, 6, 96)]
    text = "{} x {}, {} a row".format
    return [
        *(Case("each weight by itself", text(*size), bernoulli(*size)) for size in squares),
        *(Case("equal row degrees", text(*size), equal_rows(*size)) for size in squares),
        *(Case("biregular_random", text(*size), biregular(*size, 20)) for size in sizes),
        Case("biregular_random, tries=1", text(60, 60, 3), biregular(60, 60, 3, 1)),
        Case("biregular_random", text(60, 60, 3), biregular(60, 60, 3, 20)),
        *(
            Case("quasi_cyclic", f"{rows} x {cols} blocks, q = {q}", shifted(rows, cols, q))
            for rows, cols, q in grids
        ),
        Case("two_lift, tries=1", "K(8,8), 6 lifts", lifted(8, 6, 1)),
        Case("two_lift", "K(8,8), 6 lifts", lifted(8, 6, 20)),
        *(
            Case("array_code", f"{rows} x {cols} blocks, q = {q}", code(q, rows, cols))
            for q, rows, cols in ((23, 5, 23), (11, 11, 11), (23, 5, 9))
        ),
    ]


def measured(case: Case, seeds: int) -> dict[str, Any]:
    """Run a case with every seed."""
    found, seconds = [], []
    for seed in range(1 if case.generator == "array_code" else seeds):
        start = time.perf_counter()
        found.append(case.make(torch.Generator().manual_seed(seed)))
        seconds.append(time.perf_counter() - start)
    gaps = [mask.gap for mask in found]
    return {
        "generator": case.generator,
        "example": case.example,
        "shape": list(found[0].mask.shape),
        "edges": int(found[0].mask.count_nonzero()),
        "seeds": len(found),
        "bound": round(found[0].bound, 6),
        "gaps": [round(gap, 5) for gap in gaps],
        "median_gap": round(statistics.median(gaps), 5),
        "ramanujan": sum(mask.is_ramanujan for mask in found),
        "largest_sigma2_bound": max(mask.sigma2_bound for mask in found),
        "median_seconds": round(statistics.median(seconds), 4),
    }


def networks() -> list[dict[str, Any]]:
    """Prune the layers of a ResNet-34 for CIFAR, at several sparsities."""
    layers = [nn.Conv2d(inputs, outputs, round(area**0.5)) for outputs, inputs, area in resnet34()]
    model = nn.Sequential(*layers)
    rows = []
    for sparsity in (0.9, 0.95, 0.98, 0.99):
        for method in ("erk", "ramanujan"):
            start = time.perf_counter()
            masks = prune(model, method, sparsity=sparsity, seed=0)
            seconds = time.perf_counter() - start
            spectrum = full_spectrum(masks)
            gaps = [layer.ramanujan_gap for layer in spectrum.layers.values()]
            rows.append({
                "network": "ResNet-34",
                "method": method,
                "sparsity": sparsity,
                "layers": len(gaps),
                "ramanujan": sum(layer.is_ramanujan for layer in spectrum.layers.values()),
                "least_gap": round(min(gaps), 5),
                "median_gap": round(statistics.median(gaps), 5),
                "seconds": round(seconds, 3),
            })
    return rows


def as_network_line(row: dict[str, Any]) -> str:
    """Write a network's row as the documentation's table has it."""
    gaps = f"{row['least_gap']:+.3f} | {row['median_gap']:+.3f}"
    share = f"{row['ramanujan']} of {row['layers']}"
    return f"| {row['sparsity']} | {row['method']} | {gaps} | {share} | {row['seconds']:.1f} |"


def as_line(row: dict[str, Any]) -> str:
    """Write a row as the documentation's table has it."""
    gaps = f"{min(row['gaps']):+.3f} | {row['median_gap']:+.3f} | {max(row['gaps']):+.3f}"
    share = f"{row['ramanujan']} of {row['seeds']}"
    return f"| {row['generator']} | {row['example']} | {gaps} | {share} |"


def main() -> None:
    """Measure, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="runs of each generator")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "cpu" / "ramanujan.json")
    arguments = parser.parse_args()
    rows = []
    print("| generator | example | least gap | median | largest | Ramanujan |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in cases():
        rows.append(measured(case, arguments.seeds))
        print(as_line(rows[-1]), flush=True)
    print("\n| sparsity | method | least gap | median | Ramanujan layers | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    pruned = networks()
    print("\n".join(map(as_network_line, pruned)))
    write_json(arguments.out, [*rows, *pruned])


if __name__ == "__main__":
    main()
