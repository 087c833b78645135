"""Draw docs/figures/spectral_density.png: three layers of one size and density beside the laws.

Run it as `python benchmarks/plot_spectral_density.py docs/figures/spectral_density.png`.
"""

import argparse
import pathlib

import numpy as np
import torch
from matplotlib.figure import Figure

from fullspectrum_ext.spectral import spectral_density

ROWS, COLS, DEGREE = 400, 800, 6  # edges at each tap


def random_mask(generator: np.random.Generator) -> np.ndarray:
    """Draw a graph of so many edges, all equally likely."""
    mask = np.zeros(ROWS * COLS, dtype=bool)
    mask[generator.choice(mask.size, COLS * DEGREE, replace=False)] = True
    return mask.reshape(ROWS, COLS)


def biregular_mask(generator: np.random.Generator) -> np.ndarray:
    """Draw a graph whose taps all have DEGREE outputs, and whose outputs all have as many taps.

    It is a sum of matchings; where two would meet, ends are exchanged.
    """
    mask = np.zeros((ROWS, COLS), dtype=bool)
    taps = np.arange(COLS)
    for _ in range(DEGREE):
        outputs = generator.permutation(np.repeat(np.arange(ROWS), COLS // ROWS))
        while (clashes := np.flatnonzero(mask[outputs, taps])).size:
            other = generator.integers(COLS, size=clashes.size)
            for a, b in zip(clashes, other, strict=True):
                outputs[a], outputs[b] = outputs[b], outputs[a]
        mask[outputs, taps] = True
    return mask


def uneven_mask(generator: np.random.Generator) -> np.ndarray:
    """Draw a graph with a wide spread of degrees, as a pruning method by scores often leaves it."""
    scores = generator.gumbel(size=(ROWS, COLS))  # with the logarithm of a chance for each edge
    scores += 0.4 * (generator.normal(size=(ROWS, 1)) + generator.normal(size=(1, COLS)))
    return scores >= np.sort(scores, axis=None)[-COLS * DEGREE]


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    masks = {"biregular": biregular_mask, "uniformly random": random_mask, "uneven": uneven_mask}
    panels = figure.subplots(1, len(masks))
    for panel, (title, draw) in zip(panels, masks.items(), strict=True):
        mask = torch.from_numpy(draw(np.random.default_rng(0)))
        spectral_density(mask, probes=256).plot(panel)
        panel.set_title(title)
        if panel is not panels[-1]:
            panel.get_legend().remove()
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
