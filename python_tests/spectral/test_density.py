import math

import matplotlib.figure
import networks
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullspectrum_ext.spectral import spectral_density
from fullspectrum_ext.spectral.density import biregular, marchenko_pastur


def random_mask(rows, cols, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, cols, generator=generator) < density


def exact_density(matrix, grid, width):
    """The same normal curves, one for each singular value."""
    sigmas = np.linalg.svd(np.asarray(matrix, dtype=float), compute_uv=False)
    curves = [
        np.exp(-((grid - s) ** 2) / 2 / width**2) + np.exp(-((grid + s) ** 2) / 2 / width**2)
        for s in sigmas
    ]
    return np.mean(curves, axis=0) / width / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_against_all_singular_values(flip, weighted):
    mask = random_mask(300, 200, 0.2)
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(1))
    if flip:
        mask, weight = mask.T, weight.T
    found = spectral_density(mask, weight, weighted=weighted, probes=128)
    exact = exact_density((mask * weight.abs()) if weighted else mask, found.sigma, found.width)
    assert found.count == 200
    assert np.abs(found.density - exact).max() < 0.12 * exact.max()
    inside = np.abs(found.density - exact) <= 3 * found.error + 1e-3 * exact.max()
    assert inside.mean() > 0.97
    assert np.trapezoid(found.density, found.sigma) == pytest.approx(1, abs=0.02)
    fewer = spectral_density(mask, weight, weighted=weighted, probes=32)
    assert 1.5 < fewer.error.mean() / found.error.mean() < 2.7  # two, by the root of four


def test_moments():
    mask = random_mask(300, 200, 0.1)
    found = spectral_density(mask, probes=64, steps=10)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)
    squares = (found.weights * found.nodes**2).sum(axis=1) * found.count
    error = squares.std(ddof=1) / 8
    assert abs(squares.mean() - int(mask.sum())) < 3 * error  # the sum of sigma^2 is |B|_F^2
    assert error < 0.03 * int(mask.sum())


def test_each_probe_is_exact_gauss_quadrature():
    """Two steps integrate polynomials in sigma^2 up to degree 3."""
    mask = random_mask(30, 20, 0.3)
    found = spectral_density(mask, probes=3, steps=2)
    matrix = mask.numpy().astype(float)
    generator = torch.Generator().manual_seed(0)
    probes = (torch.randint(2, (20, 3), generator=generator) * 2 - 1).numpy().T / math.sqrt(20)
    for order in range(4):
        power = np.linalg.matrix_power(matrix.T @ matrix, order)
        expected = [probe @ power @ probe for probe in probes]
        moments = (found.weights * found.nodes ** (2 * order)).sum(axis=1)
        np.testing.assert_allclose(moments, expected)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 7, 13]),
    cols=st.sampled_from([1, 2, 11, 37]),
    density=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_small_and_odd_graphs(rows, cols, density, seed):
    """The Krylov space is exhausted early: rank one, repeated values, many components."""
    mask = random_mask(rows, cols, density, seed)
    mask[0, 0] = True
    found = spectral_density(mask, probes=4)
    assert np.isfinite(found.density).all()
    live = mask[mask.any(1)][:, mask.any(0)]
    assert found.count == min(live.shape)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)
    sigmas = np.linalg.svd(live.numpy().astype(float), compute_uv=False)
    heavy = found.nodes[found.weights > 1e-6]
    distance = np.abs(heavy[:, None] - sigmas).min(axis=1)
    assert distance.max() < 1e-6 * max(sigmas[0], 1)  # with all steps the nodes are the values


def test_complete_graph_by_hand():
    found = spectral_density(torch.ones(4, 9))
    assert (found.sigma1, found.sigma2) == pytest.approx((6, 0))
    assert not found.marchenko_pastur.any()
    heavy = found.nodes[found.weights > 1e-9]
    assert np.all((np.abs(heavy) < 1e-6) | (np.abs(heavy - 6) < 1e-9))


