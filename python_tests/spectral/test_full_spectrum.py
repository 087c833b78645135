import io
import json
import math

import networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from torch.nn.utils import prune as torch_prune

from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.spectral import dense_spectrum, full_spectrum
from fullspectrum_ext.spectral.coordinates import COORDINATES


def one_layer(mask, weight=None, **arguments):
    weights = None if weight is None else {"fc": weight}
    return full_spectrum({"fc": mask}, weights, **arguments).layers["fc"]


def two_components():
    return torch.block_diag(torch.ones(3, 3), torch.ones(3, 3))


def projective_plane(q):
    """Points and lines of PG(2, q), q prime: two q-and-one-regular sides, sigma2 = sqrt(q)."""
    points = [(1, a, b) for a in range(q) for b in range(q)]
    points += [(0, 1, a) for a in range(q)] + [(0, 0, 1)]
    points = torch.tensor(points)
    return (points @ points.T % q == 0).float()


def affine_plane(q):
    """Points (columns) and lines (rows) of AG(2, q), q prime."""
    rows = []
    for slope in range(q):
        rows += [
            [(slope * x + c - y) % q == 0 for x in range(q) for y in range(q)] for c in range(q)
        ]
    rows += [[x == c for x in range(q) for _ in range(q)] for c in range(q)]
    return torch.tensor(rows).float()


def test_complete_bipartite_graph():
    layer = one_layer(torch.ones(3, 3), torch.ones(3, 3))
    assert layer.ramanujan_gap == pytest.approx(2 * math.sqrt(2))
    assert layer.weighted_gap == pytest.approx(3)
    assert layer.imdb == pytest.approx(3 / 5 * 2 * math.sqrt(2))  # one subgraph, all of it
    assert layer.imsg == pytest.approx(3 / 5 * 3)
    assert (layer.left_degree, layer.right_degree, layer.density) == (3, 3, 1)
    assert layer.is_ramanujan


def test_two_components():
    layer = one_layer(two_components(), two_components())
    assert (layer.sigma1, layer.sigma2) == pytest.approx((3, 3))
    assert layer.ramanujan_gap == pytest.approx(-0.1716, abs=1e-4)
    assert layer.weighted_gap == pytest.approx(0, abs=1e-5)
    assert not layer.is_ramanujan


def test_projective_plane():
    layer = one_layer(projective_plane(7))
    assert (layer.sigma1, layer.sigma2) == pytest.approx((8, math.sqrt(7)))
    assert layer.ramanujan_gap == pytest.approx(2.646, abs=1e-3)
    assert layer.ramanujan_gap_s == pytest.approx(layer.ramanujan_gap)  # regular: the same bound


def test_affine_plane():
    layer = one_layer(affine_plane(7))
    assert (layer.live_outputs, layer.live_taps) == (56, 49)
    assert (layer.left_degree, layer.right_degree) == (8, 7)
    assert (layer.sigma1, layer.sigma2) == pytest.approx((math.sqrt(56), math.sqrt(7)))
    assert layer.ramanujan_gap == pytest.approx(math.sqrt(7) + math.sqrt(6) - math.sqrt(7))


def two_degree_groups():
    """Taps by degree: three of 3 (with outputs 0-2: K_{3,3}), four of 4 (2-5: K_{4,4}), two of 5
    (0-4: K_{2,5}), one of 6, two of 1."""
    columns = (
        3 * [[0, 1, 2]] + 4 * [[2, 3, 4, 5]] + 2 * [[0, 1, 2, 3, 4]] + [list(range(6)), [0], [0]]
    )
    mask = torch.zeros(6, len(columns))
    weight = torch.full_like(mask, 7.0)  # what is not under the mask must not matter
    for tap, outputs in enumerate(columns):
        mask[outputs, tap] = 1
        weight[outputs, tap] = {3: 2.0, 4: -1.0, 5: 0.5}.get(len(outputs), 1.0)
    return mask, weight


