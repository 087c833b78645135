import math
import sys
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from fullspectrum_ext.experiments.extras import MissingExtraError
from fullspectrum_ext.experiments.report.statistics import (
    associate,
    holm,
    paired_test,
    require_scipy,
    residuals,
    spread,
)

DRAWS = np.random.default_rng(0).normal(size=(6, 40))
X, Y, A, B = DRAWS[:4].tolist()


def test_a_spread_is_that_of_a_sample():
    found = spread([90.0, 92.0])

    assert (found.mean, found.deviation, found.n) == (91.0, math.sqrt(2), 2)
    assert math.isnan(spread([1.0]).deviation)


def test_pearson_and_its_interval_are_those_of_scipy():
    found = associate(X, Y)

    other = scipy.stats.pearsonr(X, Y)
    assert found.coefficient == pytest.approx(other.statistic)
    assert found.p_value == pytest.approx(other.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(other.confidence_interval(0.95)))


def test_spearman_is_that_of_scipy_and_its_interval_that_of_bonett_and_wright():
    found = associate(X, Y, ranks=True)

    other = scipy.stats.spearmanr(X, Y)
    assert found.coefficient == pytest.approx(other.statistic)
    assert found.p_value == pytest.approx(other.pvalue)
    error = math.sqrt((1 + other.statistic**2 / 2) / (40 - 3))
    low = math.tanh(math.atanh(other.statistic) - 1.959963985 * error)
    assert found.low == pytest.approx(low)


def test_a_partial_correlation_is_that_of_residuals():
    x = [a + 2 * b for a, b in zip(X, A, strict=True)]
    y = [a - 3 * b for a, b in zip(Y, A, strict=True)]
    found = associate(x, y, [A, B])

    left = [residuals(v, [A, B]) for v in (x, y)]
    r = np.corrcoef(left)[0, 1]
    assert found.coefficient == pytest.approx(r)
    # n - 3 - 2 controls
    assert found.low == pytest.approx(math.tanh(math.atanh(r) - 1.959963985 / math.sqrt(35)))
    # By the formula of one control, by hand.
    one = associate(x, y, [A]).coefficient
    xy, xa, ya = (np.corrcoef(pair)[0, 1] for pair in ([x, y], [x, A], [y, A]))
    assert one == pytest.approx((xy - xa * ya) / math.sqrt((1 - xa**2) * (1 - ya**2)))


def test_controls_that_say_nothing_new_cost_no_freedom():
    double = [2 * a + 1 for a in A]
    constant = [0.05] * 40

    for more, less in (([A, double, constant], [A]), ([constant], [])):
        found, other = associate(X, Y, more), associate(X, Y, less)
        assert (found.coefficient, found.low) == pytest.approx((other.coefficient, other.low))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_two_observations_have_no_correlation(n):
    found = associate(X[:n], Y[:n])

    assert math.isnan(found.coefficient)
    assert found.n == n


def test_few_observations_have_no_interval_and_a_perfect_line_a_point():
    assert math.isnan(associate(X[:3], Y[:3]).low)
    assert not math.isnan(associate(X[:3], Y[:3]).coefficient)
    assert associate([1, 2, 3, 4], [2, 4, 6, 8]).low == 1.0
    assert math.isnan(associate([1, 1, 1, 1], [2, 4, 6, 8]).low)


def test_the_paired_test_is_that_of_scipy_and_of_the_formula():
    differences = [a - b for a, b in zip(X[:10], Y[:10], strict=True)]
    found = paired_test(differences)

    other = scipy.stats.ttest_rel(X[:10], Y[:10])
    assert found.t_p == pytest.approx(other.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(other.confidence_interval(0.95)))
    assert found.wilcoxon_p == pytest.approx(scipy.stats.wilcoxon(X[:10], Y[:10]).pvalue)
    # 1, 2, 3: mean 2, standard error 1 / sqrt(3); the 97.5 % point of t with 2 degrees is 4.3027.
    by_hand = paired_test([1.0, 2.0, 3.0])
    assert (by_hand.mean, by_hand.n) == (2.0, 3)
    assert by_hand.high == pytest.approx(2 + 4.3026527 / math.sqrt(3))


@pytest.mark.parametrize("differences", [[], [1.0], [0.0, 0.0], [0.5, 0.5, 0.5]])
def test_without_spread_there_is_no_p_value(differences):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_test(differences)

    assert math.isnan(found.t_p)
    assert math.isnan(found.wilcoxon_p)
    assert math.isnan(found.low)
    assert found.n == len(differences)
    if differences:
        assert found.mean == differences[0]


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_does_not_count_what_has_no_p_value():
    corrected = holm([math.nan, 0.01, 0.02])

    assert math.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.02, 0.02])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_lies_between_the_p_value_and_bonferroni(p_values):
    corrected = holm(p_values)

    for p, after in zip(p_values, corrected, strict=True):
        assert p <= after <= min(1, len(p_values) * p) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_without_scipy_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)

    with pytest.raises(MissingExtraError, match=r"scipy.*fullspectrum-ext\[report\]"):
        require_scipy()
