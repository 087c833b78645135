"""What the tests of jobs share: a small job, and its results without what the clock says."""

import json
from pathlib import Path

import pytest

from fullspectrum_ext.experiments import RunFolder, TrainConfig, suite, train
from fullspectrum_ext.experiments.runs_file import read_runs
from fullspectrum_ext.masks import MaskSet

SMALL = TrainConfig(methods=("snip", "dense"), seeds=(0, 1), epochs=3, batch_size=256, threads=1)


def outcome(path: Path) -> dict[str, object]:
    """All that a job leaves, but for times and for where and by whom it was run."""
    folder = RunFolder(path)
    results = json.loads(folder.results.read_text())
    lines = [json.loads(line) for line in folder.records.read_text().splitlines()]
    return {
        "config": folder.config.read_text(),
        "runs": [_timeless(run) for run in results["runs"]],
        "records": [_timeless(line) for line in lines],
        "masks": {
            file.name: MaskSet.load(file) for file in sorted((path / "masks").glob("*.safetensors"))
        },
    }


def left_of_sweep(path: Path) -> tuple[list[dict[str, object]], dict[str, object]]:
    """The lines of a sweep's runs and what each run leaves, as :func:`outcome` says it."""
    runs = [entry | {"run": _timeless(entry["run"])} for entry in read_runs(path)]
    for entry in runs:
        del entry["environment"]
    folders = [file.parent for file in sorted(path.glob("runs/*/*/config.toml"))]
    return runs, {str(folder.relative_to(path)): outcome(folder) for folder in folders}


class _Killed(BaseException):
    """As a signal would come: at any moment, caught by nobody."""


def train_killed(config: TrainConfig, folder: RunFolder, moment: int, *, after: bool) -> None:
    """Train until so many checkpoints are saved, and die before or after saving the next one."""
    save, left = suite.save_checkpoint, [moment]

    def interrupted(path, content):
        if left[0] == 0 and not after:
            raise _Killed
        save(path, content)
        if left[0] == 0:
            raise _Killed
        left[0] -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "save_checkpoint", interrupted)
        with pytest.raises(_Killed):
            train(config, folder)


def _timeless(figures: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in figures.items() if not key.endswith("seconds")}
