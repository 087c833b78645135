"""The runs of a sweep or of a job, one entry each, with all that a report needs of them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fullspectrum_ext._files import write_atomically
from fullspectrum_ext.experiments.folder import RunFolder
from fullspectrum_ext.experiments.records import read_json, read_records

RUNS_FILE = "runs.jsonl"
"""Name of the file in a sweep's folder."""

_KEYS = ("config", "environment", "run", "history")
_EACH_EPOCH = ("epoch", "train_loss", "validation_accuracy")
_COURSES = {  # the steps, and what there is one of at each of them
    "coordinate_steps": ("coordinate_norms", "coordinate_means"),
    "topology_steps": ("topology_overlap", "topology_churn", "topology_explored"),
}


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Read the finished runs of a sweep, of a job, or out of a file of them.

    Args:
        path: The folder of a sweep, the run folder of a job of ``fullspectrum train``, or a file
            like a sweep's ``runs.jsonl``.

    Returns:
        One entry a run, in the order of the plan or the job: ``config`` (the settings, with one
        method and one seed), ``environment``, ``run`` (its figures, as in ``results.json``) and
        ``history`` (lists over epochs: ``epoch``, ``train_loss``, ``validation_accuracy``; over
        measurements, where there were any: ``coordinate_steps``, ``coordinate_norms``,
        ``coordinate_means``, and by layer ``coordinate_layers``; over updates of the topology,
        where there were any: ``topology_steps``, ``topology_overlap``, ``topology_churn``,
        ``topology_explored``). Older records lack some.

    Raises:
        ValueError: If there is nothing of the kind, or no run is finished, or a line is no run.
        FileNotFoundError: If there is nothing at all.
    """
    path = Path(path)
    if (path / RUNS_FILE).is_file():
        path = path / RUNS_FILE
    if path.is_dir():
        folder = RunFolder(path)
        if folder.results.is_file():
            return entries(folder)
        if folder.config.is_file():
            raise ValueError(f"{path}: the job is not finished; the same command goes on with it")
        raise ValueError(
            f"{path}: expected the folder of a sweep with a finished run, or the run folder of "
            f"`fullspectrum train`"
        )
    return [
        _entry(f"{path}: line {number}", line)
        for number, line in enumerate(path.read_bytes().splitlines(), start=1)
    ]


def entries(folder: RunFolder) -> list[dict[str, Any]]:
    """One entry for each run of a finished job, as :func:`read_runs` returns them."""
    results = read_json(folder.results)
    records: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for record in read_records(folder.records):
        records.setdefault((record["method"], record["seed"]), []).append(record)
    return [
        {
            "config": results["config"] | {"methods": [run["method"]], "seeds": [run["seed"]]},
            "environment": results["environment"],
            "run": run,
            "history": _history(records.get((run["method"], run["seed"]), [])),
        }
        for run in results["runs"]
    ]


def write_runs(path: Path, runs: Iterable[Mapping[str, Any]]) -> None:
    """Write entries, one JSON line each, atomically."""
    lines = [json.dumps(run, ensure_ascii=False, allow_nan=False) + "\n" for run in runs]
    write_atomically(path, "".join(lines).encode())


def _history(records: list[Mapping[str, Any]]) -> dict[str, Any]:
    history: dict[str, Any] = {key: [record[key] for record in records] for key in _EACH_EPOCH}
    for steps, keys in _COURSES.items():
        at = _joined(records, steps)
        if at:
            history[steps] = at
            for key in keys:
                values = _joined(records, key)
                if len(values) == len(at):  # a run that an older version began lacks some
                    history[key] = values
    layers = [record["coordinate_layers"] for record in records if "coordinate_layers" in record]
    if "coordinate_means" in history:
        names = dict.fromkeys(name for own in layers for name in own)
        history["coordinate_layers"] = {name: _joined(layers, name) for name in names}
    return history


def _joined(records: list[Mapping[str, Any]], key: str) -> list[Any]:
    return [value for record in records for value in record.get(key, [])]


def _entry(where: str, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON: {error}") from error
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), dict) for key in _KEYS):
        raise ValueError(f"{where}: expected a run, with the keys {', '.join(_KEYS)}")
    return entry