def test_subgraph_means_by_hand():
    gaps = {3: 2 * math.sqrt(2), 4: 2 * math.sqrt(3), 5: math.sqrt(4) + math.sqrt(1)}
    weighted = {3: 6.0, 4: 4.0, 5: 0.5 * math.sqrt(10)}
    factors = {3: 3 / 5, 4: 4 / 7, 5: 5 / 6}

    layer = one_layer(*two_degree_groups())
    assert layer.imdb == pytest.approx(np.mean([factors[d] * gaps[d] for d in gaps]))
    assert layer.imsg == pytest.approx(np.mean([factors[d] * weighted[d] for d in gaps]))
    assert [(part.degree, part.taps, part.live_outputs) for part in layer.subgraphs] == [
        (3, 3, 3),
        (4, 4, 4),
        (5, 2, 5),
    ]
    for part in layer.subgraphs:
        assert part.ramanujan_gap == pytest.approx(gaps[part.degree])
        assert part.weighted_gap == pytest.approx(weighted[part.degree])
        assert part.factor == pytest.approx(factors[part.degree])

    # three taps or more, both degrees at least 3, no factor: the group of degree 5 is out
    layer = one_layer(*two_degree_groups(), flavor="iclr")
    assert layer.imdb == pytest.approx((gaps[3] + gaps[4]) / 2)
    assert layer.imsg == pytest.approx((weighted[3] + weighted[4]) / 2)


def test_normalised_gaps():
    layer = one_layer(*two_degree_groups())
    bounds = {3: 2 * math.sqrt(2), 4: 2 * math.sqrt(3), 5: 3}  # complete graphs: sigma2 = 0
    factors = {3: 3 / 5, 4: 4 / 7, 5: 5 / 6}
    assert [part.normalized_gap for part in layer.subgraphs] == pytest.approx([1, 1, 1])
    assert layer.imdb_normalized == pytest.approx(np.mean(list(factors.values())))
    for part in layer.subgraphs:
        assert part.ramanujan_bound == pytest.approx(bounds[part.degree])
        assert part.sigma1 == pytest.approx(math.sqrt(part.degree * part.taps))
        assert part.ramanujan_gap_s == pytest.approx(2 * math.sqrt(part.sigma1 - 1))
    gaps = [part.factor * part.ramanujan_gap_s for part in layer.subgraphs]
    assert layer.imdb_s == pytest.approx(np.mean(gaps))

    layer = one_layer(projective_plane(7))
    assert layer.normalized_gap == pytest.approx(0.5)
    assert layer.ramanujan_bound == pytest.approx(2 * math.sqrt(7))
    assert layer.expander_mixing == pytest.approx((math.sqrt(7) * 57 - (2 - 57 / 114) * 456) / 114)
    assert math.isnan(one_layer(torch.eye(9)).normalized_gap)
    assert math.isnan(one_layer(torch.eye(9), flavor="iclr", min_degree=1).normalized_gap)


def plain_spectrum(mask, weight, flavor, min_degree=3):
    """The definition in dense numpy: mask and weight are [outputs, taps]."""

    def trimmed(matrix):
        return matrix[:, matrix.any(0)][matrix.any(1)] if matrix.any() else np.zeros((0, 0))

    def sigmas(matrix):
        return [*np.linalg.svd(matrix, compute_uv=False), 0, 0][:2]

    def measured(matrix, weights, regular):
        core = trimmed(matrix)
        if not core.size:
            return None
        rows, cols = core.shape
        left, right = core.sum() / cols, core.sum() / rows
        if flavor == "iclr":
            valid = min(left, right) >= min_degree
        elif regular:
            valid = left >= min_degree and right > 1
        else:
            valid = right >= min_degree and left > 1
        if not valid:
            return None
        factor = max(rows, cols) / (rows + cols - 1) if flavor == "neurips" else 1
        first, second = sigmas(np.abs(weights) * matrix)
        gap = math.sqrt(left - 1) + math.sqrt(right - 1) - sigmas(matrix)[1]
        return gap, first - second, factor

    whole = measured(mask, weight, False)
    degrees = mask.sum(0)
    parts = []
    for degree in np.unique(degrees):
        taps = degrees == degree
        if taps.sum() >= (2 if flavor == "neurips" else 3):
            parts.append(measured(mask * taps, weight, True))
    parts = [part for part in parts if part]
    nan = math.nan
    return [
        whole[0] if whole else nan,
        whole[1] if whole else nan,
        np.mean([gap * factor for gap, _, factor in parts]) if parts else nan,
        np.mean([gap * factor for _, gap, factor in parts]) if parts else nan,
    ]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 7, 13, 40]),
    cols=st.sampled_from([1, 2, 11, 37, 90]),
    density=st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]),
    flavor=st.sampled_from(["neurips", "iclr"]),
    min_degree=st.sampled_from([2, 3, 5]),
    seed=st.integers(0, 1000),
)
def test_against_the_definition(rows, cols, density, flavor, min_degree, seed):
    generator = np.random.default_rng(seed)
    mask = (generator.random((rows, cols)) < density).astype(float)
    weight = generator.normal(size=(rows, cols))
    layer = one_layer(
        torch.tensor(mask), torch.tensor(weight), flavor=flavor, min_degree=min_degree
    )
    found = [getattr(layer, name) for name in COORDINATES]
    expected = plain_spectrum(mask, weight, flavor, min_degree)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flavor", ["neurips", "iclr"])
