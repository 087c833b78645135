"""How the time for two singular values grows with the number of nonzeros.

Random masks and float32 weights on them, from 10^4 entries on, one call of `ops.singular_values`
each, of two families:

- rows: 4096 rows (fewer where that leaves a row less than 16 entries). There are 4096 columns, then
  so many that half of the matrix is filled: up to 10^6 entries the matrix gets denser, beyond that
  longer, as layers of language models are.
- degree: square, 32 entries a row. Here the second value lies at the edge of a bulk of values that
  get closer as the matrix grows, about as size^(-2/3), and the steps of any Krylov method grow with
  the inverse square root of that distance: the time cannot be linear.

Reported are nanoseconds an entry, how many products with the Gram matrix it took (of two vectors
each, those of the second pass included) and nanoseconds an entry and product; and the exponent of
the nonzeros in the fitted time, in the products and in the time of one product, over all sizes and
over those beyond the Gram matrices. `docs/figures/spectrum_growth.png` shows them.

    python benchmarks/bench_spectrum_growth.py                       # minutes: the largest is 10^8
    python benchmarks/bench_spectrum_growth.py --families rows --exponents 8 --append
"""

import argparse
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from measure import RESULTS, write_json

from fullspectrum_ext import _core, ops

ROWS = 4096
FEWEST_A_ROW = 16
DEGREE = 32
FAMILIES = {"rows": [4, 5, 6, 7, 8], "degree": [4, 5, 6, 7]}
LARGEST_GRAM = 2048  # rows; see csrc/spectrum/cpu_problems.cpp
ENOUGH_SECONDS = 10.0  # of one size: then it is not repeated
FIGURE = pathlib.Path(__file__).parents[1] / "docs" / "figures" / "spectrum_growth.png"


def random_matrix(
    family: str, entries: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Draw a mask in CSR form: each row has one entry in each of equal ranges of columns."""
    rows = entries // DEGREE if family == "degree" else min(ROWS, entries // FEWEST_A_ROW)
    in_row = round(entries / rows)
    columns = rows if family == "degree" else ROWS
    width = max(columns // in_row, 2)  # of a range
    generator = torch.Generator().manual_seed(seed)
    cols = torch.randint(width, (rows, in_row), generator=generator, dtype=torch.int32)
    cols += torch.arange(in_row, dtype=torch.int32) * width
    crow = torch.arange(0, rows * in_row + 1, in_row, dtype=torch.int32)
    return crow, cols.flatten(), (rows, width * in_row)


def measure(family: str, exponent: int, repeats: int) -> list[dict[str, Any]]:
    """Time the mask and the weights of one size."""
    crow, cols, shape = random_matrix(family, 10**exponent, exponent)
    weights = torch.rand(len(cols), generator=torch.Generator().manual_seed(exponent))
    rows = []
    for name, values in (("mask", None), ("weights", weights)):
        seconds = []
        while len(seconds) < repeats and sum(seconds) < ENOUGH_SECONDS:
            start = time.perf_counter()
            found = ops.singular_values(crow, cols, values, shape)
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        nanoseconds = median * 1e9 / len(cols)
        data = None if values is None else values.numpy()
        *_, products = _core.singular_values(crow.numpy(), cols.numpy(), data, shape, 2, 1e-6)
        rows.append({
            "family": family,
            "matrix": name,
            "nonzeros": len(cols),
            "shape": shape,
            "repeats": len(seconds),
            "seconds": median,
            "nanoseconds_per_nonzero": nanoseconds,
            "products": products,
            "nanoseconds_per_nonzero_and_product": nanoseconds / products,
            "relative_bound": float((found.bounds / found.values).max()),
        })
        print(
            f"{family:>6} {name:>8} {len(cols):>10} {median:10.4f} s {nanoseconds:9.1f} ns "
            f"= {products} products of {nanoseconds / products:.2f} ns",
            flush=True,
        )
    return rows


def fitted_exponents(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Fit c nonzeros^p to the time, the products and the time of one; nothing for one size."""
    if len(rows) < 2:
        return {}
    sizes = np.log([row["nonzeros"] for row in rows])
    seconds = np.log([row["seconds"] for row in rows])
    products = np.log([row["products"] for row in rows])
    growing = {"time": seconds, "products": products, "time_of_one": seconds - products}
    return {
        name: round(float(np.polyfit(sizes, logarithms, 1)[0]), 3)
        for name, logarithms in growing.items()
    }


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """Draw how many products there are and what one costs."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    quantities = ("products", "nanoseconds_per_nonzero_and_product")
    titles = ("products with the Gram matrix", "nanoseconds a nonzero and product")
    for axis, quantity, title in zip(axes, quantities, titles, strict=True):
        for family, name in itertools.product(FAMILIES, ("mask", "weights")):
            of_kind = [row for row in rows if (row["family"], row["matrix"]) == (family, name)]
            axis.loglog(
                [row["nonzeros"] for row in of_kind],
                [row[quantity] for row in of_kind],
                "o-" if name == "mask" else "s--",
                color="tab:blue" if family == "rows" else "tab:red",
                label=f"{'4096 rows' if family == 'rows' else '32 a row'}, {name}",
            )
        axis.set(xlabel="nonzeros", title=title)
        axis.grid(alpha=0.3)
    sizes = np.array([1e4, 1e7])
    steps = 27 * (sizes / sizes[0]) ** (1 / 3)
    axes[0].loglog(sizes, steps, "k:", label="27 (nonzeros / $10^4$)$^{1/3}$")
    axes[0].loglog(sizes, 2 * steps, "k-.", label="twice that: two passes")
    axes[1].set_ylim(bottom=0.3, top=30)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    """Parse the command line, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--exponents", nargs="+", type=int, help="by default 4 to 8 and 4 to 7")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--append", action="store_true", help="keep other sizes' rows of the file")
    parser.add_argument(
        "--output", type=pathlib.Path, default=RESULTS / "cpu" / "spectrum_growth.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for family in options.families:
        for exponent in options.exponents or FAMILIES[family]:
            rows += measure(family, exponent, options.repeats)
    if options.append and options.output.exists():
        measured = {(row["family"], row["nonzeros"]) for row in rows}
        kept = json.loads(options.output.read_text())["rows"]
        rows += [
            row
            for row in kept
            if "products" in row and (row["family"], row["nonzeros"]) not in measured
        ]
    rows.sort(key=lambda row: (row["family"], row["matrix"], row["nonzeros"]))
    fits = []
    for family, name in itertools.product(FAMILIES, ("mask", "weights")):
        of_kind = [row for row in rows if (row["family"], row["matrix"]) == (family, name)]
        beyond = [row for row in of_kind if min(row["shape"]) > LARGEST_GRAM]
        fits.append({
            "family": family,
            "matrix": name,
            "exponents": fitted_exponents(of_kind),
            "exponents_beyond_gram": fitted_exponents(beyond),
        })
        print(fits[-1])
    write_json(options.output, rows + fits)
    draw(rows)


if __name__ == "__main__":
    main()
