"""The statistics of a report: spreads, correlations with intervals, paired tests, Holm."""

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from fullspectrum_ext.experiments.extras import MissingExtraError
from fullspectrum_ext.spectral import partial_correlation, pearson, spearman

_LEVEL = 0.95  # of all intervals
_LEAST = 3  # observations of a correlation
Values = Sequence[float]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (that of a sample; nan of one value) of ``n`` values."""

    mean: float
    deviation: float
    n: int


@dataclass(frozen=True)
class Association:
    """A correlation with its confidence interval; nan where there is none.

    Attributes:
        coefficient: In [-1, 1].
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Two-sided.
        n: Observations.
    """

    coefficient: float
    low: float
    high: float
    p_value: float
    n: int


@dataclass(frozen=True)
class PairedTest:
    """What a sample of differences says of their mean; nan where it says nothing.

    Attributes:
        mean: Of the differences.
        low: Lower end of the 95 % interval of the mean (Student's t).
        high: Upper end.
        t_p: Two-sided p-value of the paired t-test.
        wilcoxon_p: That of Wilcoxon's signed-rank test.
        n: Pairs.
    """

    mean: float
    low: float
    high: float
    t_p: float
    wilcoxon_p: float
    n: int


def require_scipy() -> ModuleType:
    """Return ``scipy.stats``.

    Returns:
        The module.

    Raises:
        MissingExtraError: If SciPy is not installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtraError("report", "scipy", "report") from error
    module: ModuleType = stats
    return module


def spread(values: Values) -> Spread:
    """Return mean and standard deviation of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.fmean(values), deviation, len(values))


def associate(
    x: Values, y: Values, controls: Sequence[Values] = (), *, ranks: bool = False
) -> Association:
    r"""Correlate two variables, with what is left once others are regressed out of both.

    The interval is Fisher's: :math:`\tanh(\mathrm{artanh}\, r \pm 1.96 s)` with
    :math:`s = 1 / \sqrt{n - 3 - c}` for ``c`` controls that are independent of each other and of
    the constant; for ranks :math:`s` is :math:`\sqrt{1 + r^2 / 2}` times that (Bonett, Wright
    2000). It is that of independent observations.

    Args:
        x: Observations, ``[n]``.
        y: Observations, ``[n]``.
        controls: Variables ``[n]``.
        ranks: Spearman's in place of Pearson's.

    Returns:
        Coefficient, interval, p-value. All nan for fewer than three observations, or where nothing
        is left of a variable; no interval where ``n - 3 - c`` is below 1.

    Example:
        >>> found = associate([1, 2, 3, 4, 5, 6], [1, 3, 2, 4, 6, 5])
        >>> round(found.coefficient, 3), round(found.low, 3), round(found.high, 3)
        (0.886, 0.264, 0.987)
    """
    n = len(x)
    if n < _LEAST:
        return Association(math.nan, math.nan, math.nan, math.nan, n)
    if controls:
        found = partial_correlation(x, y, controls, ranks=ranks)
    else:
        found = spearman(x, y) if ranks else pearson(x, y)
    r, low, high = found.coefficient, math.nan, math.nan
    freedom = n - 3 - _independent(controls, n)
    if freedom >= 1 and abs(r) == 1:
        low = high = r
    elif freedom >= 1 and not math.isnan(r):
        half = statistics.NormalDist().inv_cdf((1 + _LEVEL) / 2) / math.sqrt(freedom)
        half *= math.sqrt(1 + r**2 / 2) if ranks else 1
        low, high = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
    return Association(r, low, high, found.p_value, n)


def _independent(controls: Sequence[Values], n: int) -> int:
    """How many controls are linearly independent of each other and the constant."""
    if not controls:
        return 0
    table = np.array(controls, dtype=np.float64)
    centred = table - table.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    varying = length[:, 0] > 1e-10 * math.sqrt(n) * np.abs(table).max(axis=1)
    return int(np.linalg.matrix_rank(centred[varying] / length[varying])) if varying.any() else 0


def residuals(values: Values, controls: Sequence[Values]) -> list[float]:
    """What is left of a variable once others and a constant are regressed out of it."""
    table = np.column_stack([np.ones(len(values)), *controls])
    fit, *_ = np.linalg.lstsq(table, np.asarray(values, dtype=np.float64), rcond=None)
    left: list[float] = (np.asarray(values) - table @ fit).tolist()
    return left


def paired_test(differences: Values) -> PairedTest:
    r"""Test whether the mean of differences is zero.

    The interval is :math:`\bar d \pm t_{n-1} s / \sqrt n` with the 97.5 % point of Student's t.

    Args:
        differences: One of each pair, ``[n]``.

    Returns:
        Mean, interval and p-values; interval and p-values are nan for fewer than two differences,
        and where all are equal, so that there is no spread to judge by.

    Example:
        >>> found = paired_test([1.0, 2.0, 3.0])
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), round(found.t_p, 3)
        (2.0, -0.484, 4.484, 0.074)
    """
    stats = require_scipy()
    n = len(differences)
    mean = statistics.fmean(differences) if differences else math.nan
    if n < 2 or max(differences) == min(differences):
        return PairedTest(mean, math.nan, math.nan, math.nan, math.nan, n)
    error = statistics.stdev(differences) / math.sqrt(n)
    half = float(stats.t.ppf((1 + _LEVEL) / 2, n - 1)) * error
    t_p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ties in small samples: n stands beside the p-value
        wilcoxon_p = float(stats.wilcoxon(differences).pvalue)
    return PairedTest(mean, mean - half, mean + half, t_p, wilcoxon_p, n)


def holm(p_values: Values) -> list[float]:
    r"""Correct p-values of a family of tests, so that one false alarm in it has probability 5 %.

    The i-th smallest of ``m`` becomes :math:`\max_{j \le i} \min(1, (m - j + 1) p_{(j)})` (Holm
    1979); nan stays nan and is not counted.

    Args:
        p_values: Of the tests.

    Returns:
        The corrected ones, in the same order.

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[place] = largest
    return corrected
