import math

import networks
import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.nn import sparsify
from fullspectrum_ext.spectral import dense_spectrum, full_spectrum


@pytest.fixture
def matrix():
    generator = np.random.default_rng(0)
    return scipy.sparse.random_array((30, 50), density=0.2, rng=generator)


def vectors(spectrum):
    return {name: layer.vector for name, layer in spectrum.layers.items()}


def assert_same(found, expected):
    np.testing.assert_allclose(
        list(vectors(found).values()), list(vectors(expected).values()), rtol=1e-6
    )


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "dok"])
def test_scipy_matrices(matrix, kind):
    dense = torch.from_numpy(matrix.toarray())
    expected = full_spectrum({"a": dense != 0}, {"a": dense})
    found = full_spectrum({"a": getattr(matrix, f"to{kind}")()})
    assert list(found.layers) == ["a"]
    assert_same(found, expected)
    assert_same(full_spectrum(matrix), expected)
    assert found.layers["a"].live_taps == expected.layers["a"].live_taps
    assert found.layers["a"].live_outputs == expected.layers["a"].live_outputs


def test_a_scipy_pattern_is_a_mask(matrix):
    pattern = matrix.astype(bool)
    found = full_spectrum(pattern).layers["weight"]
    assert math.isnan(found.weighted_gap)
    dense = {"weight": torch.from_numpy(matrix.toarray())}
    for weights in (matrix, dense, {"weight": matrix}):
        assert_same(full_spectrum(pattern, weights), full_spectrum(matrix))


def test_scipy_entries_that_are_zero_or_double_are_no_edges_more():
    matrix = scipy.sparse.coo_array(
        ([1.0, 1.0, 3.0, 0.0], ([0, 0, 1, 1], [0, 0, 1, 0])), shape=(2, 2)
    )
    layer = full_spectrum(matrix).layers["weight"]
    assert layer.edges == 2
    assert layer.weighted_sigma1 == pytest.approx(3)
    assert layer.weighted_sigma2 == pytest.approx(2)
    assert matrix.nnz == 4  # it is copied


def test_a_very_wide_matrix_stays_sparse():
    count = 3000
    generator = np.random.default_rng(0)
    places = generator.integers(0, (10**5, 10**6), size=(count, 2))
    matrix = scipy.sparse.coo_array((np.ones(count), places.T), shape=(10**5, 10**6))
    layer = full_spectrum(matrix.astype(bool)).layers["weight"]
    assert layer.edges == count  # dense, it would be 100 GB
    assert layer.sigma1 >= 1


def test_a_single_tensor():
    weight = torch.randn(20, 30) * (torch.rand(20, 30) < 0.3)
    expected = full_spectrum({"weight": weight != 0}, {"weight": weight})
    assert_same(full_spectrum(weight != 0, weight), expected)
    assert_same(full_spectrum((weight != 0).float(), weight), expected)
    assert_same(full_spectrum({"weight": weight}), expected)
    assert_same(full_spectrum(weight), expected)
    assert list(full_spectrum(weight).layers) == ["weight"]


def test_state_dicts_of_every_kind():
    model = networks.mlp()
    masks = MaskSet({
        name: torch.rand(weight.shape) < 0.2
        for name, weight in model.named_parameters()
        if name.endswith("weight")
    })
    expected = full_spectrum(masks, model)
    sparse = sparsify(networks.mlp(), masks, backend="sparse")
    masked = sparsify(networks.mlp(), masks, backend="masked")
    pruned = networks.mlp()
    for name, mask in masks.items():
        layer = pruned.get_submodule(name.removesuffix(".weight"))
        torch_prune.custom_from_mask(layer, "weight", mask)
    zeroed = networks.mlp()
    masks.apply(zeroed)
    for kind in (sparse, masked, pruned, zeroed):
        state = kind.state_dict()
        found = full_spectrum(state)
        assert list(found.layers) == list(masks)
        assert_same(found, expected)
        assert_same(full_spectrum(masks, state), expected)
    assert dense_spectrum(zeroed.state_dict()).layers["0.weight"].density == 1


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_torchs_sparse_tensors_and_eight_bit_weights():
    weight = torch.randn(20, 30) * (torch.rand(20, 30) < 0.3)
    mask, halves = weight != 0, weight.to(torch.float8_e4m3fn)
    expected = full_spectrum({"a": mask}, {"a": weight})
    for convert in (Tensor.to_sparse, Tensor.to_sparse_csr):
        assert_same(full_spectrum({"a": convert(mask.float())}, {"a": convert(weight)}), expected)
    assert_same(
        full_spectrum({"a": mask}, {"a": halves}), full_spectrum({"a": mask}, {"a": halves.float()})
    )


ONES = torch.ones(3, 3)


@pytest.mark.parametrize(
    ("source", "weights", "error", "match"),
    [
        (torch.ones(3, 3).to_sparse_csr(), None, TypeError, "source: expected a dense tensor"),
        (scipy.sparse.eye_array(3) * 1j, None, TypeError, r"source\['weight'\]: expected real"),
        (scipy.sparse.coo_array(np.ones(3)), None, ValueError, "expected two dimensions"),
        (scipy.sparse.eye_array(3) * np.nan, None, ValueError, "expected finite weights"),
        (
            {"a": scipy.sparse.eye_array(3), "b": torch.ones(3, 3)},
            None,
            TypeError,
            r"masks\['a'\]: expected a torch.Tensor",
        ),
        (torch.ones(3, 3), {"fc": torch.ones(3, 3)}, ValueError, "none for the mask 'weight'"),
        ({"fc.bias": torch.randn(3)}, None, ValueError, r"masks\['fc.bias'\]: expected zeros"),
        ("model.pt", None, TypeError, "expected a model, .* a SciPy sparse matrix, got str"),
        (nn.Linear(3, 3, device="meta"), None, ValueError, "weight: expected values, .* meta"),
        (torch.ones(3, 3, device="meta").bool(), None, ValueError, "expected values, .* meta"),
        (ONES, {"weight": torch.ones(3, 3, device="meta")}, ValueError, "expected values, .* meta"),
        (ONES, {"weight": torch.ones(3, 3).int()}, TypeError, "floating point, got torch.int32"),
        (ONES, {"weight": torch.ones(3, 3) * 1j}, TypeError, "floating point, got torch.complex64"),
    ],
)
def test_what_a_spectrum_cannot_be_taken_of(source, weights, error, match):
    with pytest.raises(error, match=match):
        full_spectrum(source, weights)


def test_a_model_without_layers():
    with pytest.raises(ValueError, match="source: expected a model with a Linear"):
        full_spectrum(nn.Tanh())
