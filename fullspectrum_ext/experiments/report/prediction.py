"""The section on whether the coordinate predicts accuracy, once density is accounted for."""

import math
from collections.abc import Sequence

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
from fullspectrum_ext.experiments.report.names import DENSE
from fullspectrum_ext.experiments.report.sample import AS_IT_IS, Sample, pairs, sample
from fullspectrum_ext.experiments.report.statistics import Association
from fullspectrum_ext.experiments.report.study import Panel, Run, Study
from fullspectrum_ext.experiments.report.words import (
    NOTHING,
    association_cell,
    interval,
    many,
    signed,
)

_MEASURES = {
    "anchor_distance": "Anchor distance",
    "norm_before": "Norm before training",
    "norm_after": "Norm after training",
}
_FEW = 20  # runs, below which a sentence says so
_STRENGTHS = ((0.3, "weakly"), (0.6, "moderately"), (math.inf, "strongly"))

_METHOD = (
    "Does a measure of the coordinate say more of a network's accuracy than its density? Each "
    "correlation is given as it is and with density accounted for (partial correlation). At equal "
    "density: a constant for each sparsity and the density that came are regressed out of both "
    "variables. At equal layer densities, where records hold them: the principal components of "
    "their logarithms too, those of 99 % of what varies, at most four. For how a method spreads "
    "its weights over the layers is known to explain much of such correlations (Cunegatti et al., "
    "TMLR 2024). The rows called PAGS less its base are free of it by construction: differences "
    "between runs of the same seed that have as many weights in every layer. Runs without pruning "
    "are left out."
)
_RULE = (
    "In brackets: 95 % intervals by Fisher's z, for ranks by Bonett and Wright. They are those of "
    "independent observations, which seeds of one method are not; so the sentences above go by "
    "Pearson's r over all runs and over the means over seeds alike, with the strictest control "
    "that there is. No evidence: one of the two intervals holds 0. Else weakly, moderately, "
    "strongly: the weaker r is below 0.3, below 0.6, or not."
)


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
        if (gains := pairs(panel, "norm_before")).x:
            title = "Gain in norm of PAGS over its base (layer counts kept)"
            blocks.append(Finding(panel.name, verdict(title, gains, "pair")))
        caption = (
            f"{panel.name}: test accuracy against each measure. Above as they are, below what the "
            "controls leave of both."
        )
        clouds = [_cloud(_MEASURES[measure], found) for measure, found in samples.items()]
        blocks += [
            Figure(f"prediction-{panel.key}", draw_clouds(panel, clouds), caption),
            _table(panel, runs),
        ]
    return Section("Does the coordinate predict accuracy?", blocks)


def _cloud(title: str, found: Sample) -> Cloud:
    left = {control: found.residuals(control) for control in found.controls}
    return Cloud(title, left, [sparsity for _, sparsity in found.cells])


def _table(panel: Panel, runs: Sequence[Run]) -> Table:
    controls = list(sample(runs, "anchor_distance").controls)
    titles = [
        f"{name} {control}".rstrip() for name in ("Pearson", "Spearman") for control in controls
    ]
    columns = [Column("measure", is_text=True), Column("runs", is_text=True), Column("n")]
    rows = []
    for measure, title in _MEASURES.items():
        every = sample(runs, measure)
        scopes = {"all sparsities": every}
        if every.has_seeds:
            scopes["all, means over seeds"] = every.means()
        if len(panel.sparsities) > 1:
            for sparsity in panel.sparsities:
                at = [run for run in runs if run.sparsity == sparsity]
                scopes[f"at {percent(sparsity)}"] = sample(at, measure)
        if (differences := pairs(panel, measure)).x:
            scopes["PAGS less its base"] = differences
        for scope, found in scopes.items():
            cells = [
                association_cell(found.correlate(control, ranks=ranks))
                if control in found.controls
                else NOTHING
                for ranks in (False, True)
                for control in controls
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
    strictest = found.strictest
    everything = {control: found.correlate(control) for control in found.controls}
    raw, equal, means = (
        everything[AS_IT_IS],
        everything[strictest],
        found.means().correlate(strictest),
    )
    if math.isnan(equal.coefficient):
        return f"{title} against accuracy: too few {noun}s, or all alike, to say anything."
    steps = (f"{_words(r)} {control or 'as it is'}" for control, r in everything.items())
    start = f"{title}: r = {', '.join(steps)} over {many(equal.n, noun)}"
    if found.has_seeds and not math.isnan(means.coefficient):
        start += f", there {_words(means)} over the {means.n} means over seeds"
    if math.isnan(means.low):
        return f"{start}: too few methods and sparsities to say anything."
    few = " (they are few)" if means.n < _FEW else ""
    if _sign(equal) * _sign(means) > 0:
        weaker = min(abs(equal.coefficient), abs(means.coefficient))
        strength = next(word for most, word in _STRENGTHS if weaker < most)
        higher = "higher" if _sign(equal) > 0 else "lower"
        return f"{start}{few}: larger ones go with {higher} accuracy, {strength}."
    is_density = _sign(raw) and not _sign(equal)
    end = "; what is seen without the control is the density's" if is_density else ""
    return f"{start}{few}: no evidence that it says anything of accuracy{end}."


def _words(found: Association) -> str:
    return f"{signed(found.coefficient)} {interval(found.low, found.high)}".rstrip()


def _sign(found: Association) -> int:
    """1 or -1 where the interval is on one side of 0; else, and without an interval, 0."""
    return (found.low > 0) - (found.high < 0)
