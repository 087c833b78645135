"""A job: every method with every seed, checkpointed, resumed, summed up."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fullspectrum_ext.experiments.checkpoint import load_checkpoint, save_checkpoint
from fullspectrum_ext.experiments.config import TrainConfig
from fullspectrum_ext.experiments.data import FirstPass, load_data
from fullspectrum_ext.experiments.environment import environment
from fullspectrum_ext.experiments.folder import RunFolder
from fullspectrum_ext.experiments.methods import DENSE, make_masks
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.experiments.models.imported import check_fit
from fullspectrum_ext.experiments.progress import TrainingProgress
from fullspectrum_ext.experiments.records import (
    append_record,
    read_json,
    rewind_records,
    write_json,
)
from fullspectrum_ext.experiments.spectrum_logger import SpectrumLogger
from fullspectrum_ext.experiments.training import Run, evaluate, reproducible
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.nn import choose_backends, sparsify
from fullspectrum_ext.spectral import full_spectrum


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
        dataset = load_data(config.data, config.data_path, augment=config.augment)
        self.dataset = dataset.to(torch.device(config.device))
        check_fit(self._build(config.seeds[0]), *self.dataset.train.first(2), dataset.classes)
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
        done = state["epoch"] if state else 0
        self.progress.start_run(f"{title}: pruning", self.config.epochs, done)
        model = self._build(seed)
        if state is None:
            masks, pruning_seconds = self._prune(model, method, seed)
        else:
            masks, pruning_seconds = self._load_masks(state, method, seed), state["pruning_seconds"]
        self.progress.note(title)
        if method != DENSE:
            model = sparsify(model, masks, backend=self._backends(model, masks, method, seed))
        run = Run(self.config, self.dataset, model, seed)
        facts = {
            "config": self.config.digest(),
            "method": method,
            "seed": seed,
            "masks": masks.digest(),
            "pruning_seconds": pruning_seconds,
        }
        checkpoint = self.folder.checkpoint(method, seed)
        if state is None:
            save_checkpoint(checkpoint, facts | run.state_dict())
        else:
            _restore(run, state, checkpoint)
        run.logger = self._logger(run, method, seed)
        while run.epoch < self.config.epochs:
            record = run.train_epoch()
            line = {"method": method, "seed": seed, **record}
            line |= {"density": masks.density, "threads": self.threads}
            append_record(self.folder.records, line)
            save_checkpoint(checkpoint, facts | run.state_dict())
            self.progress.end_epoch()
        if run.logger is not None:
            run.logger.close()
        result = self._judge(run, masks, seed)
        self.progress.end_run(f"{title}: test accuracy {result['test_accuracy']:.2%}")
        times = {"pruning_seconds": pruning_seconds, "training_seconds": run.seconds}
        return {"method": method, "seed": seed, **result, **times}

    def _logger(self, run: Run, method: str, seed: int) -> SpectrumLogger | None:
        if not self.config.coordinate_every:
            return None
        tensorboard = self.folder.tensorboard(method, seed) if self.config.tensorboard else None
        return SpectrumLogger(
            run.model,
            every=self.config.coordinate_every,
            steps=run.steps,
            tensorboard=tensorboard,
        )

    def _build(self, seed: int) -> nn.Module:
        model = build_model(self.config.model, self.dataset.shape, self.dataset.classes, seed)
        if self.dataset.teacher is not None:
            self.dataset.teacher.plant(model)
        return model.to(self.config.device)

    def _prune(self, model: nn.Module, method: str, seed: int) -> tuple[MaskSet, float]:
        """Make the masks of a run, and save them before anything builds on them."""
        start = time.perf_counter()
        masks = make_masks(
            method,
            model,
            sparsity=self.config.sparsity,
            candidates=self.config.candidates,
            data=FirstPass(self.dataset.train, self.config.batch_size, seed),
            seed=seed,
            progress=lambda done, of: self.progress.note(
                f"{method}, seed {seed}: mask {done} of {of}"
            ),
        )
        seconds = time.perf_counter() - start
        path = self.folder.masks(method, seed)
        masks.save(path)
        return MaskSet.load(path), seconds  # as a resumed run has them, on the CPU

    def _load_masks(self, state: dict[str, Any], method: str, seed: int) -> MaskSet:
        path = self.folder.masks(method, seed)
        masks = MaskSet.load(path)
        if masks.digest() != state["masks"]:
            raise ValueError(f"{path}: not the masks that this run was trained with")
        return masks

    def _backends(
        self, model: nn.Module, masks: MaskSet, method: str, seed: int
    ) -> str | Mapping[str, str]:
        # A measured choice is written down before anything builds on it: another measurement may
        # choose otherwise, and a resumed run would not repeat bit for bit.
        if self.config.backend != "measured":
            return self.config.backend
        path = self.folder.backends(method, seed)
        if not path.is_file():
            example, _ = self.dataset.train.first(self.config.batch_size)
            choices = choose_backends(model, masks, example)
            write_json(path, {name: choice.backend for name, choice in choices.items()})
        return read_json(path)

    def _judge(self, run: Run, masks: MaskSet, seed: int) -> dict[str, Any]:
        """The figures of a finished run."""
        test_loss, test_accuracy = evaluate(run.model, self.dataset.test)
        before = full_spectrum(masks, self._build(seed))
        after = full_spectrum(masks, run.model)
        teacher = self.dataset.teacher
        found = {} if teacher is None else {"support_recovered": teacher.recovered(masks)}
        return {
            "kept": masks.nnz,
            "total": masks.numel,
            "sparsity": masks.sparsity,
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "coordinate_before": before.vector.tolist(),
            "coordinate_after": after.vector.tolist(),
            "norm_before": before.norm(),
            "norm_after": after.norm(),
            "anchor_distance": after.distance(before),
            **found,
        }


def _restore(run: Run, state: dict[str, Any], checkpoint: Path) -> None:
    try:
        run.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{checkpoint}: does not fit the run: {error}") from error
