"""What a report is made of: finished runs, and what a sweep's folder says of the others."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from fullspectrum_ext.experiments.config import TrainConfig
from fullspectrum_ext.experiments.plan import load_plan, run_path
from fullspectrum_ext.experiments.report.study import Failure, Study, sort_runs
from fullspectrum_ext.experiments.runs_file import read_runs
from fullspectrum_ext.experiments.sweep import Sweep

_TITLE = "Pruning methods compared"


def read_study(paths: Sequence[Path]) -> Study:
    """Read all runs of some folders and files.

    Args:
        paths: See :func:`fullspectrum_ext.experiments.runs_file.read_runs`. Of a sweep's folder its
            plan is read too: for the title, the published numbers, and the runs that are missing.

    Returns:
        The study.

    Raises:
        ValueError: If there is no finished run, or a file is not what it should be.
    """
    found = {path: read_runs(path) for path in paths}
    panels, repeated = sort_runs(itertools.chain.from_iterable(found.values()))
    if not panels:
        raise ValueError(f"{', '.join(map(str, paths))}: no run is finished yet")
    sweeps = [
        Sweep(load_plan(path / "plan.toml"), path)
        for path in paths
        if (path / "plan.toml").is_file()
    ]
    absent, failures = [], []
    for sweep in sweeps:
        # by its line, not by its folder: records may be kept without the folders of the runs
        finished = {run_path(TrainConfig(**run["config"])) for run in found[sweep.path]}
        for config in sweep.plan.runs:
            name = run_path(config)
            if name in finished:
                continue
            if sweep.status(config) == "failed":
                failures.append(Failure(name.as_posix(), _error(sweep.folder(config).error)))
            else:
                absent.append(name.as_posix())
    return Study(
        ", ".join(dict.fromkeys(sweep.plan.title for sweep in sweeps)) or _TITLE,
        panels,
        repeated,
        absent if sweeps else None,
        failures,
        [number for sweep in sweeps for number in sweep.plan.published],
    )


def _error(file: Path) -> str:
    """The last line of a failed run's reason: of a traceback, the error itself."""
    lines = file.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "unknown"
