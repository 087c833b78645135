"""Methods that prune after a short dense training, and those whose layers drift, in the driver."""

import copy
import dataclasses

import pytest
import torch
from jobs import SMALL, outcome, train_killed

import fullspectrum_ext as fs
from fullspectrum_ext.experiments import RunFolder, TrainConfig, suite, train
from fullspectrum_ext.experiments.data import FirstPass, load_data
from fullspectrum_ext.experiments.methods import make_masks
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.experiments.pruning import prune_by_name
from fullspectrum_ext.masks import MaskSet

METHODS = ("dense", "snip:warm", "snip:warm:reinitialised", "pags:snip:warm")
CONFIG = dataclasses.replace(
    SMALL, methods=METHODS, seeds=(0,), epochs=4, warm_epochs=2, candidates=3, backend="sparse"
)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A job's folder, its runs, and the dense models that each sparse training began with."""
    path = tmp_path_factory.mktemp("whole") / "run"
    begun = []
    sparsify = suite.sparsify

    def begin(model, masks, **options):
        begun.append(copy.deepcopy(model))
        return sparsify(model, masks, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "sparsify", begin)
        runs = {run["method"]: run for run in train(CONFIG, RunFolder(path))["runs"]}
    return path, runs, dict(zip(METHODS[1:], begun, strict=True))


def test_the_first_epochs_are_those_of_dense_training_and_all_epochs_are_as_many(job):
    path, _, _ = job
    records = outcome(path)["records"]
    lines = {
        method: [{**r, "method": ""} for r in records if r["method"] == method]
        for method in METHODS
    }
    for method in METHODS[1:]:
        assert lines[method][:2] == lines["dense"][:2]
        assert [r["density"] for r in lines[method]] == pytest.approx([1, 1, 0.05, 0.05])
        rates = [r["learning_rate"] for r in lines[method]]
        assert rates == [r["learning_rate"] for r in lines["dense"]]


def test_masks_are_those_of_the_warm_weights_which_training_goes_on_from(job):
    path, runs, begun = job
    folder, digits = RunFolder(path), load_data("digits")
    masks = {method: MaskSet.load(folder.masks(method, 0)) for method in METHODS[1:]}
    fresh = build_model("mlp", digits.shape, digits.classes, 0)
    for method in ("snip:warm", "pags:snip:warm"):
        assert runs[method]["kept"] == 2510
        warm = begun[method]
        assert not torch.equal(warm.fc1.weight, fresh.fc1.weight)
        data = FirstPass(digits.train, 256, 0)
        plain = method.removesuffix(":warm")
        found = make_masks(plain, warm, sparsity=0.95, candidates=3, data=data, seed=0)
        assert found == masks[method]
        before = fs.full_spectrum(masks[method], warm)
        assert runs[method]["coordinate_before"] == before.vector.tolist()
    assert runs["pags:snip:warm"]["norm_before"] > runs["snip:warm"]["norm_before"]


def test_an_ablation_breaks_the_warm_weights_and_nothing_else(job):
    path, runs, begun = job
    plain, ablated = begun["snip:warm"], begun["snip:warm:reinitialised"]
    for name, weight in plain.named_parameters():
        other = ablated.get_parameter(name)
        assert torch.equal(weight, other) == name.endswith("bias")
        assert torch.equal(weight.flatten().sort().values, other.flatten().sort().values)
    masks = MaskSet.load(RunFolder(path).masks("snip:warm:reinitialised", 0))
    assert masks == MaskSet.load(RunFolder(path).masks("snip:warm", 0))
    before = fs.full_spectrum(masks, ablated)
    assert runs["snip:warm:reinitialised"]["coordinate_before"] == before.vector.tolist()


@pytest.mark.parametrize("moment", [7, 8, 9, 15, 20])
def test_a_killed_job_ends_as_an_uninterrupted_one(job, tmp_path, moment):
    train_killed(CONFIG, RunFolder(tmp_path / "run"), moment, after=moment % 2 == 0)
    train(CONFIG, RunFolder(tmp_path / "run"))

    assert outcome(tmp_path / "run") == outcome(job[0])


def test_the_dense_epochs_are_fewer_than_all():
    with pytest.raises(ValueError, match="warm_epochs: expected less than epochs with snip:warm"):
        TrainConfig(methods=("snip:warm",), epochs=2, warm_epochs=2)
    with pytest.raises(ValueError, match="warm_epochs: expected at least 1, got 0"):
        TrainConfig(warm_epochs=0)
    assert TrainConfig(epochs=1).warm_epochs == 1  # of no effect without such a method


def test_drift_is_the_option_of_pags_and_results_say_what_came_of_it(tmp_path):
    config = dataclasses.replace(
        SMALL, methods=("pags:snip", "pags:snip:drift"), seeds=(0,), epochs=1, candidates=20
    )
    folder = RunFolder(tmp_path / "run")
    exact, drifted = train(config, folder)["runs"]
    masks = MaskSet.load(folder.masks("pags:snip:drift", 0))
    assert exact["kept"] == 2510
    assert drifted["kept"] == masks.nnz != 2510
    assert drifted["sparsity"] == masks.sparsity
    digits = load_data("digits")
    assert masks == fs.prune(
        build_model("mlp", digits.shape, digits.classes, 0),
        "pags",
        candidates=20,
        drift=True,
        sparsity=0.95,
        data=FirstPass(digits.train, 256, 0),
        seed=0,
    )


def test_pruning_by_name_takes_drift_and_no_dense_training():
    names = ("pags:magnitude", "pags:magnitude:drift")
    exact, drifted = (prune_by_name("mlp", name, sparsity=0.9, candidates=5) for name in names)
    assert exact.meta["options"]["drift"] is False
    assert drifted.meta["options"]["drift"] is True
    with pytest.raises(ValueError, match="method: snip:warm prunes in the course of training"):
        prune_by_name("mlp", "snip:warm", sparsity=0.9)