@pytest.mark.parametrize("shape", [(300, 200), (50, 400), (64, 64)])
def test_marchenko_pastur_is_a_density(shape):
    sigma = np.linspace(0, 2 * math.sqrt(max(shape)), 200_001)
    density = marchenko_pastur(sigma, shape, 0.5)
    assert np.trapezoid(density, sigma) == pytest.approx(1, abs=1e-3)
    mean_square = np.trapezoid(density * sigma**2, sigma)
    assert mean_square == pytest.approx(0.5 * max(shape), rel=1e-3)  # |B|_F^2 / d


@pytest.mark.parametrize(("degree", "other"), [(8, 3), (5, 5), (100, 40), (4.5, 2.5)])
def test_biregular_law_is_a_density(degree, other):
    edge = math.sqrt(degree - 1) + math.sqrt(other - 1)
    sigma = np.linspace(0, 1.1 * edge, 200_001)
    density = biregular(sigma, degree, other)
    assert np.trapezoid(density, sigma) == pytest.approx(1, abs=1e-3)
    assert np.trapezoid(density * sigma**2, sigma) == pytest.approx(degree, rel=1e-3)
    # closed walks of length 4 on the tree
    fourth = np.trapezoid(density * sigma**4, sigma)
    assert fourth == pytest.approx(degree * (degree + other - 1), rel=1e-3)
    assert density[sigma > edge].max() == 0


def test_biregular_law_of_a_regular_graph_is_mckays():
    sigma = np.linspace(0.01, 2 * math.sqrt(4) - 0.01, 50)
    mckay = 5 * np.sqrt(16 - sigma**2) / (2 * math.pi * (25 - sigma**2))
    np.testing.assert_allclose(biregular(sigma, 5, 5), 2 * mckay)


def test_a_random_graph_follows_the_laws():
    mask = random_mask(400, 800, 0.05)
    found = spectral_density(mask, probes=32)
    step = found.sigma[1]
    assert np.abs(found.density - found.marchenko_pastur).sum() * step < 0.15
    # biregular: a sum of shifts of a permutation each, 6 to a column and 3 to a row
    generator = np.random.default_rng(0)
    place = np.concatenate([generator.permutation(np.repeat(np.arange(300), 2)) for _ in range(3)])
    matrix = scipy.sparse.coo_array((np.ones(1800), (np.tile(np.arange(600), 3), place)))
    matrix = matrix.tocsr()
    matrix.data[:] = 1
    found = spectral_density(matrix, probes=32)
    errors = [
        np.abs(found.density - law).sum() * found.sigma[1]
        for law in (found.biregular, found.marchenko_pastur)
    ]
    assert errors[0] < 0.15
    assert errors[0] < errors[1]


def test_two_runs_give_the_same_bits_and_seeds_differ():
    mask = random_mask(40, 60, 0.2)
    state = torch.get_rng_state()
    one, two, other = (spectral_density(mask, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(one.density, two.density)
    assert np.any(one.density != other.density)


def test_plot():
    axes = matplotlib.figure.Figure().subplots()
    found = spectral_density(random_mask(40, 60, 0.2))
    found.plot(axes)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "Marchenko-Pastur" in labels
    assert "biregular (Godsil-Mohar)" in labels
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), found.density)


@pytest.mark.parametrize(
    ("source", "arguments", "match"),
    [
        (torch.zeros(3, 3), {}, "source: the layer 'weight' has no edge"),
        (torch.ones(3, 3), {"weighted": True}, "weights: none are given"),
        (torch.ones(3, 3), {"layer": "fc"}, "layer: expected one of weight, got 'fc'"),
        (networks.mlp(), {}, "layer: expected one of 0.weight, 2.weight, 4.weight, got None"),
        (torch.ones(3, 3), {"probes": 1}, "probes: expected at least 2, got 1"),
        (torch.ones(3, 3), {"steps": 0}, "steps: expected at least 1"),
        (torch.ones(3, 3), {"points": 1}, "points: expected at least 2"),
        (torch.ones(3, 3), {"width": 0.0}, "width: expected a number > 0, got 0.0"),
        (torch.full((3, 3), torch.inf), {"weighted": True}, "expected finite weights"),
    ],
)
def test_bad_arguments(source, arguments, match):
    with pytest.raises(ValueError, match=match):
        spectral_density(source, **arguments)
