"""What is correlated: a measure of the coordinate, accuracy, and what stands for density."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fullspectrum_ext.experiments.report.names import has_larger_norm, rivals
from fullspectrum_ext.experiments.report.statistics import Association, associate, residuals
from fullspectrum_ext.experiments.report.study import Panel, Run

AS_IT_IS, DENSITY, LAYERS = "", "at equal density", "at equal layer densities"
_LEAST_DENSITY = 1e-6  # whose logarithm stands for that of an empty layer
_SHARE, _MOST_COMPONENTS = 0.99, 4  # of what varies between the runs' layers

Values = Sequence[float]


@dataclass(frozen=True)
class Sample:
    """A measure and the accuracy of some runs, and what stands for their density.

    Attributes:
        x: The measure.
        y: Accuracy.
        controls: What to regress out of both: nothing, density, and where the layers' densities are
            known those too; the last is the strictest.
        cells: Method and sparsity.
    """

    x: Values
    y: Values
    controls: Mapping[str, Sequence[Values]]
    cells: Sequence[tuple[str, float]]

    @property
    def strictest(self) -> str:
        """The name of the strictest control."""
        return list(self.controls)[-1]

    @property
    def has_seeds(self) -> bool:
        """Whether a method has several runs at a sparsity."""
        return len(set(self.cells)) < len(self.cells)

    def correlate(self, control: str = AS_IT_IS, *, ranks: bool = False) -> Association:
        """Correlate measure and accuracy."""
        return associate(self.x, self.y, self.controls[control], ranks=ranks)

    def residuals(self, control: str) -> tuple[Values, Values]:
        """What a control leaves of the measure and of the accuracy."""
        controls = self.controls[control]
        if not controls:
            return self.x, self.y
        return residuals(self.x, controls), residuals(self.y, controls)

    def means(self) -> "Sample":
        """The means over the seeds of each method and sparsity."""
        places: dict[tuple[str, float], list[int]] = {}
        for place, cell in enumerate(self.cells):
            places.setdefault(cell, []).append(place)

        def mean(values: Values) -> Values:
            return [statistics.fmean(values[i] for i in at) for at in places.values()]

        controls = {name: [mean(c) for c in control] for name, control in self.controls.items()}
        return Sample(mean(self.x), mean(self.y), controls, [*places])


def sample(runs: Sequence[Run], measure: str) -> Sample:
    """Take a measure, the accuracy and the density of the runs that have them.

    Args:
        runs: Of one panel.
        measure: Name of a figure of the runs.

    Returns:
        The sample. Density is controlled by a constant for each sparsity and the density that came;
        the layers' by the principal components of their logarithms as well, those that hold 99 % of
        what is left of these within the sparsities, at most four.
    """
    runs = [run for run in runs if math.isfinite(run.number(measure) + run.accuracy + run.density)]
    cells = [(run.method, run.sparsity) for run in runs]
    constants = _constants(cells)
    density = [*constants, [run.density for run in runs]] if runs else []
    controls: dict[str, Sequence[Values]] = {AS_IT_IS: [], DENSITY: density}
    if runs and all(run.figures.get("layer_densities") for run in runs):
        controls[LAYERS] = [*density, *_components(runs, constants)]
    x, y = [run.number(measure) for run in runs], [run.accuracy for run in runs]
    return Sample(x, y, controls, cells)


def pairs(panel: Panel, measure: str) -> Sample:
    """Take differences between PAGS and its base of the same sparsity and seed.

    Args:
        panel: The runs.
        measure: Name of a figure of the runs.

    Returns:
        The sample; the layers of each pair have the same densities.
    """
    x, y, cells = [], [], []
    for method in filter(has_larger_norm, panel.methods):
        for base in rivals(method, panel.methods):
            for sparsity in panel.sparsities:
                others = {run.seed: run for run in panel.cell(base, sparsity)}
                for run in panel.cell(method, sparsity):
                    if other := others.get(run.seed):
                        dx = run.number(measure) - other.number(measure)
                        dy = run.accuracy - other.accuracy
                        if math.isfinite(dx + dy):
                            x.append(dx)
                            y.append(dy)
                            cells.append((method, sparsity))
    return Sample(x, y, {AS_IT_IS: [], DENSITY: _constants(cells)}, cells)


def _constants(cells: Sequence[tuple[str, float]]) -> list[Values]:
    """A constant for each sparsity but the first."""
    levels = sorted({sparsity for _, sparsity in cells})[1:]
    return [[float(sparsity == level) for _, sparsity in cells] for level in levels]


def _components(runs: Sequence[Run], constants: Sequence[Values]) -> list[Values]:
    """Principal components of the layers' log densities within the sparsities."""
    names = runs[0].figures["layer_densities"]
    logs = [
        [math.log(max(run.figures["layer_densities"][name], _LEAST_DENSITY)) for run in runs]
        for name in names
    ]
    left = np.column_stack([residuals(values, constants) for values in logs])
    directions, lengths, _ = np.linalg.svd(left, full_matrices=False)
    shares = np.cumsum(lengths**2)
    if shares[-1] < 1e-12:
        return []  # the layers have the same densities in all runs of a sparsity
    count = min(int(np.searchsorted(shares / shares[-1], _SHARE)) + 1, _MOST_COMPONENTS)
    components: list[Values] = (directions * lengths).T[:count].tolist()
    return components
