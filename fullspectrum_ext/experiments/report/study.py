"""The runs of a report: what belongs to one comparison, and what one asks of it."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fullspectrum_ext.experiments.plan import Published
from fullspectrum_ext.experiments.report.names import DENSE

Entry = Mapping[str, Any]
# Settings by which runs of one comparison may differ: what is compared, where, and what is noted.
_COMPARED = {"methods", "seeds", "sparsity", "data", "model"}
_NEEDED = {"config": ("data", "model", "sparsity"), "run": ("method", "seed")}
_INCIDENTAL = {"data_path", "device", "threads", "backend", "coordinate_every", "tensorboard"}


@dataclass(frozen=True)
class Run:
    """One finished run."""

    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    figures: Mapping[str, Any]
    history: Mapping[str, Any]

    @property
    def method(self) -> str:
        """Its name."""
        return str(self.figures["method"])

    @property
    def seed(self) -> int:
        """Of everything random in it."""
        return int(self.figures["seed"])

    @property
    def sparsity(self) -> float:
        """What was asked for; what came may differ (dense, drift)."""
        return float(self.config["sparsity"])

    def number(self, name: str) -> float:
        """One of its figures; nan where it is not there."""
        value = self.figures.get(name)
        return math.nan if value is None else float(value)

    @property
    def accuracy(self) -> float:
        """On the test data, in percent."""
        return 100 * self.number("test_accuracy")

    @property
    def density(self) -> float:
        """Share of the weights that it kept."""
        return self.number("kept") / self.number("total")


@dataclass(frozen=True)
class Panel:
    """Runs that are comparable: one data set, one model.

    Attributes:
        name: For people.
        key: For names of files.
        runs: In the order of the records.
    """

    name: str
    key: str
    runs: tuple[Run, ...]

    @cached_property
    def methods(self) -> list[str]:
        """In the order of the records."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @cached_property
    def sparsities(self) -> list[float]:
        """Those asked for, rising; not one at which nothing but ``dense`` was run."""
        pruned = {run.sparsity for run in self.runs if run.method != DENSE}
        return sorted(pruned or {run.sparsity for run in self.runs})

    @cached_property
    def dense(self) -> list[Run]:
        """Runs without pruning, whatever sparsity was asked for: one a seed."""
        return list({run.seed: run for run in self.runs if run.method == DENSE}.values())

    @cached_property
    def _cells(self) -> dict[tuple[str, float], list[Run]]:
        cells: dict[tuple[str, float], list[Run]] = {}
        for run in self.runs:
            cells.setdefault((run.method, run.sparsity), []).append(run)
        return cells

    def cell(self, method: str, sparsity: float) -> list[Run]:
        """The runs of a method at a sparsity: its seeds. Those of ``dense`` stand everywhere."""
        return self.dense if method == DENSE else self._cells.get((method, sparsity), [])

    def finite(self, method: str, sparsity: float, name: str) -> list[float]:
        """A figure of these runs (accuracy in percent), where it is a finite number."""
        scale = 100 if name in {"test_accuracy", "support_recovered"} else 1
        values = [scale * run.number(name) for run in self.cell(method, sparsity)]
        return [value for value in values if math.isfinite(value)]


@dataclass(frozen=True)
class Failure:
    """A run that ended in an error."""

    name: str
    error: str


@dataclass(frozen=True)
class Study:
    """All that a report is about.

    Attributes:
        title: Of the page.
        panels: The comparisons.
        repeated: Runs that came again and were left out.
        absent: Names of planned runs that are not finished; None where no plan says.
        failures: Runs that ended in an error.
        published: Numbers of papers.
    """

    title: str
    panels: Sequence[Panel]
    repeated: int = 0
    absent: Sequence[str] | None = None
    failures: Sequence[Failure] = ()
    published: Sequence[Published] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for panel in self.panels for run in panel.runs]


def sort_runs(entries: Iterable[Entry]) -> tuple[list[Panel], int]:
    """Put runs that are comparable together.

    Runs of one data set and model make a panel. Where there are two of one method, sparsity and
    seed with different settings, the settings they differ in make panels of their own; of two with
    the same settings the first is taken.

    Args:
        entries: As :func:`fullspectrum_ext.experiments.runs_file.read_runs` returns them.

    Returns:
        The panels, and how many runs came again.

    Raises:
        ValueError: If a run lacks what says where it belongs.
    """
    groups: dict[tuple[str, str], dict[tuple[Any, ...], list[Run]]] = {}
    seen, repeated = set(), 0
    for number, entry in enumerate(entries, start=1):
        for part, names in _NEEDED.items():
            for name in names:
                if name not in entry[part]:
                    raise ValueError(f"run {number}: expected {name} in its {part}, there is none")
        run = Run(entry["config"], entry["environment"], entry["run"], entry["history"])
        place = (run.method, run.sparsity, run.seed)
        group = (str(run.config["model"]), str(run.config["data"]))
        again = (group, place, _settings(run))
        if again in seen:
            repeated += 1
            continue
        seen.add(again)
        groups.setdefault(group, {}).setdefault(place, []).append(run)
    panels = [panel for group, places in groups.items() for panel in _panels(group, places)]
    return _with_own_keys(panels), repeated


def _settings(run: Run) -> str:
    kept = {k: v for k, v in run.config.items() if k not in _COMPARED | _INCIDENTAL}
    return json.dumps(kept, sort_keys=True)


def _panels(group: tuple[str, str], places: Mapping[Any, Sequence[Run]]) -> list[Panel]:
    """Split the runs of a data set and model by what runs of the same place differ in."""
    names = {name for runs in places.values() for name in differing(runs)}
    panels: dict[str, list[Run]] = {}
    for run in (run for runs in places.values() for run in runs):
        more = [f"{name} {_word(run.config.get(name))}" for name in sorted(names)]
        panels.setdefault(", ".join([" on ".join(group), *more]), []).append(run)
    return [Panel(name, _file_name(name), tuple(runs)) for name, runs in panels.items()]


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings that runs of a comparison differ in, with their values in words."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    found = {}
    for name in names:
        values = list(dict.fromkeys(_word(run.config.get(name)) for run in runs))
        if len(values) > 1 and name not in _COMPARED | _INCIDENTAL:
            found[name] = values
    return found


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _file_name(name: str) -> str:
    """Letters and digits of a name, with dashes between."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in name).split()
    return "-".join(words).lower()


def _with_own_keys(panels: Sequence[Panel]) -> list[Panel]:
    """Number those whose names of files would be the same."""
    counts: Counter[str] = Counter()
    found = []
    for panel in panels:
        counts[panel.key] += 1
        number = f"-{counts[panel.key]}" if counts[panel.key] > 1 else ""
        found.append(dataclasses.replace(panel, key=panel.key + number))
    return found
