"""What the records of a run say of its topology, and what TensorBoard gets."""

import dataclasses
import json
import sys

import pytest
from jobs import SMALL, outcome, train_killed

from fullspectrum_ext.experiments import RunFolder, train
from fullspectrum_ext.experiments.runs_file import read_runs
from fullspectrum_ext.masks import MaskSet

CONFIG = dataclasses.replace(
    SMALL,
    methods=("set", "rigl", "erk"),
    seeds=(0,),
    epochs=4,
    sparsity=0.9,
    backend="sparse",
    coordinate_every=3,
)
STEPS = 5  # of an epoch; an update comes after each


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("job") / "run")
    train(CONFIG, folder)
    return folder


def test_each_update_is_recorded_once(folder):
    runs = {entry["run"]["method"]: entry["history"] for entry in read_runs(folder.path)}
    # RigL changes the topology in three quarters of the training only
    for method, epochs in {"set": [1, 2, 3], "rigl": [1, 2]}.items():
        history = runs[method]
        assert history["topology_steps"] == [STEPS * epoch for epoch in epochs]
        for overlap, churn in zip(
            history["topology_overlap"], history["topology_churn"], strict=True
        ):
            assert 0 < churn < 0.31
            # with equal numbers before and after, overlap is (1 - churn) / (1 + churn)
            assert overlap == pytest.approx((1 - churn) / (1 + churn), abs=3e-6)
        explored = history["topology_explored"]
        assert 0.1 < explored[0] < explored[-1] < 0.2
        assert explored == sorted(explored)
    assert not any(key.startswith("topology") for key in runs["erk"])


def test_the_coordinate_of_the_mask_moves_with_the_topology_alone(folder):
    for entry in read_runs(folder.path):
        history = entry["history"]
        assert history["coordinate_steps"] == list(range(0, 4 * STEPS + 1, 3))
        gaps = [means[0] for means in history["coordinate_means"]]
        moved = [
            step
            for step, before, after in zip(
                history["coordinate_steps"][1:], gaps, gaps[1:], strict=False
            )
            if before != after
        ]
        # the first measurement after each update
        expected = {"set": [6, 12, 15], "rigl": [6, 12], "erk": []}
        assert moved == expected[entry["run"]["method"]]
        layers = history["coordinate_layers"]
        assert list(layers) == ["fc1.weight", "fc2.weight", "fc3.weight"]
        for at, means in enumerate(history["coordinate_means"]):
            for place, mean in enumerate(means):
                own = [values[at][place] for values in layers.values()]
                assert sum(own) / 3 == pytest.approx(mean, abs=1e-5)


def test_degrees_are_recorded_as_the_run_began_and_as_it_ended(folder):
    for entry in read_runs(folder.path):
        run = entry["run"]
        masks = MaskSet.load(folder.masks(run["method"], 0))
        assert ("degrees_before" in run) == (run["method"] != "erk")
        for when in ("degrees_before", "degrees_after"):
            degrees = run.get(when, run["degrees_after"])
            assert list(degrees) == list(masks)
            for name, sides in degrees.items():
                rows, columns = masks[name].shape
                assert sum(count for _, count in sides["in"]) == rows
                assert sum(count for _, count in sides["out"]) == columns
                kept = int(masks[name].sum())
                assert sum(degree * count for degree, count in sides["in"]) == kept
                assert sum(degree * count for degree, count in sides["out"]) == kept
        last = {name: masks.degrees(name).histograms() for name in masks}
        assert run["degrees_after"] == last
        assert run.get("degrees_before") != last


@pytest.mark.parametrize("moment", [1, 3])
def test_a_killed_run_has_the_same_records(folder, moment, tmp_path):
    config = dataclasses.replace(CONFIG, methods=("set",))
    killed = RunFolder(tmp_path / "killed")
    train_killed(config, killed, moment, after=False)
    train(config, killed)

    (run,) = read_runs(killed.path)
    whole = read_runs(folder.path)[0]
    assert run["history"] == whole["history"]
    records = [r for r in outcome(folder.path)["records"] if r["method"] == "set"]
    assert outcome(killed.path)["records"] == records
    assert run["run"]["degrees_before"] == whole["run"]["degrees_before"]


def test_after_a_warm_start_steps_are_those_of_the_run(tmp_path):
    config = dataclasses.replace(
        CONFIG, methods=("snip:warm+set",), epochs=3, warm_epochs=1, coordinate_every=STEPS
    )
    train(config, RunFolder(tmp_path / "whole"))
    killed = RunFolder(tmp_path / "killed")
    train_killed(config, killed, 3, after=False)  # within the stage that changes the topology
    train(config, killed)

    (run,) = read_runs(tmp_path / "whole")
    assert run["history"]["topology_steps"] == [2 * STEPS]
    assert read_runs(killed.path)[0]["history"] == run["history"]


class _Writer:
    """What the loggers ask of TensorBoard's SummaryWriter."""

    made: list["_Writer"] = []

    def __init__(self, folder, purge_step):
        self.scalars, self.histograms = {}, {}
        self.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.setdefault(name, []).append((step, value))

    def add_histogram(self, name, values, step):
        self.histograms.setdefault(name, []).append((step, values.tolist()))

    def flush(self):
        pass

    def close(self):
        pass


def test_tensorboard_gets_updates_and_degrees_beside_the_coordinate(tmp_path, monkeypatch):
    monkeypatch.setattr(_Writer, "made", [])
    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = _Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    folder = RunFolder(tmp_path / "run")
    train(dataclasses.replace(CONFIG, methods=("set",), tensorboard=True), folder)

    history = read_runs(folder.path)[0]["history"]
    changing, _ = _Writer.made  # one for each stage of the run
    for name in ("overlap", "churn", "explored"):
        steps, values = zip(*changing.scalars[f"topology/{name}"], strict=True)
        assert list(steps) == history["topology_steps"]
        assert values == pytest.approx(history[f"topology_{name}"], abs=1e-6)
    assert changing.scalars["nnz/fc1.weight"][-1] == (15, int(_kept(folder)["fc1.weight"].sum()))
    step, degrees = changing.histograms["in_degree/fc1.weight"][-1]
    assert (step, degrees) == (15, _kept(folder).degrees("fc1.weight").inward.tolist())
    assert "coordinate/norm" in changing.scalars
    assert json.loads(folder.records.read_text().splitlines()[0])["topology_steps"] == [5]


def _kept(folder):
    return MaskSet.load(folder.masks("set", 0))
