"""The run folder: which files a job writes, for which settings, one process at a time."""

import contextlib
import dataclasses
import fcntl
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

from fullspectrum_ext._files import write_atomically
from fullspectrum_ext.experiments.config import TrainConfig, load_config, to_toml


class FolderInUseError(ValueError):
    """Another process is at work in a folder."""


class RunFolder:
    """Names of the files in the folder of one job.

    Args:
        path: The folder; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.records = self.path / "records.jsonl"
        self.results = self.path / "results.json"
        self.figure = self.path / "figure.png"
        self.error = self.path / "error.txt"
        self._checkpoints = self.path / "checkpoints"
        self._masks = self.path / "masks"
        self._traces = self.path / "traces"
        self._backends = self.path / "backends"
        self._tensorboard = self.path / "tensorboard"
        self._lock = self.path / ".lock"

    def checkpoint(self, method: str, seed: int) -> Path:
        """File of a run's checkpoint."""
        return self._checkpoints / f"{_file_name(method)}-{seed}.pt"

    def search(self, method: str, seed: int, stage: int | None = None) -> Path:
        """File that a search for a stage's masks goes on from, while there is one."""
        return self._checkpoints / f"{_file_name(method)}-{seed}{_suffix(stage)}.search.safetensors"

    def trace(self, method: str, seed: int) -> Path:
        """File that says what a run of pags accepted, and when."""
        return self._traces / f"{_file_name(method)}-{seed}.json"

    def masks(self, method: str, seed: int, stage: int | None = None) -> Path:
        """File of a run's masks: of its last stage, or of an earlier one, from 0."""
        return self._masks / f"{_file_name(method)}-{seed}{_suffix(stage)}.safetensors"

    def backends(self, method: str, seed: int, stage: int | None = None) -> Path:
        """File of the backends that were measured to be the faster ones in a run's stage."""
        return self._backends / f"{_file_name(method)}-{seed}{_suffix(stage)}.json"

    def tensorboard(self, method: str, seed: int) -> Path:
        """Folder of a run's TensorBoard events."""
        return self._tensorboard / f"{_file_name(method)}-{seed}"

    @contextlib.contextmanager
    def opened(self, config: TrainConfig, *, fresh: bool = False) -> Generator[None, None, None]:
        """Claim the folder for a job and this process.

        Args:
            config: Settings of the job; a folder that holds those of another one is refused.
            fresh: Throw away what a job left there, whatever its settings were.

        Yields:
            Nothing; the folder is locked within.

        Raises:
            FolderInUseError: If another process is at work in it.
            ValueError: If the folder belongs to another job or is no run folder.
        """
        self._check_entries()
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # falls with the process
            except OSError as error:
                raise FolderInUseError(f"{self.path}: another process is training in it") from error
            for unfinished in self.path.rglob(".*.tmp"):  # of a process killed while writing
                unfinished.unlink()
            if fresh:
                self._clear()
            self._check_config(config)
            if not self.config.is_file():
                write_atomically(self.config, to_toml(dataclasses.asdict(config)).encode())
            yield

    def check(self, config: TrainConfig) -> None:
        """Raise the ValueError that :meth:`opened` would, but for a folder in use, and do nothing.

        Args:
            config: Settings of the job.
        """
        self._check_entries()
        self._check_config(config)

    def _check_entries(self) -> None:
        if self.path.exists() and not self.config.is_file() and any(self._strange_entries()):
            raise ValueError(f"{self.path}: holds other files than those of a run; choose another")

    def _check_config(self, config: TrainConfig) -> None:
        if not self.config.is_file():
            return
        differences = load_config(self.config).differences(config)
        if differences:
            raise ValueError(
                f"{self.path}: holds a run with other settings ({'; '.join(differences)}); "
                f"choose another --name, or throw that run away with --fresh"
            )

    def _strange_entries(self) -> Iterator[Path]:
        # a run of a sweep may have failed before it wrote anything else
        entries = (entry for entry in self.path.iterdir() if entry != self.error)
        return (entry for entry in entries if not entry.name.startswith("."))

    def _clear(self) -> None:
        """Remove a job's files; whatever is left after a kill in the middle is run again."""
        self.results.unlink(missing_ok=True)
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        for file in (self.records, self.figure, self.error):
            file.unlink(missing_ok=True)
        for part in (self._masks, self._traces, self._backends, self._tensorboard):
            shutil.rmtree(part, ignore_errors=True)
        self.config.unlink(missing_ok=True)


def _file_name(method: str) -> str:
    return method.replace(":", "-")


def _suffix(stage: int | None) -> str:
    return "" if stage is None else f"-stage{stage}"
