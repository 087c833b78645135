import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext.spectral.correlation import partial_correlation, pearson, spearman


def draw(count, seed, ties=False):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(3, count))
    values[1] += 0.7 * values[0]
    return values.round() if ties else values


@settings(max_examples=60, deadline=None)
@given(count=st.integers(3, 60), seed=st.integers(0, 10**6), ties=st.booleans())
def test_against_scipy(count, seed, ties):
    x, y, _ = draw(count, seed, ties)
    for ours, theirs in ((pearson, scipy.stats.pearsonr), (spearman, scipy.stats.spearmanr)):
        found = ours(x, y)
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            assert math.isnan(found.coefficient)
            continue
        expected = theirs(x, y)
        assert found.coefficient == pytest.approx(expected.statistic, abs=1e-12)
        assert found.observations == count
        if abs(found.coefficient) < 1 - 1e-9:
            assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-14)


def test_a_perfect_and_a_vanishing_correlation():
    assert pearson([1, 2, 3, 4], [2, 4, 6, 8]).coefficient == pytest.approx(1)
    assert pearson([1, 2, 3, 4], [2, 4, 6, 8]).p_value == pytest.approx(0, abs=1e-12)
    assert spearman([1, 2, 3], [9, 4, 1]).coefficient == pytest.approx(-1)
    none = pearson([1, 2, 3, 4], [1, -1, -1, 1])
    assert none.coefficient == pytest.approx(0, abs=1e-15)
    assert none.p_value == pytest.approx(1)


def test_one_control_by_the_textbook():
    x, y, z = draw(25, 1)
    xy, xz, yz = (np.corrcoef(a, b)[0, 1] for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    found = partial_correlation(x, y, z)
    assert found.coefficient == pytest.approx(expected)
    t = expected * math.sqrt(22 / (1 - expected**2))
    assert found.p_value == pytest.approx(2 * scipy.stats.t.sf(abs(t), 22))
    ranks = [scipy.stats.rankdata(v) for v in (x, y, z)]
    ranked = partial_correlation(x, y, z, ranks=True)
    assert ranked.coefficient == pytest.approx(partial_correlation(*ranks).coefficient)


def test_several_controls_are_a_regression():
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(2, 40))
    controls = generator.normal(size=(3, 40))
    design = np.column_stack([np.ones(40), *controls])
    left, right = (v - design @ np.linalg.lstsq(design, v)[0] for v in (x, y))
    expected = scipy.stats.pearsonr(left, right).statistic
    found = partial_correlation(x, y, controls)
    assert found.coefficient == pytest.approx(expected)
    # a control that says nothing new changes nothing, not even the degrees of freedom
    again = partial_correlation(x, y, [*controls, controls[0] + 2 * controls[1], np.ones(40)])
    assert again.p_value == pytest.approx(found.p_value)


def test_what_density_explains_is_gone():
    generator = np.random.default_rng(3)
    density = generator.random(200)
    coordinate = density + 0.1 * generator.normal(size=200)
    accuracy = density + 0.1 * generator.normal(size=200)
    assert pearson(coordinate, accuracy).p_value < 1e-30
    assert partial_correlation(coordinate, accuracy, density).p_value > 0.05
    accuracy += coordinate - density  # now it says more
    assert partial_correlation(coordinate, accuracy, density).p_value < 1e-10


def test_permutations():
    x, y, z = draw(30, 4)
    exact, drawn = pearson(x, y), pearson(x, y, permutations=2000, seed=1)
    assert drawn.coefficient == exact.coefficient
    assert drawn == pearson(x, y, permutations=2000, seed=1)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.02)
    weak = partial_correlation(x, draw(30, 9)[0], z)
    drawn = partial_correlation(x, draw(30, 9)[0], z, permutations=2000)
    assert drawn.p_value == pytest.approx(weak.p_value, abs=0.06)
    # of the 6 orders of three, two are as strong
    assert pearson([1, 2, 3], [1, 2, 3], permutations=4000).p_value == pytest.approx(
        1 / 3, abs=0.03
    )


@pytest.mark.parametrize("scale", [1e-200, 1, 1e200])
def test_scale_and_offset_do_not_matter(scale):
    x, y, _ = draw(20, 5)
    assert pearson(scale * x, y).coefficient == pytest.approx(pearson(x, y).coefficient)
    assert pearson(x + 1e6, y).coefficient == pytest.approx(pearson(x, y).coefficient, abs=1e-8)


def test_undefined_is_nan():
    x, y, _ = draw(10, 6)
    for found in (
        pearson(np.full(10, 0.1), y),
        spearman(x, np.zeros(10)),
        partial_correlation(3 * x + 1, y, x),
        pearson(np.full(10, 0.1), y, permutations=5),
    ):
        assert math.isnan(found.coefficient)
        assert math.isnan(found.p_value)
    assert math.isnan(partial_correlation([1, 2, 4], [1, 3, 2], [0, 1, 0]).p_value)  # too few


@pytest.mark.parametrize(
    ("x", "y", "controls", "match"),
    [
        ([1, 2], [1, 2], [], "x: expected at least 3 observations, got 2"),
        ([1, 2, 3], [1, 2], [], "y: expected 3 observations as x has, got 2"),
        ([1, 2, 3], [1, 2, 4], [1, 2], "controls: expected 3 observations"),
        ([[1, 2, 3]], [1, 2, 4], [], "x: expected one dimension"),
        ([1, math.nan, 3], [1, 2, 4], [], "x: expected finite numbers"),
        ([1, 2, 3], [1, math.inf, 4], [], "y: expected finite numbers"),
    ],
)
def test_bad_arguments(x, y, controls, match):
    def correlate():
        return partial_correlation(x, y, controls) if controls else pearson(x, y)

    with pytest.raises(ValueError, match=match):
        correlate()


def test_bad_permutations():
    with pytest.raises(ValueError, match="permutations: expected at least 1"):
        spearman([1, 2, 3], [3, 1, 2], permutations=0)
