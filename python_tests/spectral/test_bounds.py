import math

import pytest

from fullspectrum_ext.spectral.bounds import (
    cheeger_factor,
    delta_r,
    delta_s,
    expander_mixing,
    narc,
    ramanujan_bound,
)

# The first layer of a ResNet-34 pruned by ERK to density 0.01, as published with the ICLR 2023
# paper (csv_metric): 64 outputs, 147 taps, all of them live, 991 edges.
EDGES, TAPS, OUTPUTS = 991, 147, 64
SIGMA1, SIGMA2 = 11.20753, 5.98839


def test_published_layer():
    # the published singular values have six digits
    assert delta_r(EDGES / TAPS, EDGES / OUTPUTS, SIGMA2) == pytest.approx(0.213586, abs=2e-6)
    assert delta_s(SIGMA1, SIGMA2) == pytest.approx(0.401455, abs=2e-5)
    coefficient = narc(SIGMA2, EDGES, TAPS, OUTPUTS, (OUTPUTS, TAPS))
    assert coefficient == pytest.approx(-0.0025964, abs=1e-6)


def test_complete_bipartite_graph():
    assert delta_r(3, 3, 0) == pytest.approx(2 * math.sqrt(2))
    assert delta_s(3, 0) == pytest.approx(2 * math.sqrt(2))
    # 9 edges, sqrt(9) - |18 - 9| = -6 over 9; each edge once, the second term is gone
    assert narc(0, 9, 3, 3, (3, 3)) == pytest.approx(-2 / 3)
    assert narc(0, 9, 3, 3, (3, 3), directed=False) == pytest.approx(1 / 3)


def test_narc_sees_the_dead_outputs():
    # d_L = 3, |L||R| = 9, 6 outputs: E - 3 / 6 * 9, over 6 * 4
    assert narc(2, 9, 3, 3, (6, 4)) == pytest.approx(((1 + 1) * 3 - abs(18 - 4.5)) / 24)
    assert narc(2, 9, 3, 3, (6, 4), directed=False) == pytest.approx((6 - 4.5) / 24)


def test_undefined():
    assert math.isnan(delta_s(0.5, 0))
    assert delta_s(1, 1) == -1
    assert math.isnan(narc(0, 0, 0, 0, (3, 4)))


def test_cheeger_factor():
    assert cheeger_factor(3, 3) == pytest.approx(3 / 5)
    assert cheeger_factor(2, 5) == cheeger_factor(5, 2) == pytest.approx(5 / 6)


def test_ramanujan_bound():
    assert ramanujan_bound(5, 2) == pytest.approx(3)
    assert delta_r(5, 2, 2) == pytest.approx(1)


def test_expander_mixing():
    # 9 edges among 3 + 3: (0 - |18 - 3 * 9 / 6|) / 6
    assert expander_mixing(0, 9, 3, 3) == pytest.approx(-2.25)
    assert expander_mixing(2, 12, 4, 9) == pytest.approx((12 - abs(24 - 3 * 36 / 13)) / 13)
    assert math.isnan(expander_mixing(0, 0, 0, 0))
