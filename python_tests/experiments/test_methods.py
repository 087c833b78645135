"""Every pruning method by the name that the driver takes, with nothing said beside it."""

import pytest

from fullspectrum_ext.experiments.data import Batches, load_data
from fullspectrum_ext.experiments.methods import make_masks, parse_method
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.pruning import methods

SINGLE = ["er", "erk", "force", "grasp", "itersnip", "magnitude", "phew", "ramanujan"]
SINGLE += ["random", "snip", "synflow", "taylor1", "uniform"]
NAMES = [*SINGLE, *(f"pags:{base}" for base in SINGLE)]


def test_the_names_are_those_of_registered_methods():
    assert set(SINGLE) <= set(methods())


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_masks_by_name(method, model):
    digits = load_data("digits")
    network = build_model(model, digits.shape, digits.classes, seed=0)
    assert parse_method(method).method == method.partition(":")[0]
    masks = make_masks(
        method,
        network,
        sparsity=0.9,
        candidates=1,
        data=list(Batches(digits.train, 64, 0))[:4],
        seed=0,
    )
    assert masks.nnz == round(0.1 * masks.numel)
    assert masks.meta["method"] == method.partition(":")[0]


@pytest.mark.parametrize("model", ["resnet20", "wrn-22-2"])
def test_phew_prunes_residual_networks_by_name_alone(model):
    network = build_model(model, (1, 8, 8), 10, seed=0)
    masks = make_masks("phew", network, sparsity=0.9, candidates=1, data=None, seed=0)
    assert masks.nnz == round(0.1 * masks.numel)


def test_phew_says_why_it_cannot_prune_attention():
    network = build_model("vit", (1, 8, 8), 10, seed=0)
    with pytest.raises(ValueError, match="'phew' walks from layer to layer, but cannot here"):
        make_masks("phew", network, sparsity=0.9, candidates=1, data=None, seed=0)
