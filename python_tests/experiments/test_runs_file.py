import dataclasses
import json
import shutil

import pytest
from jobs import SMALL

from fullspectrum_ext.experiments import RunFolder, train
from fullspectrum_ext.experiments.runs_file import read_runs, write_runs


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    path = tmp_path_factory.mktemp("job") / "run"
    train(dataclasses.replace(SMALL, epochs=2, coordinate_every=2), RunFolder(path))
    return path


def test_a_job_is_one_entry_a_run_with_one_method_and_one_seed(job):
    results = json.loads((job / "results.json").read_text())
    records = [json.loads(line) for line in (job / "records.jsonl").read_text().splitlines()]

    runs = read_runs(job)

    assert [entry["run"] for entry in runs] == results["runs"]
    assert [(e["config"]["methods"], e["config"]["seeds"]) for e in runs] == [
        ([run["method"]], [run["seed"]]) for run in results["runs"]
    ]
    assert all(entry["config"]["epochs"] == 2 for entry in runs)
    assert all(entry["environment"] == results["environment"] for entry in runs)
    for number, entry in enumerate(runs):
        first, second = records[2 * number : 2 * number + 2]
        assert entry["history"] == {
            "epoch": [1, 2],
            "train_loss": [first["train_loss"], second["train_loss"]],
            "validation_accuracy": [r["validation_accuracy"] for r in (first, second)],
            "coordinate_steps": first["coordinate_steps"] + second["coordinate_steps"],
            "coordinate_norms": first["coordinate_norms"] + second["coordinate_norms"],
            "coordinate_means": first["coordinate_means"] + second["coordinate_means"],
            "coordinate_layers": {
                name: first["coordinate_layers"][name] + second["coordinate_layers"][name]
                for name in ("fc1.weight", "fc2.weight", "fc3.weight")
            },
        }
        assert len(entry["history"]["coordinate_steps"]) > 1


def test_records_of_an_older_version_are_read_without_what_they_lack(job, tmp_path):
    shutil.copytree(job, tmp_path / "old")
    records = tmp_path / "old" / "records.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    for line in lines[::2]:  # the first epoch of each run
        for key in ("coordinate_means", "coordinate_layers"):
            del line[key]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))

    for entry, whole in zip(read_runs(tmp_path / "old"), read_runs(job), strict=True):
        for key in ("coordinate_means", "coordinate_layers"):
            del whole["history"][key]
        assert entry == whole


def test_files_and_folders_of_sweeps_are_read_as_written(job, tmp_path):
    runs = read_runs(job)

    write_runs(tmp_path / "runs.jsonl", runs)

    assert read_runs(tmp_path) == read_runs(tmp_path / "runs.jsonl") == runs
    assert (tmp_path / "runs.jsonl").read_bytes().count(b"\n") == len(runs)


def test_what_is_no_run_is_refused_in_words(tmp_path):
    file = tmp_path / "other.jsonl"
    with pytest.raises(FileNotFoundError):
        read_runs(file)
    file.write_text('{"config": {}, "environment": {}, "run": {}, "history": {}}\n{"epoch": 1}\n')
    with pytest.raises(ValueError, match=r"other\.jsonl: line 2: expected a run, with the keys co"):
        read_runs(file)
    file.write_text('{"config": {}\n')
    with pytest.raises(ValueError, match=r"other\.jsonl: line 1: expected JSON"):
        read_runs(file)
    with pytest.raises(ValueError, match="expected the folder of a sweep with a finished run"):
        read_runs(tmp_path)
    with RunFolder(tmp_path / "run").opened(SMALL), pytest.raises(ValueError, match="not finished"):
        read_runs(tmp_path / "run")