def test_order_of_taps_and_outputs_does_not_matter_and_scale_does(flavor):
    mask, weight = (torch.rand(30, 80) < 0.2), torch.randn(30, 80)
    rows, cols = torch.randperm(30), torch.randperm(80)
    plain = one_layer(mask, weight, flavor=flavor)
    mixed = one_layer(mask[rows][:, cols], weight[rows][:, cols], flavor=flavor)
    np.testing.assert_allclose(mixed.vector, plain.vector, rtol=1e-5)
    doubled = one_layer(mask, -2 * weight, flavor=flavor)
    np.testing.assert_allclose(doubled.vector, plain.vector * [1, 2, 1, 2], rtol=1e-5)


def test_a_convolution_has_a_tap_for_each_place_of_its_kernel():
    mask, weight = torch.rand(16, 8, 3, 3) < 0.2, torch.randn(16, 8, 3, 3)
    flat = one_layer(mask.reshape(16, 72), weight.reshape(16, 72))
    np.testing.assert_array_equal(one_layer(mask, weight).vector, flat.vector)


def test_what_is_undefined_is_nan_and_counts_as_zero():
    empty = one_layer(torch.zeros(4, 5), torch.ones(4, 5))
    assert all(math.isnan(getattr(empty, name)) for name in COORDINATES)
    assert math.isnan(empty.narc)
    assert math.isnan(empty.left_degree)
    assert (empty.sigma1, empty.sigma2, empty.edges, empty.norm) == (0, 0, 0, 0)
    assert not empty.is_ramanujan
    thin = one_layer(torch.eye(9))  # degrees of 1
    assert math.isnan(thin.ramanujan_gap)
    assert thin.sigma1 == pytest.approx(1)
    assert not math.isnan(one_layer(torch.ones(2, 2), min_degree=2).ramanujan_gap)

    both = full_spectrum({"a": torch.ones(3, 3), "b": torch.zeros(3, 3)})
    np.testing.assert_allclose(both.vector, both.layers["a"].vector / 2)
    assert both.norm() == pytest.approx(both.layers["a"].norm / 2)


def test_without_weights_the_weighted_coordinates_are_undefined():
    layer = one_layer(torch.ones(3, 3))
    assert math.isnan(layer.weighted_gap)
    assert math.isnan(layer.imsg)
    assert math.isnan(layer.weighted_sigma1)
    np.testing.assert_allclose(layer.vector[[1, 3]], 0)
    assert layer.vector[0] > 0


def test_norm_is_the_mean_of_the_layers_lengths_and_vector_their_mean():
    spectrum = full_spectrum(networks.mlp())
    vectors = [layer.vector for layer in spectrum.layers.values()]
    np.testing.assert_allclose(spectrum.vector, np.mean(vectors, axis=0))
    assert spectrum.vector.dtype == np.float64
    assert spectrum.norm() == pytest.approx(np.mean([np.linalg.norm(v) for v in vectors]))
    assert spectrum.norm() > np.linalg.norm(spectrum.vector)


@pytest.fixture
def sparse_model():
    model = networks.conv_net()
    for name in ("0", "3", "9"):
        torch_prune.random_unstructured(model.get_submodule(name), "weight", amount=0.8)
    return model


def test_every_kind_of_source_says_the_same(sparse_model):
    masks = MaskSet.from_model(sparse_model)
    weights = {name: sparse_model.get_parameter(f"{name}_orig").detach() for name in masks}
    expected = full_spectrum(sparse_model).to_dict()
    assert list(expected["layers"]) == ["0.weight", "3.weight", "9.weight"]
    assert full_spectrum(masks, weights, chain=True).to_dict() == expected
    assert full_spectrum(masks, sparse_model).to_dict() == expected
    floats = {name: mask.float() for name, mask in masks.items()}
    assert full_spectrum(floats, weights, chain=True).to_dict() == expected
    assert full_spectrum(sparse_model, weights).to_dict() == expected


def test_the_model_is_left_alone(sparse_model):
    before = {name: tensor.clone() for name, tensor in sparse_model.state_dict().items()}
    state = torch.get_rng_state()
    full_spectrum(sparse_model.eval())
    assert torch.equal(torch.get_rng_state(), state)
    assert not sparse_model.training
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in sparse_model.state_dict().items()
    )


