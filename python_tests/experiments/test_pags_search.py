"""PAGS in the driver: a search that is killed goes on, and leaves a trace of what it accepted."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import SMALL, outcome

from fullspectrum_ext.experiments import RunFolder, suite, train
from fullspectrum_ext.experiments.config import to_toml
from fullspectrum_ext.experiments.progress import TrainingProgress
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning import pags as pags_module
from fullspectrum_ext.pruning.pags_checkpoint import SearchFile

METHODS = ("pags:snip", "pags:random:warm:shuffled")
CONFIG = dataclasses.replace(SMALL, methods=METHODS, seeds=(0,), epochs=2, candidates=7)
TOGETHER = 3  # candidates that are measured at a time: the search is saved three times


@pytest.fixture(autouse=True)
def few_together(monkeypatch):
    monkeypatch.setattr(pags_module, "_MOST_TOGETHER", TOGETHER)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    train(CONFIG, RunFolder(path))
    return path


class _Killed(BaseException):
    """As a signal would come: at any moment, caught by nobody."""


class _Notes(TrainingProgress):
    """Remembers which candidates were drawn."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, title):
        if " mask " in title:
            self.notes.append(title)


def traces(path: Path) -> dict[str, object]:
    return {file.name: json.loads(file.read_text()) for file in (path / "traces").iterdir()}


def searches(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "checkpoints").glob("*.search.safetensors"))


def test_the_trace_says_what_was_accepted_and_when(uninterrupted):
    assert searches(uninterrupted) == []
    found = traces(uninterrupted)
    assert sorted(found) == ["pags-random-warm-shuffled-0.json", "pags-snip-0.json"]
    for trace in found.values():
        assert len(trace["norm"]) == 1 + CONFIG.candidates
        assert trace["norm"] == sorted(trace["norm"])
        assert {line["candidate"] for line in trace["trace"]} <= set(range(8))
        counts = {line["layer"]: line["kept"] for line in trace["trace"]}
        assert sum(counts.values()) == 2510
    masks = MaskSet.load(RunFolder(uninterrupted).masks("pags:snip", 0))
    assert masks.meta["pags"] == found["pags-snip-0.json"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("moment", "seen"),
    [("first save", 0), ("second save", 3), ("before masks", 7), ("before checkpoint", 7)],
)
def test_a_killed_search_goes_on_to_the_same_results(uninterrupted, tmp_path, method, moment, seen):
    whole, config = tmp_path / "run", dataclasses.replace(CONFIG, methods=(method,))
    turn = METHODS.index(method)
    name = config.methods[0].replace(":", "-")
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, moment, after_dense=turn == 1)
        with pytest.raises(_Killed):
            train(config, RunFolder(whole))
    assert searches(whole) == [f"{name}-0.search.safetensors"] * (seen > 0)
    notes = _Notes()
    train(config, RunFolder(whole), progress=notes)

    assert notes.notes == [f"{method}, seed 0: mask {i} of 7" for i in range(seen + 1, 8)]
    assert searches(whole) == []
    assert traces(whole)[f"{name}-0.json"] == traces(uninterrupted)[f"{name}-0.json"]
    ended, expected = outcome(whole), outcome(uninterrupted)
    assert ended["runs"] == [run for run in expected["runs"] if run["method"] == method]
    masks = [RunFolder(path).masks(method, 0).read_bytes() for path in (whole, uninterrupted)]
    assert masks[0] == masks[1]


def _kill_at(patch: pytest.MonkeyPatch, moment: str, *, after_dense: bool) -> None:
    """Die before the search, the masks or the checkpoint with them is saved."""
    owner, name, left = {
        "first save": (SearchFile, "save", 0),
        "second save": (SearchFile, "save", 1),
        "before masks": (MaskSet, "save", 3 + after_dense),  # a search is saved as masks
        "before checkpoint": (suite, "save_checkpoint", 2 * after_dense),
    }[moment]
    save, turns = getattr(owner, name), [left]

    def interrupted(*arguments):
        if turns[0] == 0:
            raise _Killed
        turns[0] -= 1
        save(*arguments)

    patch.setattr(owner, name, interrupted)


def test_a_killed_process_is_no_different(uninterrupted, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(to_toml(dataclasses.asdict(CONFIG)))
    program = f"""
import os, signal, sys
from fullspectrum_ext.cli import main
from fullspectrum_ext.pruning import pags
from fullspectrum_ext.pruning.pags_checkpoint import SearchFile
pags._MOST_TOGETHER = {TOGETHER}
save = SearchFile.save
def killed(self, masks):
    save(self, masks)
    os.kill(os.getpid(), signal.SIGKILL)
SearchFile.save = killed
sys.argv = ["fullspectrum", "train", "--config", {str(config)!r}, "--out", {str(tmp_path)!r},
            "--name", "run"]
main()
"""
    process = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert searches(tmp_path / "run") == ["pags-snip-0.search.safetensors"]
    notes = _Notes()
    train(CONFIG, RunFolder(tmp_path / "run"), progress=notes)

    assert notes.notes[0] == "pags:snip, seed 0: mask 4 of 7"
    assert outcome(tmp_path / "run") == outcome(uninterrupted)
    assert traces(tmp_path / "run") == traces(uninterrupted)
