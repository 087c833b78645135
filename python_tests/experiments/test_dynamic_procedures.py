"""Methods that change the topology in the course of training, in the driver."""

import dataclasses

import pytest
import torch
from jobs import SMALL, outcome, train_killed

from fullspectrum_ext import dynamic
from fullspectrum_ext.experiments import RunFolder, TrainConfig, load_config, train
from fullspectrum_ext.experiments.evolving import dynamic_methods
from fullspectrum_ext.experiments.methods import MethodName, make_procedure, parse_method
from fullspectrum_ext.experiments.plan import load_plan
from fullspectrum_ext.experiments.pruning import prune_by_name
from fullspectrum_ext.masks import MaskSet

METHODS = tuple(dynamic_methods())
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


def test_a_method_goes_on_from_the_masks_of_another(tmp_path):
    methods = ("snip", "pags:random", "snip+rigl", "pags:random+set", "erk+rigl", "rigl")
    config = dataclasses.replace(CONFIG, methods=methods, candidates=3, update_every=2)
    train(config, RunFolder(tmp_path))
    folder = RunFolder(tmp_path)
    masks = {method: MaskSet.load(folder.masks(method, 0)) for method in methods}
    begin = {method: MaskSet.load(folder.masks(method, 0, 0)) for method in methods[2:]}
    assert begin["snip+rigl"] == masks["snip"]
    assert begin["pags:random+set"] == masks["pags:random"]
    assert masks["erk+rigl"] == masks["rigl"]
    assert folder.trace("pags:random+set", 0).is_file()
    for method, mask in begin.items():
        assert mask != masks[method]
        counts = [int(layer.sum()) for layer in mask.values()]
        assert counts == [int(layer.sum()) for layer in masks[method].values()]
    assert {run["kept"] for run in outcome(tmp_path)["runs"]} == {15060}


def test_a_warm_start_is_dense_before_its_topology_changes():
    config = TrainConfig(methods=("snip:warm+rigl",), epochs=12, warm_epochs=4)
    stages = make_procedure("snip:warm+rigl", config, 0).stages
    assert [(stage.title, stage.epochs, stage.start) for stage in stages] == [
        ("dense", 4, "fresh"),
        ("changing topology", 6, "continue"),
        ("fixed topology", 2, "continue"),
    ]
    assert stages[0].is_anchor


@pytest.mark.parametrize("moment", [1, 2, 4])
def test_a_killed_combination_ends_as_the_uninterrupted_one(moment, tmp_path):
    config = dataclasses.replace(
        CONFIG, methods=("snip:warm+rigl:ramanujan",), warm_epochs=1, update_every=3
    )
    train(config, RunFolder(tmp_path / "whole"))
    folder = RunFolder(tmp_path / "killed")
    train_killed(config, folder, moment, after=True)
    train(config, folder)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_the_setting_dynamic_is_a_part_of_every_method_s_name(tmp_path):
    names = ("snip+rigl", "pags:erk+rigl")
    said = TrainConfig(methods=("snip", "pags:erk"), dynamic="rigl")
    assert said.methods == names
    assert said == TrainConfig(methods=names)
    assert said.digest() == TrainConfig(methods=names).digest()
    file = tmp_path / "settings.toml"
    file.write_text('methods = ["snip"]\ndynamic = "set"\n')
    assert load_config(file).methods == ("snip+set",)
    assert load_config(file, dynamic="rigl").methods == ("snip+rigl",)
    file.write_text('methods = ["snip+set", "dense"]\n[[grid]]\n[[grid]]\nupdate_every = 3\n')
    with pytest.raises(ValueError, match="with other settings than .*update_every = 3, not 0"):
        load_plan(file)
    file.write_text('seeds = [0]\nmethods = ["snip"]\n[[grid]]\n[[grid]]\ndynamic = "set"\n')
    assert [run.methods for run in load_plan(file).runs] == [("snip",), ("snip+set",)]


def test_updates_come_when_and_as_much_as_is_said(monkeypatch, tmp_path):
    made = []

    def dynamic_sparsity(*arguments, **options):
        told = ("explored", "on_update")
        made.append({name: option for name, option in options.items() if name not in told})
        return dynamic.sparsity.DynamicSparsity(*arguments, **options)

    monkeypatch.setattr(dynamic, "DynamicSparsity", dynamic_sparsity)
    config = dataclasses.replace(CONFIG, methods=("rigl", "itop"), epochs=4)  # of 5 steps
    train(config, RunFolder(tmp_path / "own"))
    assert made == [{"steps": 20, "seed": 0, "every": every} for every in (5, 10)]
    made.clear()
    updates = {"every": 2, "fraction": 0.25, "anneal": "linear", "until": 0.5}
    config = dataclasses.replace(
        config, **{f"update_{name}": value for name, value in updates.items()}
    )
    assert [stage.epochs for stage in make_procedure("itop", config, 0).stages] == [2, 2]
    train(config, RunFolder(tmp_path / "said"))
    assert made == [{"steps": 20, "seed": 0, **updates}] * 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"methods": ("dense+rigl",)}, "for rigl to go on from its masks, got 'dense\\+rigl'"),
        ({"methods": ("imp+rigl",)}, "expected a method that prunes before training"),
        ({"methods": ("set+rigl",)}, "expected a method that prunes before training"),
        ({"methods": ("probmask:vr_pge+set",)}, "expected a method that prunes before training"),
        ({"methods": ("snip+gmp",)}, "expected START\\+DYNAMIC with one of dsr, .* after the plus"),
        ({"methods": ("snip+",)}, "expected START"),
        ({"methods": ("snip+set+rigl",)}, "expected START"),
        ({"methods": ("snpi+rigl",)}, "did you mean 'snip'"),
        ({"methods": ("snip:shuffled+rigl",)}, "expected no ablation of what rigl goes on from"),
        ({"methods": ("pags:rigl",)}, "rigl"),
        ({"dynamic": "rgl"}, "dynamic: expected one of .* \\(did you mean 'rigl'"),
        ({"dynamic": "set", "methods": ("rigl",)}, "method: .* got 'rigl\\+set'"),
        ({"update_every": -1}, "update_every: expected at least 0"),
        ({"update_fraction": 1.0}, "update_fraction: expected a fraction"),
        ({"update_anneal": "cosin"}, "update_anneal: expected one of .* 'cosine'"),
        ({"update_until": 1.5}, "update_until: expected a share"),
        (
            {"methods": ("granet",), "update_until": 0.5},
            "update_until: granet cannot: reached: expected a share",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**settings)


def test_a_name_says_where_it_begins_and_what_goes_on():
    assert parse_method("rigl") == MethodName("erk", dynamic="rigl") == parse_method("erk+rigl")
    warm = MethodName("pags", "snip", drift=True, warm=True, dynamic="set:ramanujan")
    assert parse_method("pags:snip:drift:warm+set:ramanujan") == warm
    with pytest.raises(ValueError, match="snip\\+set prunes in the course of training"):
        prune_by_name("mlp", "snip+set", sparsity=0.9)


def test_nothing_to_prune_is_nothing_to_change(tmp_path):
    config = dataclasses.replace(CONFIG, methods=("rigl",), sparsity=0.0, epochs=1)
    train(config, RunFolder(tmp_path))
    (run,) = outcome(tmp_path)["runs"]
    assert run["kept"] == run["total"]
