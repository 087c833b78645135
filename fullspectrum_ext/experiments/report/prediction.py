"""The section on whether the coordinate predicts accuracy, once density is accounted for."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fullspectrum_ext.experiments.report.content import (
    Block,
    Cell,
    Column,
    Figure,
    Finding,
    Heading,
    Section,
    Table,
    Text,
)
from fullspectrum_ext.experiments.report.figures import Cloud, draw_clouds, percent
from fullspectrum_ext.experiments.report.names import DENSE, has_larger_norm, rivals
from fullspectrum_ext.experiments.report.statistics import Association, associate, residuals
from fullspectrum_ext.experiments.report.study import Panel, Run, Study
from fullspectrum_ext.experiments.report.words import association_cell, interval, many, signed

_MEASURES = {
    "anchor_distance": "Anchor distance",
    "norm_before": "Norm before training",
    "norm_after": "Norm after training",
}
_FEW = 20  # runs, below which a sentence says so
_STRENGTHS = ((0.3, "weakly"), (0.6, "moderately"), (math.inf, "strongly"))

_METHOD = (
    "Does a measure of the coordinate say more of a network's accuracy than its density? Each "
    "correlation is given as it is and at equal density: what is left of both variables once a "
    "constant for each sparsity and the density that came are regressed out (partial "
    "correlation). How a method spreads its weights over the layers is not accounted for by that, "
    "and is known to explain much of such correlations (Cunegatti et al., TMLR 2024). The rows "
    "called PAGS less its base are free of it: differences between runs of the same seed that have "
    "as many weights in every layer. Runs without pruning are left out."
)
_RULE = (
    "In brackets: 95 % intervals by Fisher's z, for ranks by Bonett and Wright. They are those of "
    "independent observations, which seeds of one method are not; so the sentences above go by "
    "Pearson's r at equal density over all runs and over the means over seeds alike. No evidence: "
    "one of the two intervals holds 0. Else weakly, moderately, strongly: the weaker r is below "
    "0.3, below 0.6, or not."
)


@dataclass(frozen=True)
class Sample:
    """A measure and the accuracy of some runs, and what stands for their density.

    Attributes:
        x: The measure.
        y: Accuracy.
        controls: The density that came, and a constant for each sparsity but the first.
        cells: Method and sparsity.
    """

    x: Sequence[float]
    y: Sequence[float]
    controls: Sequence[Sequence[float]]
    cells: Sequence[tuple[str, float]]

    def correlate(self, *, ranks: bool = False, at_equal_density: bool = False) -> Association:
        """Correlate measure and accuracy."""
        return associate(self.x, self.y, self.controls if at_equal_density else (), ranks=ranks)

    def means(self) -> "Sample":
        """The means over the seeds of each method and sparsity."""
        places: dict[tuple[str, float], list[int]] = {}
        for place, cell in enumerate(self.cells):
            places.setdefault(cell, []).append(place)

        def mean(values: Sequence[float]) -> list[float]:
            return [statistics.fmean(values[i] for i in at) for at in places.values()]

        return Sample(mean(self.x), mean(self.y), [mean(c) for c in self.controls], [*places])


def prediction(study: Study) -> Section:
    """Correlate anchor distance and norms with accuracy, with and without density.

    Args:
        study: All runs.

    Returns:
        The section.
    """
    blocks: list[Block] = [Text(_METHOD)]
    for panel in study.panels:
        runs = [run for run in panel.runs if run.method != DENSE]
        samples = {measure: sample(runs, measure) for measure in _MEASURES}
        blocks.append(Heading(panel.name))
        blocks += [
            Finding(panel.name, verdict(_MEASURES[measure], found))
            for measure, found in samples.items()
        ]
        pairs = _pairs(panel, "norm_before")
        if pairs.x:
            title = "Gain in norm of PAGS over its base (layer counts kept)"
            blocks.append(Finding(panel.name, verdict(title, pairs, "pair")))
        caption = (
            f"{panel.name}: test accuracy against each measure. Above as they are, below what is "
            "left of both at equal density."
        )
        clouds = [_cloud(_MEASURES[measure], found) for measure, found in samples.items()]
        blocks += [
            Figure(f"prediction-{panel.key}", draw_clouds(panel, clouds), caption),
            _table(panel, runs),
        ]
    return Section("Does the coordinate predict accuracy?", blocks)


def sample(runs: Sequence[Run], measure: str) -> Sample:
    """Take a measure, the accuracy and the density of the runs that have them.

    Args:
        runs: Of one panel.
        measure: Name of a figure of the runs.

    Returns:
        The sample.
    """
    runs = [run for run in runs if math.isfinite(run.number(measure) + run.accuracy + run.density)]
    cells = [(run.method, run.sparsity) for run in runs]
    return Sample(
        [run.number(measure) for run in runs],
        [run.accuracy for run in runs],
        [[run.density for run in runs], *_constants(cells)] if runs else [],
        cells,
    )


def _constants(cells: Sequence[tuple[str, float]]) -> list[list[float]]:
    levels = sorted({sparsity for _, sparsity in cells})[1:]
    return [[float(sparsity == level) for _, sparsity in cells] for level in levels]


def _pairs(panel: Panel, measure: str) -> Sample:
    """Differences between PAGS and its base of the same sparsity and seed."""
    x, y, cells = [], [], []
    for method in panel.methods:
        if not has_larger_norm(method):
            continue
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
    return Sample(x, y, _constants(cells), cells)


def _cloud(title: str, found: Sample) -> Cloud:
    left_x, left_y = (residuals(v, found.controls) if v else [] for v in (found.x, found.y))
    sparsities = [sparsity for _, sparsity in found.cells]
    return Cloud(title, found.x, found.y, left_x, left_y, sparsities)


def _table(panel: Panel, runs: Sequence[Run]) -> Table:
    titles = ("Pearson", "Pearson at equal density", "Spearman", "Spearman at equal density")
    columns = [Column("measure", is_text=True), Column("runs", is_text=True), Column("n")]
    rows = []
    for measure, title in _MEASURES.items():
        every = sample(runs, measure)
        scopes = {"all sparsities": every}
        if _has_seeds(every):
            scopes["all, means over seeds"] = every.means()
        if len(panel.sparsities) > 1:
            for sparsity in panel.sparsities:
                at = [run for run in runs if run.sparsity == sparsity]
                scopes[f"at {percent(sparsity)}"] = sample(at, measure)
        pairs = _pairs(panel, measure)
        if pairs.x:
            scopes["PAGS less its base"] = pairs
        for scope, found in scopes.items():
            cells = [
                association_cell(found.correlate(ranks=ranks, at_equal_density=controlled))
                for ranks in (False, True)
                for controlled in (False, True)
            ]
            n = len(found.x)
            few = "few" if n < _FEW else ""
            rows.append([Cell(title), Cell(scope), Cell(str(n), n, few), *cells])
    caption = f"Correlations with test accuracy, {panel.name}. {_RULE}"
    return Table([*columns, *map(Column, titles)], rows, caption)


def verdict(title: str, found: Sample, noun: str = "run") -> str:
    """Say in words what the correlations of a measure say, by the rule that the report states.

    Args:
        title: Of the measure.
        found: Of all runs of a panel.
        noun: What an observation is.

    Returns:
        One sentence.
    """
    equal = found.correlate(at_equal_density=True)
    means = found.means().correlate(at_equal_density=True)
    if math.isnan(equal.coefficient):
        return f"{title} against accuracy: too few {noun}s, or all alike, to say anything."
    start = f"{title} at equal density: {_words(equal)} over {many(equal.n, noun)}"
    if _has_seeds(found) and not math.isnan(means.coefficient):
        start += f", {_words(means)} over the {means.n} means over seeds"
    if math.isnan(means.low):
        return f"{start}: too few methods and sparsities to say anything."
    few = " (they are few)" if means.n < _FEW else ""
    if _sign(equal) * _sign(means) > 0:
        weaker = min(abs(equal.coefficient), abs(means.coefficient))
        strength = next(word for most, word in _STRENGTHS if weaker < most)
        higher = "higher" if _sign(equal) > 0 else "lower"
        return f"{start}{few}: larger ones go with {higher} accuracy, {strength}."
    raw = found.correlate()
    end = ""
    if _sign(raw) and not _sign(equal):
        end = f"; what is seen without the control, {_words(raw)}, is the density's"
    return f"{start}{few}: no evidence that it says anything of accuracy{end}."


def _has_seeds(found: Sample) -> bool:
    return len(set(found.cells)) < len(found.cells)


def _words(found: Association) -> str:
    return f"r = {signed(found.coefficient)} {interval(found.low, found.high)}".rstrip()


def _sign(found: Association) -> int:
    """1 or -1 where the interval is on one side of 0; else, and without an interval, 0."""
    return (found.low > 0) - (found.high < 0)
