"""ProbMask, K-starts and dissipating gradients in the driver."""

import dataclasses

import pytest
import torch
from jobs import SMALL, outcome, train_killed

from fullspectrum_ext.experiments import RunFolder, train
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.masks import MaskSet

METHODS = ("probmask", "probmask:vr_pge", "kstarts", "dissipating", "dissipating:kstarts")
METHODS += ("probmask:supermask",)
CONFIG = dataclasses.replace(
    SMALL, methods=METHODS, seeds=(0,), epochs=3, sparsity=0.7, backend="sparse"
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    train(CONFIG, RunFolder(path))
    return path


def test_the_sparsity_asked_for_is_met_exactly_by_different_masks(uninterrupted):
    folder = RunFolder(uninterrupted)
    masks = {method: MaskSet.load(folder.masks(method, 0)) for method in METHODS}
    for run in outcome(uninterrupted)["runs"]:
        assert (run["kept"], run["total"]) == (15060, 50200)
        assert masks[run["method"]].nnz == 15060
    assert len({mask.digest() for mask in masks.values()}) == len(METHODS)
    model = torch.load(folder.checkpoint("probmask", 0), weights_only=True)["model"]
    assert MaskSet.from_state_dict(model) == masks["probmask"]


def test_epochs_are_those_of_all_stages(uninterrupted):
    records = outcome(uninterrupted)["records"]
    densities = {
        method: [r["density"] for r in records if r["method"] == method] for method in METHODS
    }
    assert densities["probmask"] == pytest.approx([0.3] * 3)  # what it evaluates
    assert densities["kstarts"] == pytest.approx([1.0, 0.3, 0.3])
    assert densities["dissipating"] == pytest.approx([0.65, 0.3, 0.3])
    assert densities["dissipating:kstarts"][-1] == pytest.approx(0.3)


def test_the_first_epochs_in_which_masks_compete_can_be_more_or_fewer(tmp_path):
    methods = ("kstarts", "dissipating:kstarts")
    config = dataclasses.replace(CONFIG, methods=methods, early_epochs=1)
    train(config, RunFolder(tmp_path))
    records = outcome(tmp_path)["records"]
    pruned = [r["epoch"] for r in records if r["density"] == pytest.approx(0.3)]
    assert pruned == [1, 2, 3, 2, 3]


def test_a_supermask_keeps_the_initial_weights_and_learns_all_the_time(uninterrupted):
    (run,) = [r for r in outcome(uninterrupted)["runs"] if r["method"] == "probmask:supermask"]
    assert run["coordinate_after"] == run["coordinate_before"]
    folder = RunFolder(uninterrupted)
    masks = MaskSet.load(folder.masks("probmask:supermask", 0))
    ended = torch.load(folder.checkpoint("probmask:supermask", 0), weights_only=True)["model"]
    initial = build_model("mlp", (1, 8, 8), 10, 0)
    for name, mask in masks.items():
        values = ended[name.replace("weight", "values")]
        assert torch.equal(values, initial.get_parameter(name)[mask])
    assert not torch.equal(ended["fc1.bias"], initial.fc1.bias)
    records = [r for r in outcome(uninterrupted)["records"] if r["method"] == run["method"]]
    rates = [r["learning_rate"] for r in records]
    assert rates == pytest.approx([CONFIG.learning_rate * r for r in (1, 0.75, 0.25)])


@pytest.mark.parametrize("moment", [2, 3, 5, 9, 13, 16, 25])
def test_a_killed_job_ends_as_an_uninterrupted_one(uninterrupted, tmp_path, moment):
    train_killed(CONFIG, RunFolder(tmp_path / "run"), moment, after=False)
    train(CONFIG, RunFolder(tmp_path / "run"))

    assert outcome(tmp_path / "run") == outcome(uninterrupted)
