"""A job: every method with every seed, checkpointed, resumed, summed up."""

import dataclasses
from typing import Any

import torch
from torch import nn

from fullspectrum_ext.experiments.checkpoint import load_checkpoint, save_checkpoint
from fullspectrum_ext.experiments.config import TrainConfig
from fullspectrum_ext.experiments.data import load_data
from fullspectrum_ext.experiments.environment import environment
from fullspectrum_ext.experiments.folder import RunFolder
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.experiments.progress import TrainingProgress
from fullspectrum_ext.experiments.records import (
    append_record,
    read_json,
    rewind_records,
    write_json,
)
from fullspectrum_ext.experiments.training import Run, evaluate, reproducible


def train(
    config: TrainConfig,
    folder: RunFolder,
    *,
    fresh: bool = False,
    progress: TrainingProgress | None = None,
) -> dict[str, Any]:
    """Run a job, or what is left of it.

    After every epoch the records have one line more and the run's checkpoint is replaced, each
    atomically. Called again after an interruption, even a kill, the job goes on from there and ends
    with the same results bit for bit. Called again when all is done, it returns the results.
    A folder of another job, or a damaged file in it, is a ValueError that names it.

    Args:
        config: Settings.
        folder: Where all files go.
        fresh: Throw away what is in the folder and start anew.
        progress: Where to show how far it is.

    Returns:
        What ``results.json`` holds: settings, environment, and the figures of each run.
    """
    config = config.resolved()
    with folder.opened(config, fresh=fresh), reproducible(config.threads):
        if folder.results.is_file():
            return read_json(folder.results)
        job = _Job(config, folder, progress or TrainingProgress())
        write_json(folder.results, job.run())
        return read_json(folder.results)


class _Job:
    """The runs of a job, one after the other, in an open folder."""

    def __init__(self, config: TrainConfig, folder: RunFolder, progress: TrainingProgress) -> None:
        self.config = config
        self.folder = folder
        self.progress = progress
        self.threads = torch.get_num_threads()
        self.dataset = load_data(config.data).to(torch.device(config.device))
        # A seed's methods come together, so that an unfinished job already compares them.
        self.order = [(method, seed) for seed in config.seeds for method in config.methods]

    def run(self) -> dict[str, Any]:
        """Run what is not yet run, and sum up all of it."""
        states = {run: self._load(*run) for run in self.order}
        done = {run: state["epoch"] if state else 0 for run, state in states.items()}
        rewind_records(self.folder.records, done)
        with self.progress:
            self.progress.start_job(self.config.epochs * len(self.order))
            runs = [self._one_run(*run, states.pop(run)) for run in self.order]
        settings = dataclasses.asdict(self.config)
        return {"config": settings, "environment": environment(), "runs": runs}

    def _load(self, method: str, seed: int) -> dict[str, Any] | None:
        path = self.folder.checkpoint(method, seed)
        if not path.is_file():
            return None
        expected = {"config": self.config.digest(), "method": method, "seed": seed}
        return load_checkpoint(path, **expected)

    def _one_run(self, method: str, seed: int, state: dict[str, Any] | None) -> dict[str, Any]:
        """Bring one run from its checkpoint, or from nothing, to its end and judge it."""
        title = f"{method}, seed {seed}"
        self.progress.start_run(title, self.config.epochs, state["epoch"] if state else 0)
        model = self._build(seed)
        run = Run(self.config, self.dataset, model, seed)
        if state:
            self._restore(run, state, method, seed)
        while run.epoch < self.config.epochs:
            record = run.train_epoch()
            line = {"method": method, "seed": seed, **record, "threads": self.threads}
            append_record(self.folder.records, line)
            self._save(run, method, seed)
            self.progress.end_epoch(record)
        result = self._judge(run, method, seed)
        self.progress.end_run(f"{title}: test accuracy {result['test_accuracy']:.2%}")
        return result

    def _build(self, seed: int) -> nn.Module:
        model = build_model(self.config.model, self.dataset.shape, self.dataset.classes, seed)
        return model.to(self.config.device)

    def _save(self, run: Run, method: str, seed: int) -> None:
        state = {"config": self.config.digest(), "method": method, "seed": seed}
        save_checkpoint(self.folder.checkpoint(method, seed), state | run.state_dict())

    def _restore(self, run: Run, state: dict[str, Any], method: str, seed: int) -> None:
        try:
            run.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            path = self.folder.checkpoint(method, seed)
            raise ValueError(f"{path}: does not fit the run: {error}") from error

    def _judge(self, run: Run, method: str, seed: int) -> dict[str, Any]:
        """The figures of a finished run."""
        test_loss, test_accuracy = evaluate(run.model, self.dataset.test)
        return {
            "method": method,
            "seed": seed,
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "training_seconds": run.seconds,
        }
