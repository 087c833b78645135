"""What the tests of jobs share: a small job, and its results without what the clock says."""

import json
from pathlib import Path

from fullspectrum_ext.experiments import RunFolder, TrainConfig
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


def _timeless(figures: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in figures.items() if not key.endswith("seconds")}
