"""Methods that change the topology in the course of training, in the driver."""

import dataclasses

import pytest
import torch
from jobs import SMALL, outcome, train_killed

from fullspectrum_ext import dynamic
from fullspectrum_ext.experiments import RunFolder, train
from fullspectrum_ext.experiments.procedures import PROCEDURES
from fullspectrum_ext.masks import MaskSet

METHODS = tuple(sorted(set(dynamic.methods()) & set(PROCEDURES) - {"gmp"}))
CONFIG = dataclasses.replace(
    SMALL, methods=(*METHODS, "erk"), seeds=(0,), epochs=4, sparsity=0.7, backend="sparse"
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    train(CONFIG, RunFolder(path))
    return path


def test_the_driver_has_every_method():
    # of magnitude pruning it has a form of its own
    assert set(METHODS) == set(dynamic.methods()) - {"gmp"}


def test_the_sparsity_is_that_asked_for_and_the_masks_are_not_those_it_began_with(uninterrupted):
    folder = RunFolder(uninterrupted)
    masks = {method: MaskSet.load(folder.masks(method, 0)) for method in CONFIG.methods}
    for run in outcome(uninterrupted)["runs"]:
        assert (run["kept"], run["total"]) == (15060, 50200)
        assert masks[run["method"]].nnz == 15060
        assert run["test_accuracy"] > 0.2
    assert len({mask.digest() for mask in masks.values()}) == len(masks)
    for method in METHODS:  # saved is what was trained
        model = torch.load(folder.checkpoint(method, 0), weights_only=True)["model"]
        assert MaskSet.from_state_dict(model) == masks[method]


def test_epochs_are_those_of_both_stages(uninterrupted):
    records = outcome(uninterrupted)["records"]
    for method in METHODS:
        densities = [r["density"] for r in records if r["method"] == method]
        assert len(densities) == 4
        assert densities[-1] == pytest.approx(0.3)
    density = {r["epoch"]: r["density"] for r in records if r["method"] == "granet"}
    assert 0.6 > density[1] > density[2] > 0.3


@pytest.mark.parametrize("backend", ["sparse", "masked"])
@pytest.mark.parametrize("moment", [1, 4])
def test_a_killed_job_ends_as_the_uninterrupted_one(moment, backend, tmp_path):
    methods = ("rigl", "dsr")
    config = dataclasses.replace(CONFIG, methods=methods, backend=backend)
    train(config, RunFolder(tmp_path / "whole"))
    folder = RunFolder(tmp_path / "killed")
    train_killed(config, folder, moment, after=False)
    train(config, folder)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_nothing_to_prune_is_nothing_to_change(tmp_path):
    config = dataclasses.replace(CONFIG, methods=("rigl",), sparsity=0.0, epochs=1)
    train(config, RunFolder(tmp_path))
    (run,) = outcome(tmp_path)["runs"]
    assert run["kept"] == run["total"]
