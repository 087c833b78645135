import dataclasses
import json

import pytest
import torch
from jobs import SMALL, outcome

from fullspectrum_ext.experiments import RunFolder, TrainConfig, data, suite, train
from fullspectrum_ext.experiments.progress import TrainingProgress
from fullspectrum_ext.nn import Choice


class _Killed(BaseException):
    """As a signal would come: at any moment, caught by nobody."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    train(SMALL, RunFolder(path))
    return path


def test_a_job_learns_and_leaves_its_files(tmp_path):
    config = dataclasses.replace(SMALL, seeds=(0,), epochs=15, batch_size=32)

    results = train(config, RunFolder(tmp_path / "run"))

    for run in results["runs"]:
        assert run["test_accuracy"] > 0.9
    folder = RunFolder(tmp_path / "run")
    assert folder.config.is_file()
    assert json.loads(folder.results.read_text()) == results
    assert results["environment"]["threads"] == 1
    assert all(folder.checkpoint(run["method"], run["seed"]).is_file() for run in results["runs"])


def test_records_hold_each_epoch_once(uninterrupted):
    records = outcome(uninterrupted)["records"]

    expected = [
        (method, seed, epoch) for seed in (0, 1) for method in SMALL.methods for epoch in (1, 2, 3)
    ]
    assert [(r["method"], r["seed"], r["epoch"]) for r in records] == expected
    assert all(record["threads"] == 1 for record in records)
    rates = [record["learning_rate"] for record in records[:3]]
    assert rates[0] == SMALL.learning_rate
    assert rates == sorted(rates, reverse=True)


def test_bytes_held_are_those_of_the_weights_that_are_kept(tmp_path):
    config = dataclasses.replace(SMALL, epochs=1, seeds=(0,))
    weights, biases = 64 * 300 + 300 * 100 + 100 * 10, 300 + 100 + 10
    held = {}
    for backend in ("sparse", "masked"):
        runs = train(dataclasses.replace(config, backend=backend), RunFolder(tmp_path / backend))
        held |= {(backend, run["method"]): run["held_bytes"] for run in runs["runs"]}

    # float32 weights, gradients and Adam's two moments; a count of steps for each parameter
    dense = 16 * (weights + biases) + 4 * 6
    kept = 2510
    layers = ((64, 300), (300, 100), (100, 10))
    indices = 4 * (3 * kept + sum(rows + columns + 2 for columns, rows in layers))  # both ways
    assert held["masked", "dense"] == held["sparse", "dense"] == dense
    assert held["masked", "snip"] == dense + weights  # masks of one byte
    assert held["sparse", "snip"] == 16 * (kept + biases) + 4 * 6 + indices


def test_two_jobs_with_the_same_settings_are_identical(uninterrupted, tmp_path):
    torch.manual_seed(1234)  # the global generator has no part in it
    train(SMALL, RunFolder(tmp_path / "run"))

    assert outcome(tmp_path / "run") == outcome(uninterrupted)


@pytest.mark.parametrize("moment", ["before record", "before checkpoint", "after checkpoint"])
@pytest.mark.parametrize("epochs", [1, 4])
def test_an_interrupted_job_ends_as_an_uninterrupted_one(
    uninterrupted, tmp_path, monkeypatch, moment, epochs
):
    name, after = {
        "before record": ("append_record", False),
        "before checkpoint": ("save_checkpoint", False),
        "after checkpoint": ("save_checkpoint", True),
    }[moment]
    whole = getattr(suite, name)
    left = [epochs]

    def interrupted(path, content):
        left[0] -= 1
        if left[0] < 0 and not after:
            raise _Killed
        whole(path, content)
        if left[0] < 0:
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(suite, name, interrupted)
        with pytest.raises(_Killed):
            train(SMALL, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run" / "results.json").exists()
    train(SMALL, RunFolder(tmp_path / "run"))

    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_a_finished_job_is_shown_and_not_run_again(uninterrupted, monkeypatch):
    monkeypatch.setattr(suite, "load_data", None)  # a job that ran would call it
    before = {file: file.stat().st_mtime_ns for file in uninterrupted.rglob("*.*")}

    results = train(SMALL, RunFolder(uninterrupted))

    assert [run["seed"] for run in results["runs"]] == [0, 0, 1, 1]
    after = {file: file.stat().st_mtime_ns for file in uninterrupted.rglob("*.*")}
    assert {file for file in before if before[file] != after[file]} <= {uninterrupted / ".lock"}


def test_another_jobs_folder_is_refused_and_fresh_takes_it(tmp_path):
    first = dataclasses.replace(SMALL, methods=("snip",), seeds=(0,), epochs=1)
    second = dataclasses.replace(first, epochs=2)
    folder = RunFolder(tmp_path / "run")
    train(first, folder)
    left = outcome(folder.path)

    with pytest.raises(
        ValueError, match=r"run: holds a run with other settings \(epochs = 1, not 2"
    ):
        train(second, folder)
    assert outcome(folder.path) == left

    train(second, folder, fresh=True)
    assert len(outcome(folder.path)["records"]) == 2


def test_a_folder_of_other_files_is_refused_even_when_fresh(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")

    with pytest.raises(ValueError, match="holds other files than those of a run"):
        train(SMALL, RunFolder(tmp_path), fresh=True)

    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_do_not_share_a_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")

    with (
        folder.opened(SMALL),
        pytest.raises(ValueError, match="another process is training in it"),
        folder.opened(SMALL),
    ):
        pass


def test_what_a_kill_left_half_written_is_cleared(tmp_path):
    folder = RunFolder(tmp_path / "run")
    torn = [folder.path / ".config.toml.1.abc.tmp"]
    folder.path.mkdir()
    torn[0].write_bytes(b"torn")
    with folder.opened(SMALL):
        torn.append(folder.checkpoint("dense", 0).with_name(".dense-0.pt.1.abc.tmp"))
        torn[1].parent.mkdir()
        torn[1].write_bytes(b"torn")

    with folder.opened(SMALL):
        assert not any(file.exists() for file in torn)
        assert folder.config.is_file()


def test_a_damaged_checkpoint_stops_the_job_and_is_named(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.opened(SMALL):
        pass
    folder.checkpoint("dense", 0).parent.mkdir()
    folder.checkpoint("dense", 0).write_bytes(b"PK\x03\x04 cut short")

    with pytest.raises(ValueError, match=r"dense-0\.pt: not"):
        train(SMALL, folder)


def test_a_loss_that_is_no_number_is_an_error_in_words(tmp_path):
    config = dataclasses.replace(SMALL, learning_rate=1e30, optimizer="sgd")

    with pytest.raises(ValueError, match="learning_rate: the loss became"):
        train(config, RunFolder(tmp_path / "run"))


def test_settings_of_torch_are_given_back(uninterrupted):
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    train(SMALL, RunFolder(uninterrupted))

    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_progress_without_a_console_says_nothing(tmp_path, capsys):
    train(
        dataclasses.replace(SMALL, epochs=1),
        RunFolder(tmp_path / "run"),
        progress=TrainingProgress(),
    )

    assert capsys.readouterr() == ("", "")


# ---- convolutions and backends -------------------------------------------------------------------


@pytest.fixture
def small_images(monkeypatch):
    """Forty images of CIFAR's shape, in four classes that can be told apart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 4
    x = torch.randn(40, 3, 32, 32, generator=generator) + y.view(-1, 1, 1, 1)
    split = data.Split(x, y)
    dataset = data.Dataset(split, split, split, 4)
    monkeypatch.setitem(
        data.DATASETS, "images", data.Source(lambda _: dataset, "images", (3, 32, 32))
    )


