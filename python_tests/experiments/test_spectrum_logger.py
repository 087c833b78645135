import dataclasses
import json
import math
import sys

import networks
import pytest
import torch
from jobs import SMALL, outcome
from torch import nn

from fullspectrum_ext.experiments import RunFolder, train
from fullspectrum_ext.experiments.config import TrainConfig
from fullspectrum_ext.experiments.extras import MissingExtraError
from fullspectrum_ext.experiments.spectrum_logger import SpectrumLogger
from fullspectrum_ext.experiments.summary import draw_figure
from fullspectrum_ext.spectral import full_spectrum

LOGGED = dataclasses.replace(SMALL, coordinate_every=2)
ADDED = ("coordinate_steps", "coordinate_means", "coordinate_norms", "coordinate_layers")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    path = tmp_path_factory.mktemp("logged") / "run"
    train(LOGGED, RunFolder(path))
    return path


def test_what_it_measures_when():
    model = networks.mlp()
    logger = SpectrumLogger(model, every=3, steps=4, flavor="iclr")
    logger.step()
    assert logger.take()["coordinate_steps"] == []
    logger.step()  # the sixth
    before = full_spectrum(model, flavor="iclr")
    nn.init.zeros_(model[0].weight)
    for _ in range(3):
        logger.step()
    record = logger.take()
    after = full_spectrum(model, flavor="iclr")
    assert record["coordinate_steps"] == [6, 9]
    assert record["coordinate_means"] == [before.vector.tolist(), after.vector.tolist()]
    assert record["coordinate_norms"] == [before.norm(), after.norm()]
    for name, values in record["coordinate_layers"].items():
        own = [spectrum.layers[name].vector.tolist() for spectrum in (before, after)]
        assert values == [pytest.approx(vector, rel=5e-6) for vector in own]
    assert list(record["coordinate_layers"]) == list(before.layers)
    assert 0 < record["coordinate_seconds"] < 60
    assert logger.take()["coordinate_seconds"] == 0
    logger.close()


def test_it_begins_where_training_does():
    model = networks.mlp()
    before = full_spectrum(model)
    logger = SpectrumLogger(model, every=5)
    nn.init.zeros_(model[0].weight)
    record = logger.take()
    assert record["coordinate_steps"] == [0]
    assert record["coordinate_means"] == [before.vector.tolist()]
    assert SpectrumLogger(model, every=5, steps=5).take()["coordinate_steps"] == []


def test_training_is_the_same_bit_for_bit_with_it_and_without(logged, tmp_path):
    train(SMALL, RunFolder(tmp_path / "run"))

    plain, other = outcome(tmp_path / "run"), outcome(logged)
    assert plain["runs"] == other["runs"]
    assert plain["masks"] == other["masks"]
    records = [{k: v for k, v in line.items() if k not in ADDED} for line in other["records"]]
    assert records == plain["records"]
    for method in SMALL.methods:
        weights = [
            torch.load(RunFolder(path).checkpoint(method, 1), weights_only=True)["model"]
            for path in (logged, tmp_path / "run")
        ]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_the_records_hold_each_measurement_once(logged):
    lines = [json.loads(line) for line in RunFolder(logged).records.read_text().splitlines()]
    results = json.loads(RunFolder(logged).results.read_text())
    for run in results["runs"]:
        own = [r for r in lines if (r["method"], r["seed"]) == (run["method"], run["seed"])]
        steps = [step for line in own for step in line["coordinate_steps"]]
        norms = [norm for line in own for norm in line["coordinate_norms"]]
        assert steps[:2] == [0, 2]
        assert len(norms) == len(steps)
        assert [b - a for a, b in zip(steps, steps[1:], strict=False)] == [2] * (len(steps) - 1)
        assert norms[-1] == pytest.approx(run["norm_after"], rel=0.05)
        assert all(0 < line["coordinate_seconds"] < line["seconds"] for line in own)


def test_an_interrupted_run_measures_the_same(logged, tmp_path, monkeypatch):
    import fullspectrum_ext.experiments.suite as suite

    save, left = suite.save_checkpoint, [2]

    def interrupted(path, content):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        save(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(suite, "save_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(LOGGED, RunFolder(tmp_path / "run"))
    train(LOGGED, RunFolder(tmp_path / "run"))

    assert outcome(tmp_path / "run") == outcome(logged)


def test_the_figure_has_a_panel_for_it(logged, monkeypatch):
    import fullspectrum_ext.experiments.summary as summary

    panels = []
    draw = summary._draw_trajectories
    monkeypatch.setattr(
        summary,
        "_draw_trajectories",
        lambda panel, curves: (panels.append(panel), draw(panel, curves)),
    )
    draw_figure(RunFolder(logged))
    assert len(panels[0].lines) == 4  # two methods, two seeds
    assert len(panels[0].get_legend().get_texts()) == 2
    assert all(math.isfinite(y) for line in panels[0].lines for y in line.get_ydata())


class _Writer:
    """What SpectrumLogger asks of TensorBoard's SummaryWriter."""

    made: list["_Writer"] = []

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.scalars, self.is_open = folder, purge_step, [], True
        self.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        assert self.is_open

    def close(self):
        self.is_open = False


def test_tensorboard_gets_each_coordinate(tmp_path, monkeypatch):
    monkeypatch.setattr(_Writer, "made", [])
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", type(sys)("torch.utils.tensorboard")
    )
    sys.modules["torch.utils.tensorboard"].SummaryWriter = _Writer
    config = dataclasses.replace(LOGGED, epochs=1, seeds=(0,), methods=("snip",), tensorboard=True)
    folder = RunFolder(tmp_path / "run")
    train(config, folder)

    (writer,) = _Writer.made
    line = json.loads(folder.records.read_text())
    norms = [(value, step) for name, value, step in writer.scalars if name == "coordinate/norm"]
    assert norms == list(zip(line["coordinate_norms"], line["coordinate_steps"], strict=True))
    names = {name for name, _, _ in writer.scalars}
    assert "coordinate/ramanujan_gap" in names
    assert "coordinate/seconds" in names
    assert writer.folder == str(folder.tensorboard("snip", 0))
    assert "ramanujan_gap/fc1.weight" in names
    assert writer.purge_step == 0  # all of it, where training begins anew
    assert not writer.is_open


def test_without_tensorboard_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"tensorboard.*fullspectrum-ext\[logging\]"):
        SpectrumLogger(networks.mlp(), every=1, tensorboard=tmp_path)


def test_bad_arguments():
    with pytest.raises(ValueError, match="every: expected at least 1, got 0"):
        SpectrumLogger(networks.mlp(), every=0)
    with pytest.raises(ValueError, match="steps: expected at least 0, got -1"):
        SpectrumLogger(networks.mlp(), every=1, steps=-1)
    with pytest.raises(ValueError, match="coordinate_every: expected at least 0, got -1"):
        TrainConfig(coordinate_every=-1)
    with pytest.raises(ValueError, match="tensorboard: expected coordinate_every of 1 or more"):
        TrainConfig(tensorboard=True)
    with pytest.raises(TypeError, match="tensorboard: expected true or false, got 1"):
        TrainConfig(coordinate_every=1, tensorboard=1)
