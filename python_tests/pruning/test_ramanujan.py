"""Ramanujan masks of whole networks."""

import json
import math

import networks
import pytest
import torch
from torch import nn

from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning import prune, register_pruner
from fullspectrum_ext.pruning.base import _METHODS
from fullspectrum_ext.pruning.densities import layer_counts
from fullspectrum_ext.spectral import full_spectrum


def spread(degrees):
    return int(degrees.max() - degrees.min())


@pytest.mark.parametrize("scope", ["erk", "er", "layer"])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.9, 0.97])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_counts_and_degrees(kind, sparsity, scope):
    model = networks.conv_net() if kind == "conv" else networks.mlp()
    masks = prune(model, "ramanujan", sparsity=sparsity, scope=scope, seed=1)
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    assert {n: int(m.sum()) for n, m in masks.items()} == layer_counts(shapes, 1 - sparsity, scope)
    for mask in masks.values():
        matrix = mask.flatten(1)
        assert spread(matrix.sum(0)) <= 1
        assert spread(matrix.sum(1)) <= 1


def test_certificates_are_those_of_the_masks():
    model = networks.conv_net()
    masks = prune(model, "ramanujan", sparsity=0.7, seed=2)
    certificates = masks.meta["ramanujan"]
    assert list(certificates) == list(masks)
    spectrum = full_spectrum(masks, min_degree=1)
    for name, layer in spectrum.layers.items():
        certificate = certificates[name]
        assert certificate["sigma1"] == pytest.approx(layer.sigma1, rel=1e-6)
        assert certificate["sigma2"] == pytest.approx(layer.sigma2, abs=2 * 1e-6 * layer.sigma1)
        bound = math.sqrt(layer.left_degree - 1) + math.sqrt(layer.right_degree - 1)
        assert certificate["bound"] == pytest.approx(bound, abs=1e-12)
        assert certificate["gap"] == certificate["bound"] - certificate["sigma2"]
        assert certificate["is_ramanujan"] == (certificate["gap"] >= certificate["sigma2_bound"])
        degrees = masks[name].sum() / max(masks[name].flatten(1).shape)
        assert certificate["too_sparse"] == bool(degrees < 2)
    assert json.loads(json.dumps(masks.meta)) == masks.meta


def test_layers_of_enough_edges_are_ramanujan():
    for sparsity in (0.5, 0.8, 0.9):
        masks = prune(networks.mlp(), "ramanujan", sparsity=sparsity, seed=3)
        assert all(c["is_ramanujan"] for c in masks.meta["ramanujan"].values())


def test_layers_too_sparse_say_so_and_are_biregular_all_the_same():
    model = nn.Linear(100, 10)
    masks = prune(model, "ramanujan", sparsity=0.85, seed=0)  # taps have 1.5 edges
    assert masks.meta["ramanujan"]["weight"]["too_sparse"]
    assert set(masks["weight"].sum(0).tolist()) == {1, 2}
    assert set(masks["weight"].sum(1).tolist()) == {15}
    enough = prune(model, "ramanujan", sparsity=0.8, seed=0)
    assert not enough.meta["ramanujan"]["weight"]["too_sparse"]


def test_a_layer_without_a_weight_has_no_certificate():
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(4, 2))
    masks = prune(model, "ramanujan", sparsity=0.95, scope="layer", seed=0, allow_collapse=True)
    assert masks["1.weight"].sum() == 0
    assert masks.meta["ramanujan"]["1.weight"] is None
    assert masks.meta["ramanujan"]["0.weight"] is not None
    with pytest.raises(ValueError, match=r"leaves no weight in 1\.weight"):
        prune(model, "ramanujan", sparsity=0.95, scope="layer", seed=0)


def test_the_seed_decides_and_the_weights_do_not():
    one = prune(networks.mlp(0), "ramanujan", sparsity=0.9, seed=1)
    assert prune(networks.mlp(5), "ramanujan", sparsity=0.9, seed=1) == one
    assert prune(networks.mlp(0), "ramanujan", sparsity=0.9, seed=2) != one


def test_layers_are_drawn_again_until_they_are_ramanujan():
    def certificate(seed, **options):
        masks = prune(nn.Linear(60, 60), "ramanujan", sparsity=0.95, seed=seed, **options)
        return masks.meta["ramanujan"]["weight"]

    missed = [seed for seed in range(40) if not certificate(seed, tries=1)["is_ramanujan"]]
    assert missed  # one draw in about twenty
    assert all(certificate(seed)["is_ramanujan"] for seed in missed)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scope": "global"}, ValueError, "scope: expected one of 'erk', 'er', 'layer'"),
        ({"tries": 0}, ValueError, "tries: expected at least 1, got 0"),
        ({"tries": "many"}, TypeError, "tries: expected an int, got str"),
        ({"trys": 3}, TypeError, "did you mean 'tries'"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        prune(networks.mlp(), "ramanujan", sparsity=0.9, seed=1, **options)


@pytest.mark.parametrize("scope", [None, "layer"])
def test_as_the_base_of_pags(scope):
    model = networks.mlp()
    arguments = {"sparsity": 0.9, "seed": 4, "scope": scope}
    base = prune(model, "ramanujan", **arguments)
    masks = prune(model, "pags", base="ramanujan", candidates=6, **arguments)
    assert [int(m.sum()) for m in masks.values()] == [int(m.sum()) for m in base.values()]
    for mask in masks.values():  # a candidate's layer is taken as it is, or not at all
        assert spread(mask.sum(0)) <= 1
        assert spread(mask.sum(1)) <= 1
    norms = masks.meta["pags"]["norm"]
    assert norms == sorted(norms)
    assert norms[0] == pytest.approx(full_spectrum(base, model).norm(), rel=1e-9)
    assert norms[-1] > norms[0]


def test_pags_refuses_masks_whose_counts_change():
    @register_pruner("whimsical", varies_by="seed")
    def whimsical(context):
        kept = float(torch.rand((), generator=context.generator))
        return MaskSet({n: torch.rand(w.shape) < kept for n, w in context.weights.items()})

    try:
        with pytest.raises(ValueError, match="base: .* the counts of 'whimsical' changed"):
            prune(networks.mlp(), "pags", base="whimsical", sparsity=0.5, seed=0)
    finally:
        del _METHODS["whimsical"]
