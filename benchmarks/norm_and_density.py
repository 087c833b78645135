"""Ask recorded runs what a coordinate's norm says of accuracy that density does not.

Reads results of `fullspectrum train` (by default those of this folder: digits, six methods, 5 to 8
seeds) and prints, for the norm and each of the four coordinates before training:

* the correlation with the test accuracy over all runs,
* what is left of it when the density of each layer is accounted for (partial correlation),
* the correlation between pairs of runs of one seed, PAGS and its base, whose layers have the same
  densities: does the mask with the larger norm train better? (differences, PAGS less base)

p-values are from permutations. The densities are not in the records: the base masks are made again,
and their norm is compared with the recorded one.
"""

import argparse
import json
import math
import pathlib
from typing import Any

import numpy as np
from measure import RESULTS

from fullspectrum_ext.experiments.data import Batches, load_data
from fullspectrum_ext.experiments.methods import make_masks
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.spectral import full_spectrum, partial_correlation, pearson
from fullspectrum_ext.spectral.coordinates import COORDINATES

PERMUTATIONS = 10_000
Run = dict[str, Any]


def layer_densities(config: dict[str, Any], base: Run) -> list[float]:
    """Make a base method's masks again, and return the density of each layer."""
    dataset = load_data(config["data"])
    seed = base["seed"]
    model = build_model(config["model"], dataset.shape, dataset.classes, seed)
    masks = make_masks(
        base["method"],
        model,
        sparsity=config["sparsity"],
        candidates=0,
        data=list(Batches(dataset.train, config["batch_size"], seed)),
        seed=seed,
    )
    norm = full_spectrum(masks, model).norm()
    if not math.isclose(norm, base["norm_before"], rel_tol=1e-3):
        raise ValueError(f"{base['method']}, seed {seed}: norm {norm}, not {base['norm_before']}")
    return [int(mask.sum()) / mask.numel() for mask in masks.values()]


def measures(run: Run) -> dict[str, float]:
    """What may or may not predict the accuracy of a run."""
    return {"norm": run["norm_before"]} | dict(
        zip(COORDINATES, run["coordinate_before"], strict=True)
    )


def show(path: pathlib.Path) -> None:
    """Print the table of one file of results."""
    found = json.loads(path.read_text())
    runs = {(run["method"], run["seed"]): run for run in found["runs"]}
    bases = {key: run for key, run in runs.items() if ":" not in key[0]}
    density = {key: layer_densities(found["config"], run) for key, run in bases.items()}
    controls = np.array([density[method.split(":")[-1], seed] for method, seed in runs]).T
    accuracy = [run["test_accuracy"] for run in runs.values()]
    pairs = [
        (runs[f"pags:{method}", seed], run)
        for (method, seed), run in bases.items()
        if (f"pags:{method}", seed) in runs
    ]
    gained = [pags["test_accuracy"] - base["test_accuracy"] for pags, base in pairs]

    print(f"{path.stem}: {len(runs)} runs, {len(pairs)} pairs of equal layer densities")
    print(f"{'':>15} {'alone':>16} {'given densities':>17} {'pairs':>17}")
    for name in measures(next(iter(runs.values()))):
        values = [measures(run)[name] for run in runs.values()]
        differences = [measures(pags)[name] - measures(base)[name] for pags, base in pairs]
        correlations = (
            pearson(values, accuracy, permutations=PERMUTATIONS),
            partial_correlation(values, accuracy, list(controls), permutations=PERMUTATIONS),
            pearson(differences, gained, permutations=PERMUTATIONS),
        )
        cells = [f"{c.coefficient:+.2f} (p {c.p_value:.4f})" for c in correlations]
        print(f"{name:>15} " + " ".join(cells))
    raised = np.mean([measures(pags)["norm"] / measures(base)["norm"] - 1 for pags, base in pairs])
    wins, losses = sum(gain > 0 for gain in gained), sum(gain < 0 for gain in gained)
    print(
        f"PAGS raises the norm by {raised:.0%} and the accuracy by {np.mean(gained) * 100:+.2f} "
        f"points (better {wins}, worse {losses} of {len(pairs)})\n"
    )


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = sorted((RESULTS / "cpu").glob("digits-*.json"))
    parser.add_argument("results", nargs="*", type=pathlib.Path, default=default)
    for path in parser.parse_args().results:
        show(path)


if __name__ == "__main__":
    main()
