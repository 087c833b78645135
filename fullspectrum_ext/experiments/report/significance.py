"""The section on differences between methods, paired over seeds."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from fullspectrum_ext.experiments.report.content import (
    Block,
    Cell,
    Column,
    Finding,
    Heading,
    Section,
    Table,
    Text,
)
from fullspectrum_ext.experiments.report.figures import percent
from fullspectrum_ext.experiments.report.names import (
    IMP,
    has_larger_norm,
    is_dynamic,
    is_guided,
    kin,
    rivals,
)
from fullspectrum_ext.experiments.report.statistics import PairedTest, holm, paired_test
from fullspectrum_ext.experiments.report.study import Panel, Run, Study
from fullspectrum_ext.experiments.report.words import (
    NOTHING,
    interval,
    many,
    p_cell,
    signed,
    signed_cell,
)

_LEVEL = 0.05
_ROUNDING = 1e-6  # of a norm: what two computations of one may differ by

_METHOD = (
    "Runs of the same seed share initial weights and the order of the data, so methods are "
    "compared seed by seed. PAGS is compared with its base; what starts from warm weights with its "
    "counterpart that does too (the cold one where there is none) and with imp; what changes the "
    "topology with the fixed masks that it begins with, and with the same without guidance."
)


@dataclass(frozen=True)
class Comparison:
    """A method against another one at a sparsity, over the seeds they share.

    Attributes:
        method: The one.
        rival: The other one.
        sparsity: That was asked for.
        test: Of the differences in accuracy, in percentage points.
        norms: Differences of the coordinate's norm before training, and the rival's norm.
        kept: Weights of the method for each of the rival, mean over seeds.
    """

    method: str
    rival: str
    sparsity: float
    test: PairedTest
    norms: tuple[tuple[float, float], ...]
    kept: float

    @property
    def lower_norms(self) -> int:
        """In how many pairs the method's norm is below its rival's, by more than rounding."""
        return sum(difference < -_ROUNDING * abs(norm) for difference, norm in self.norms)


_KINDS: dict[str, Callable[[Comparison], bool]] = {
    "PAGS with layer counts kept, against its base": lambda c: has_larger_norm(c.method),
    "PAGS with drift, against its base": lambda c: (
        kin(c.method).flags == ("drift",) and not is_dynamic(c.method)
    ),
    "What starts warm, against imp": lambda c: c.rival == IMP,
    "Changing topologies, against the masks they begin with": lambda c: (
        is_dynamic(c.method) and not is_dynamic(c.rival)
    ),
    "Guided updates of the topology, against unguided ones": lambda c: (
        is_guided(c.method) and is_dynamic(c.rival)
    ),
}


def compare(panel: Panel) -> list[Comparison]:
    """Compare what a panel has of PAGS, warm starts and changing topologies with its rivals.

    Args:
        panel: The runs.

    Returns:
        One comparison for each pair and each sparsity that both were run at.
    """
    return [
        _comparison(method, rival, sparsity, panel)
        for method in panel.methods
        for rival in rivals(method, panel.methods)
        for sparsity in panel.sparsities
        if panel.cell(method, sparsity) and panel.cell(rival, sparsity)
    ]


def _comparison(method: str, rival: str, sparsity: float, panel: Panel) -> Comparison:
    others = {run.seed: run for run in panel.cell(rival, sparsity)}
    pairs = [(run, others[run.seed]) for run in panel.cell(method, sparsity) if run.seed in others]
    differences = [run.accuracy - other.accuracy for run, other in pairs]
    norms = [(_norm(run) - _norm(other), _norm(other)) for run, other in pairs]
    shares = [run.number("kept") / other.number("kept") for run, other in pairs]
    return Comparison(
        method,
        rival,
        sparsity,
        paired_test([d for d in differences if math.isfinite(d)]),
        tuple(norm for norm in norms if math.isfinite(norm[0])),
        statistics.fmean(shares) if shares else math.nan,
    )


def _norm(run: Run) -> float:
    return run.number("norm_before")


def significance(study: Study) -> Section | None:
    """Test methods against their rivals, over seeds in common.

    Args:
        study: All runs.

    Returns:
        The section; None where there is nothing to compare.
    """
    found = {panel.name: compare(panel) for panel in study.panels}
    family = [comparison for comparisons in found.values() for comparison in comparisons]
    if not family:
        return None
    corrected = iter(holm([comparison.test.t_p for comparison in family]))
    blocks: list[Block] = [Text(_METHOD)]
    for name, comparisons in found.items():
        if comparisons:
            p_values = [next(corrected) for _ in comparisons]
            blocks += [
                Heading(name),
                *(Finding(name, words) for words in _summary(comparisons, p_values)),
                _table(name, comparisons, p_values, len(family)),
            ]
    return Section("Differences, paired over seeds", blocks)


def _summary(comparisons: list[Comparison], p_values: list[float]) -> list[str]:
    """What the tests say of PAGS against its bases, with counts kept and with drift."""
    sentences = []
    for title, is_kind in _KINDS.items():
        chosen = [(c, p) for c, p in zip(comparisons, p_values, strict=True) if is_kind(c)]
        tested = [(c, p) for c, p in chosen if not math.isnan(p)]
        if tested:
            better = sum(p < _LEVEL and c.test.mean > 0 for c, p in tested)
            worse = sum(p < _LEVEL and c.test.mean < 0 for c, p in tested)
            sentences.append(
                f"{title}: significantly better in {better} and worse in {worse} of "
                f"{many(len(tested), 'comparison')} (paired t, Holm, 5 %); mean difference in "
                f"accuracy {signed(statistics.fmean(c.test.mean for c, _ in tested))}."
            )
    same = [c for c in comparisons if has_larger_norm(c.method)]
    pairs, lower = sum(len(c.norms) for c in same), sum(c.lower_norms for c in same)
    if pairs:
        sentences.append(
            f"With layer counts kept, the norm of PAGS is at least its base's in {pairs - lower} "
            f"of {many(pairs, 'pair')} of runs."
        )
    return sentences


def _table(name: str, comparisons: list[Comparison], p_values: list[float], family: int) -> Table:
    columns = [Column("method", is_text=True), Column("against", is_text=True)]
    titles = ("sparsity", "n", "difference, %", "p (t)", "p (t, Holm)", "p (Wilcoxon)")
    more = ("norm, difference", "norm lower in", "weights, difference")
    rows = [_row(c, p) for c, p in zip(comparisons, p_values, strict=True)]
    caption = (
        f"{name}: test accuracy of the method less that of the other, mean over the n seeds in "
        "common with its 95 % paired t interval; bold: p (t, Holm) below 0.05. Holm's correction "
        f"is over all {family} comparisons of this page. Norm: of the coordinate before training. "
        "No p-value stands where all differences are equal, or where fewer than 2 seeds are in "
        "common."
    )
    return Table([*columns, *map(Column, (*titles, *more))], rows, caption)


def _row(found: Comparison, p_value: float) -> list[Cell]:
    test = found.test
    difference = signed_cell(test.mean)
    note = interval(test.low, test.high) or ("" if test.n > 1 else "fewer than 2 seeds in common")
    norms = [difference for difference, _ in found.norms]
    weights = 100 * (found.kept - 1)
    return [
        Cell(found.method),
        Cell(found.rival),
        Cell(percent(found.sparsity), found.sparsity),
        Cell(str(test.n), test.n),
        Cell(difference.text, difference.value, note, is_best=p_value < _LEVEL),
        p_cell(test.t_p),
        p_cell(p_value),
        p_cell(test.wilcoxon_p),
        signed_cell(statistics.fmean(norms), 3) if norms else NOTHING,
        Cell(f"{found.lower_norms} of {len(norms)}", found.lower_norms) if norms else NOTHING,
        NOTHING if math.isnan(weights) else Cell(f"{signed_cell(weights).text} %", weights),
    ]