def test_two_runs_give_the_same_bits(sparse_model):
    assert full_spectrum(sparse_model).to_dict() == full_spectrum(sparse_model).to_dict()


def test_a_layer_is_the_same_alone_and_among_others(sparse_model):
    among = full_spectrum(sparse_model).layers["3.weight"]
    alone = full_spectrum(sparse_model, include="3").layers["3.weight"]
    np.testing.assert_array_equal(alone.vector, among.vector)
    assert list(full_spectrum(sparse_model, exclude=["9.*"]).layers) == ["0.weight", "3.weight"]


def test_on_every_device(device):
    masks = {"a": torch.rand(9, 14) < 0.5, "b": torch.rand(6, 2, 2, 2) < 0.6}
    weights = {name: torch.randn(mask.shape) for name, mask in masks.items()}
    spectrum = full_spectrum({name: mask.to(device) for name, mask in masks.items()}, weights)
    for name, mask in masks.items():
        layer = spectrum.layers[name]
        found = [getattr(layer, coordinate) for coordinate in COORDINATES]
        flat = [tensor.flatten(1).double().numpy() for tensor in (mask, weights[name])]
        np.testing.assert_allclose(found, plain_spectrum(*flat, "neurips"), rtol=1e-5, atol=1e-5)


def test_half_precision_weights_count_as_what_they_are():
    mask, weight = torch.rand(20, 30) < 0.3, torch.randn(20, 30).bfloat16()
    half, double = one_layer(mask, weight), one_layer(mask, weight.double())
    assert half.weighted_gap == pytest.approx(double.weighted_gap)


def test_distance_to_the_anchor_by_hand():
    masks = {"a": torch.ones(3, 3), "b": torch.ones(3, 3)}
    start = full_spectrum(masks, {"a": torch.ones(3, 3), "b": torch.ones(3, 3)})
    now = full_spectrum(masks, {"a": torch.full((3, 3), 2.0), "b": torch.ones(3, 3)})
    # a: lambda 3 -> 6, imsg 3/5 of that; b: no change; the mean over both
    assert now.distance(start) == pytest.approx(3 * math.hypot(1, 3 / 5) / 2)
    assert start.distance(now) == now.distance(start)
    assert now.distance(now) == 0


def test_dense_reference():
    model = networks.mlp()
    masks = MaskSet({"0.weight": torch.rand(300, 64) < 0.1})
    dense = dense_spectrum(masks, model, flavor="iclr")
    assert dense.flavor == "iclr"
    layer = dense.layers["0.weight"]
    assert layer.density == 1
    assert layer.ramanujan_gap == pytest.approx(math.sqrt(299) + math.sqrt(63))
    assert dense.distance(full_spectrum(model, include="0", flavor="iclr")) == 0
    assert full_spectrum(masks, model, flavor="iclr").distance(dense) > 10


def test_distance_refuses_another_network():
    one = full_spectrum({"a": torch.ones(3, 3)})
    with pytest.raises(ValueError, match="only one of the two has a, b"):
        one.distance(full_spectrum({"b": torch.ones(3, 3)}))
    with pytest.raises(ValueError, match="expected flavor 'neurips', got 'iclr'"):
        one.distance(full_spectrum({"a": torch.ones(3, 3)}, flavor="iclr"))


def test_bounds_hold():
    mask, weight = torch.rand(50, 70) < 0.2, torch.randn(50, 70)
    layer = one_layer(mask, weight)
    exact = np.linalg.svd(mask.double().numpy(), compute_uv=False)[:2]
    assert np.all(np.abs([layer.sigma1, layer.sigma2] - exact) <= layer.sigma_bounds)
    exact = np.linalg.svd((weight * mask).abs().double().numpy(), compute_uv=False)[:2]
    found = [layer.weighted_sigma1, layer.weighted_sigma2]
    assert np.all(np.abs(found - exact) <= layer.weighted_sigma_bounds)
    assert max(layer.sigma_bounds) <= 1e-6 * layer.sigma1


def test_dict_for_programs():
    spectrum = full_spectrum({"a": torch.ones(3, 3), "b": torch.zeros(3, 3)})
    values = json.loads(json.dumps(spectrum.to_dict(), allow_nan=False))
    assert values["norm"] == spectrum.norm()
    assert values["flavor"] == "neurips"
    assert values["vector"]["ramanujan_gap"] == spectrum.vector[0]
    assert values["layers"]["b"]["imdb"] is None
    assert values["layers"]["a"]["is_ramanujan"] is True
    assert values["layers"]["a"]["subgraphs"][0]["degree"] == 3


