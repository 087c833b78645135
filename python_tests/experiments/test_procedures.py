"""Methods that prune in the course of training, in the driver."""

import copy
import dataclasses

import pytest
import torch
from jobs import SMALL, outcome, train_killed

from fullspectrum_ext.experiments import RunFolder, TrainConfig, suite, train
from fullspectrum_ext.experiments.methods import MethodName, parse_method
from fullspectrum_ext.experiments.procedures import Stage, schedule_epochs
from fullspectrum_ext.experiments.pruning import prune_by_name
from fullspectrum_ext.masks import MaskSet

METHODS = ("gmp", "omp", "imp", "imp:lr")
CONFIG = dataclasses.replace(
    SMALL, methods=METHODS, seeds=(0,), epochs=2, sparsity=0.4, coordinate_every=0
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    train(CONFIG, RunFolder(path))
    return path


def test_the_sparsity_asked_for_is_met_exactly_and_masks_are_nested(uninterrupted):
    for run in outcome(uninterrupted)["runs"]:
        assert (run["kept"], run["total"]) == (30120, 50200)
    folder = RunFolder(uninterrupted)
    kept = [MaskSet.load(folder.masks("imp", 0, stage)) for stage in (0, 1, 2, 3, None)]
    assert [masks.nnz for masks in kept] == [50200, 50200, 40160, 32128, 30120]
    for larger, smaller in zip(kept, kept[1:], strict=False):
        assert not any(bool((smaller[name] & ~larger[name]).any()) for name in smaller)


def test_epochs_are_those_of_all_stages_with_their_learning_rates(uninterrupted):
    records = outcome(uninterrupted)["records"]
    rates = {
        method: [r["learning_rate"] for r in records if r["method"] == method] for method in METHODS
    }
    high, low = CONFIG.learning_rate, CONFIG.learning_rate / 2
    assert rates["gmp"] == pytest.approx([high, low])
    assert rates["omp"] == pytest.approx([high, low] * 2)
    assert rates["imp"] == pytest.approx([high, low, low, low, low])
    assert rates["imp:lr"] == pytest.approx([high, low] * 4)


def test_a_learning_rate_in_steps_also_over_stages_and_after_a_kill(tmp_path):
    names = ("snip", "gmp", "imp")
    config = dataclasses.replace(CONFIG, methods=names, epochs=4, schedule="steps")
    train_killed(config, RunFolder(tmp_path / "run"), 9, after=True)  # in the last stage of gmp
    train(config, RunFolder(tmp_path / "run"))
    records = outcome(tmp_path / "run")["records"]
    high = CONFIG.learning_rate
    whole = [high, high, high / 10, high / 100]
    rates = {name: [r["learning_rate"] for r in records if r["method"] == name] for name in names}
    assert rates["snip"] == rates["gmp"] == pytest.approx(whole)
    assert rates["imp"] == pytest.approx(whole + 3 * whole[1:])


@pytest.mark.parametrize("moment", [2, 5, 10, 13, 17, 20])
def test_a_killed_job_ends_as_an_uninterrupted_one(uninterrupted, tmp_path, moment):
    train_killed(CONFIG, RunFolder(tmp_path / "run"), moment, after=moment % 2 == 0)
    train(CONFIG, RunFolder(tmp_path / "run"))

    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_a_round_begins_with_the_very_bits_that_were_kept(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, methods=("imp",), backend="sparse")
    saved, begun = [], []
    save, sparsify = suite.save_checkpoint, suite.sparsify

    def remember(path, state):
        saved.append(copy.deepcopy(state))
        save(path, state)

    def begin(model, masks, **options):
        begun.append(copy.deepcopy(model.state_dict()))
        return sparsify(model, masks, **options)

    monkeypatch.setattr(suite, "save_checkpoint", remember)
    monkeypatch.setattr(suite, "sparsify", begin)
    train(config, RunFolder(tmp_path / "run"))

    (kept,) = [state for state in saved if (state["stage"], state["epoch"]) == (0, 1)]
    assert len(begun) == 3
    for model in begun:
        assert all(torch.equal(model[name], kept["model"][name]) for name in model)
    # with the learning rate of that moment, and the optimizer's state of what is left
    first = next(state for state in saved if state["stage"] == 2)
    assert first["scheduler"] == kept["scheduler"]
    mask = MaskSet.load(RunFolder(tmp_path / "run").masks("imp", 0, 2))["fc1.weight"]
    then, now = (state["optimizer"]["state"][0] for state in (kept, first))  # of fc1
    assert torch.equal(now["exp_avg"], then["exp_avg"][mask])
    assert now["step"] == then["step"] == 5


def test_a_stage_that_continues_changes_nothing(tmp_path):
    config = dataclasses.replace(CONFIG, methods=("dense", "imp"), epochs=3, rewind_epoch=1)
    train(config, RunFolder(tmp_path / "run"))
    records = outcome(tmp_path / "run")["records"]
    whole, parts = (
        [{**r, "method": ""} for r in records if r["method"] == method][:3]
        for method in ("dense", "imp")
    )
    assert parts == whole


def test_pruned_weights_go_on_truly_sparse_with_their_optimizer_states(tmp_path):
    losses = []
    for backend in ("sparse", "masked"):
        config = dataclasses.replace(CONFIG, methods=("gmp",), backend=backend, epochs=4)
        train(config, RunFolder(tmp_path / backend))
        losses.append([r["validation_loss"] for r in outcome(tmp_path / backend)["records"]])
        model = torch.load(RunFolder(tmp_path / backend).checkpoint("gmp", 0))["model"]
        assert ("fc1.values" in model) == (backend == "sparse")
    assert losses[0][:3] == losses[1][:3]
    assert losses[0][3] == pytest.approx(losses[1][3], rel=1e-4)


def test_the_learning_rate_of_a_stage_falls_over_those_that_continue_it():
    stages = (Stage("a", 3), Stage("b", 2, "continue"), Stage("c", 4), Stage("d", 1, "rewind"))
    assert [schedule_epochs(stages, i) for i in range(4)] == [5, 2, 4, 1]


def test_a_point_to_rewind_to_lies_within_the_epochs():
    with pytest.raises(ValueError, match="rewind_epoch: expected less than epochs with imp, got 4"):
        TrainConfig(methods=("imp",), epochs=4, rewind_epoch=4)


def test_ablations_break_what_they_say_and_keep_the_layers_counts(tmp_path):
    names = ("snip", "snip:shuffled", "snip:reinitialised", "imp", "imp:complement")
    config = dataclasses.replace(CONFIG, methods=names, epochs=1, rewind_epoch=0, sparsity=0.6)
    runs = {run["method"]: run for run in train(config, RunFolder(tmp_path / "run"))["runs"]}

    masks = {name: MaskSet.load(RunFolder(tmp_path / "run").masks(name, 0)) for name in names}
    counts = {name: [int(mask.sum()) for mask in masks[name].values()] for name in names}
    assert counts["snip"] == counts["snip:shuffled"] == counts["snip:reinitialised"]
    assert masks["snip"] == masks["snip:reinitialised"] != masks["snip:shuffled"]
    assert counts["imp"] == counts["imp:complement"]
    assert not bool((masks["imp"]["fc2.weight"] & masks["imp:complement"]["fc2.weight"]).any())
    norms = {name: run["norm_before"] for name, run in runs.items()}
    assert norms["snip"] != norms["snip:reinitialised"]
    assert len({run["test_accuracy"] for run in runs.values()}) > 1


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("gmp:shuffled", "method: expected a method that prunes before training, or imp, to be"),
        ("dense:inverted", "method: expected a method that prunes before training"),
        ("snip:shaken", "method: only pags samples around a base"),
        ("imp:snip", "method: "),
        ("imp:inverted", "method: imp has no scores to be inverted, got 'imp:inverted'"),
        ("pags:snip:inverted", "method: pags has no scores to be inverted"),
        ("imp:warm", "method: expected a method that prunes before training, to be warm"),
        ("dense:warm", "method: expected a method that prunes before training, to be warm"),
        ("snip:drift", "method: only the layers of pags can drift, got 'snip:drift'"),
        ("gmp:drift", "method: only the layers of pags can drift"),
        ("pags:snip:warm:drift", r"expected \[pags:\]BASE\[:drift\]\[:warm\]\[:ablation\]"),
        ("snip:shuffled:warm", "method: only pags samples around a base"),
    ],
)
def test_methods_that_make_no_sense_are_refused(method, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(methods=(method,))


def test_pags_around_random_is_no_ablation():
    assert parse_method("pags:random") == MethodName("pags", "random")
    assert parse_method("pags:random:shuffled") == MethodName("pags", "random", ablation="shuffled")


def test_pruning_by_name_takes_ablated_masks_and_no_method_that_trains():
    plain, shuffled, inverted, complement = (
        prune_by_name("mlp", f"magnitude{ablation}", sparsity=0.9)
        for ablation in ("", ":shuffled", ":inverted", ":complement")
    )
    for name, mask in plain.items():
        assert int(mask.sum()) == int(shuffled[name].sum()) == int(inverted[name].sum())
        assert not bool((mask & inverted[name]).any())
        assert not bool((mask & complement[name]).any())
        assert not torch.equal(inverted[name], complement[name])
    assert plain != shuffled
    with pytest.raises(ValueError, match="method: imp prunes in the course of training"):
        prune_by_name("mlp", "imp", sparsity=0.9)
    with pytest.raises(ValueError, match="method: reinitialised weights leave the masks"):
        prune_by_name("mlp", "snip:reinitialised", sparsity=0.9)
