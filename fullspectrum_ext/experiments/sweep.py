"""A sweep: the runs of a plan, each in a folder of its own, by any number of processes."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from fullspectrum_ext._files import write_atomically
from fullspectrum_ext.experiments.config import TrainConfig
from fullspectrum_ext.experiments.folder import RunFolder
from fullspectrum_ext.experiments.plan import Plan, load_plan, run_path
from fullspectrum_ext.experiments.runs_file import RUNS_FILE, entries, write_runs
from fullspectrum_ext.experiments.workers import Outcome, Task, run_tasks

Status = Literal["finished", "failed", "begun", "to do"]


class Sweep:
    """The folder of a sweep: which runs of a plan are done, and the doing of the others.

    Several processes, also on several machines that share the folder, may work on one sweep at the
    same time, with shards or without: a run that another process is at work on is left to it.

    Args:
        plan: What to run.
        path: Its folder; made when first written to.
        shard: ``(i, n)``, i from 1 to n: of the plan's runs only i, i + n, i + 2 n and so on.
    """

    def __init__(self, plan: Plan, path: Path, *, shard: tuple[int, int] = (1, 1)) -> None:
        self.plan = plan
        self.path = Path(path)
        self.runs = plan.runs[shard[0] - 1 :: shard[1]]
        self.runs_file = self.path / RUNS_FILE
        self._plan_file = self.path / "plan.toml"
        self._read: dict[Path, dict[str, Any]] = {}

    def folder(self, config: TrainConfig) -> RunFolder:
        """The folder of one of its runs."""
        return RunFolder(self.path / "runs" / run_path(config))

    def status(self, config: TrainConfig) -> Status:
        """How far a run is."""
        folder = self.folder(config)
        if folder.results.is_file():
            return "finished"
        if folder.error.is_file():
            return "failed"
        return "begun" if folder.records.is_file() else "to do"

    def check(self) -> None:
        """Look for what :meth:`run` would refuse.

        Raises:
            ValueError: If the folder holds another plan, or a run with other settings, or the
                device of a run is not there.
        """
        if self._plan_file.is_file():
            self._check_plan(load_plan(self._plan_file))
        elif self.path.is_dir() and any(not e.name.startswith(".") for e in self.path.iterdir()):
            raise ValueError(f"{self.path}: holds other files than those of a sweep")
        for config in self.runs:
            self.folder(config).check(config.resolved())

    def run(
        self,
        jobs: int,
        *,
        fresh: bool = False,
        report: Callable[[Outcome], None] = lambda _: None,
    ) -> list[Outcome]:
        """Do the runs that are not finished, and gather all that are.

        Interrupted at any moment, even by a kill, it goes on when called again, to the same results
        bit for bit. A run that fails leaves its reason in ``error.txt`` of its folder, the others
        go on, and the next call tries it again.

        Args:
            jobs: Processes to run them in; 1 is this process.
            fresh: Throw away what is in the runs' folders, and do them all.
            report: Called with what came of each run, as they end.

        Returns:
            What came of the runs that were not finished before.

        Raises:
            ValueError: If the folder holds another plan, or a run with other settings, or
                (``fresh``) another process is at work on a run.
        """
        if not fresh:
            self.check()
        self._claim()
        if fresh:
            for config in self.runs:
                with self.folder(config).opened(config.resolved(), fresh=True):
                    pass
        self.gather()
        tasks = [
            Task(config, self.folder(config).path)
            for config in self.runs
            if self.status(config) != "finished"
        ]
        outcomes = []
        with contextlib.closing(run_tasks(tasks, jobs)) as ended:
            for outcome in ended:
                if outcome.status == "finished":
                    self.gather()
                outcomes.append(outcome)
                report(outcome)
        return outcomes

    def is_failed(self, outcomes: Iterable[Outcome]) -> bool:
        """Whether the command is to say by its exit code that a run failed.

        torchrun ends all its processes when one of them says so. There, only a process that leaves
        no run to the others says it, for all.

        Args:
            outcomes: What :meth:`run` returned.

        Returns:
            True if it is.
        """
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return any(outcome.status == "failed" for outcome in outcomes)
        return {self.status(run) for run in self.plan.runs} in ({"failed"}, {"failed", "finished"})

    def gather(self) -> list[dict[str, Any]]:
        """Write ``runs.jsonl``: a line for each run of the plan that is finished, whoever ran it.

        Returns:
            What :func:`fullspectrum_ext.experiments.runs_file.read_runs` reads from it.
        """
        with self._locked():
            plan = self.plan
            if self._plan_file.read_bytes() != plan.content:  # another process has changed it
                plan = load_plan(self._plan_file)
            found = [entry for config in plan.runs if (entry := self._entry(config)) is not None]
            write_runs(self.runs_file, found)
        return found

    def _entry(self, config: TrainConfig) -> dict[str, Any] | None:
        folder = self.folder(config)
        if folder.path not in self._read and folder.results.is_file():
            (self._read[folder.path],) = entries(folder)
        entry = self._read.get(folder.path)
        if entry is None:
            return None
        # 0 stands for some number of threads, on another machine for another.
        settings = TrainConfig(**entry["config"] | {"threads": config.threads})
        return entry if settings == config else None

    def _claim(self) -> None:
        with self._locked():
            for unfinished in self.path.glob(".*.tmp"):  # of a process killed while writing
                unfinished.unlink()
            if not self._plan_file.is_file() or self._plan_file.read_bytes() != self.plan.content:
                write_atomically(self._plan_file, self.plan.content)

    def _check_plan(self, held: Plan) -> None:
        if not {run_path(run) for run in held.runs} & {run_path(run) for run in self.plan.runs}:
            raise ValueError(
                f"{self.path}: holds another plan, of which this one has no run; "
                f"choose another --name"
            )

    @contextlib.contextmanager
    def _locked(self) -> Generator[None, None, None]:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # falls with the process
            yield


def default_jobs(plan: Plan) -> int:
    """How many runs at a time suit this machine.

    Args:
        plan: What is to be run.

    Returns:
        1 where a run is on a GPU; else the CPUs that this process may use, shared with the other
        processes that torchrun started here, divided by the most threads that a run takes.
    """
    if any(torch.device(config.device).type == "cuda" for config in plan.runs):
        return 1
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cpus = os.cpu_count() or 1
    cpus //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, cpus // max(config.resolved().threads for config in plan.runs))


def parse_shard(text: str | None) -> tuple[int, int]:
    """Read ``i/n``, or without it what torchrun says.

    Args:
        text: As of the command line.

    Returns:
        ``(i, n)``; ``(1, 1)``, which is all, where nobody says anything.

    Raises:
        ValueError: If it is no such thing.

    Example:
        >>> parse_shard("2/4")
        (2, 4)
    """
    if text is None:
        return int(os.environ.get("RANK", "0")) + 1, int(os.environ.get("WORLD_SIZE", "1"))
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"--shard: expected i/n, such as 1/4, with i from 1 to n, got {text!r}")
    return int(index), int(count)