def test_table_for_people():
    console = Console(width=120, file=io.StringIO())
    console.print(full_spectrum({"conv": torch.ones(3, 3), "b": torch.zeros(3, 3)}).table())
    text = console.file.getvalue()
    for part in ("conv", "2.8284", "1.4142", "–", "yes", "no", "Full spectrum (neurips)"):
        assert part in text


@pytest.mark.parametrize(
    ("source", "weights", "arguments", "error", "match"),
    [
        (3, None, {}, TypeError, "source: expected a model, a MaskSet, a mapping, .* got int"),
        (nn.ReLU(), None, {}, ValueError, "source: expected a model with a Linear, Conv2d or"),
        ({}, None, {}, ValueError, "at least one mask"),
        (
            {"fc": torch.randn(3, 3)},
            None,
            {},
            ValueError,
            r"masks\['fc'\]: expected zeros and ones",
        ),
        ({"fc": torch.ones(3)}, None, {}, ValueError, "fc: expected a weight with at least two"),
        ({"fc": torch.ones(3, 3)}, 3, {}, TypeError, "weights: expected a model or a mapping"),
        ({"fc": torch.ones(3, 3)}, {}, {}, ValueError, "weights: there is none for the mask 'fc'"),
        (
            {"fc": torch.ones(3, 3)},
            {"fc": np.ones((3, 3))},
            {},
            TypeError,
            r"weights\['fc'\]: expected a torch.Tensor, got ndarray",
        ),
        (
            {"fc": torch.ones(3, 2)},
            {"fc": torch.ones(2, 3)},
            {},
            ValueError,
            r"weights\['fc'\]: expected the mask's shape \(3, 2\), got \(2, 3\)",
        ),
        (
            {"fc": torch.ones(3, 3)},
            {"fc": torch.full((3, 3), torch.nan)},
            {},
            ValueError,
            r"weights\['fc'\]: expected finite weights",
        ),
        ({"fc": torch.ones(3, 3)}, None, {"flavor": "icml"}, ValueError, "flavor: expected 'neur"),
        ({"fc": torch.ones(3, 3)}, None, {"include": "x"}, ValueError, "'x' matches none of fc"),
        ({"fc": torch.ones(3, 3)}, None, {"exclude": "fc"}, ValueError, "no layer is left"),
        ({"fc": torch.ones(3, 3)}, None, {"tol": 0}, ValueError, "tol: expected"),
    ],
)
def test_bad_arguments(source, weights, arguments, error, match):
    with pytest.raises(error, match=match):
        full_spectrum(source, weights, **arguments)


def test_nan_under_the_mask_only():
    """What the mask removes is never read, not even when it has diverged."""
    mask, weight = torch.ones(4, 4), torch.ones(4, 4)
    mask[0, 0], weight[0, 0] = 0, torch.nan
    assert math.isfinite(one_layer(mask, weight).weighted_gap)


# Means over three seeds of ERK masks of a ResNet-34, published with the ICLR 2023 paper
# (ramanujan-on-pai, csv_metric): shape, edges, then sigma1, sigma2, delta_r, delta_s, imdb, narc.
PUBLISHED = [
    ((64, 576), 1718, 10.537, 6.831, -0.296, -0.654, -0.175, 0.01805),
    ((256, 1152), 4957, 10.509, 6.718, -0.602, -0.551, -0.469, 0.00569),
    ((128, 1152), 17146, 46.168, 14.391, 0.865, -0.950, 0.363, 0.02117),
    ((256, 1152), 107093, 198.032, 23.721, 6.297, 4.353, 2.849, -0.10225),
]


@pytest.mark.parametrize("published", PUBLISHED)
def test_random_masks_agree_with_published_ones_of_the_same_shape_and_count(published):
    shape, edges, *expected = published
    masks = {}
    for seed in range(3):
        order = torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(seed))
        mask = torch.zeros(math.prod(shape), dtype=torch.bool)
        mask[order[:edges]] = True
        masks[str(seed)] = mask.reshape(shape)
    layers = full_spectrum(masks, flavor="iclr").layers.values()
    names = ("sigma1", "sigma2", "ramanujan_gap", "ramanujan_gap_s", "imdb", "narc")
    means = [np.mean([getattr(layer, name) for layer in layers]) for name in names]
    # about three standard deviations of the difference of two means of three
    spreads = [0.02 * expected[0], 0.02 * expected[1], 0.15, 0.15, 0.12, 0.004]
    assert np.all(np.abs(np.subtract(means, expected)) < spreads)