@pytest.mark.parametrize("model", ["resnet20", "vgg16"])
def test_the_networks_of_the_field_are_pruned_and_trained(tmp_path, small_images, model):
    config = TrainConfig(
        data="images", model=model, methods=("magnitude",), seeds=(0,), epochs=2, batch_size=20
    )
    (run,) = train(config, RunFolder(tmp_path / "run"))["runs"]
    assert run["sparsity"] == pytest.approx(0.95, abs=1e-5)


def test_a_recurrent_network_learns_the_order_of_characters(tmp_path):
    file = tmp_path / "text"
    file.write_text("abcdefgh" * 500)
    config = TrainConfig(
        data="text",
        data_path=str(file),
        model="lstm",
        methods=("snip",),
        sparsity=0.9,
        seeds=(0,),
        epochs=8,
        batch_size=16,
        learning_rate=0.01,
    )
    (run,) = train(config, RunFolder(tmp_path / "run"))["runs"]
    assert run["test_accuracy"] > 0.8  # all but the first of 64 can be known
    records = outcome(tmp_path / "run")["records"]
    assert all(0 <= record["train_accuracy"] <= 1 for record in records)
    assert records[-1]["train_loss"] < 0.5 * records[0]["train_loss"]


def test_a_model_that_does_not_fit_the_data_is_refused_before_any_work(tmp_path):
    config = TrainConfig(model="torch.nn:Identity", methods=("dense",), seeds=(0,))
    with pytest.raises(ValueError, match=r"model: expected outputs \(2, 10\)"):
        train(config, RunFolder(tmp_path / "run"))
    assert (tmp_path / "run" / "records.jsonl").read_text() == ""


def test_residual_networks_learn_digits(tmp_path):
    config = TrainConfig(
        model="resnet20", methods=("erk",), sparsity=0.8, seeds=(0,), epochs=2, batch_size=64
    )
    (run,) = train(config, RunFolder(tmp_path / "run"))["runs"]
    assert run["test_accuracy"] > 0.3


def test_measured_backends_are_kept_with_the_run_and_used_again(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, methods=("snip",), seeds=(0,), backend="measured")
    asked = []

    def choose(model, masks, example):
        asked.append(tuple(example.shape))
        names = list(masks)
        return {n: Choice("sparse" if n == names[0] else "masked", 1.0, 2.0) for n in names}

    monkeypatch.setattr(suite, "choose_backends", choose)
    train(config, RunFolder(tmp_path / "whole"))
    assert asked == [(256, 1, 8, 8)]
    state = torch.load(RunFolder(tmp_path / "whole").checkpoint("snip", 0), weights_only=True)
    assert "fc1.values" in state["model"]
    assert "fc2.mask" in state["model"]

    whole = suite.append_record
    monkeypatch.setattr(suite, "append_record", lambda *_: (_ for _ in ()).throw(_Killed))
    with pytest.raises(_Killed):
        train(config, RunFolder(tmp_path / "run"))
    monkeypatch.setattr(suite, "append_record", whole)
    monkeypatch.setattr(suite, "choose_backends", None)  # it is not asked again
    train(config, RunFolder(tmp_path / "run"))

    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
