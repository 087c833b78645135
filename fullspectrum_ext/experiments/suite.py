"""A job: every method with every seed, checkpointed, resumed, summed up."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fullspectrum_ext.experiments.checkpoint import load_checkpoint, save_checkpoint
from fullspectrum_ext.experiments.config import TrainConfig
from fullspectrum_ext.experiments.data import Dataset, FirstPass, load_data
from fullspectrum_ext.experiments.environment import environment
from fullspectrum_ext.experiments.folder import RunFolder
from fullspectrum_ext.experiments.methods import make_procedure, parse_method
from fullspectrum_ext.experiments.models import build_model
from fullspectrum_ext.experiments.models.imported import check_fit
from fullspectrum_ext.experiments.procedures import StageStart, schedule_epochs
from fullspectrum_ext.experiments.progress import TrainingProgress
from fullspectrum_ext.experiments.records import (
    append_record,
    read_json,
    rewind_records,
    write_json,
)
from fullspectrum_ext.experiments.snapshot import Snapshot, load_progress, take_snapshot
from fullspectrum_ext.experiments.spectrum_logger import SpectrumLogger
from fullspectrum_ext.experiments.training import Run, evaluate, reproducible
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.nn import choose_backends, sparsify
from fullspectrum_ext.pruning.audit import REINITIALISED, audit
from fullspectrum_ext.spectral import full_spectrum


def train(
    config: TrainConfig,
    folder: RunFolder,
    *,
    fresh: bool = False,
    progress: TrainingProgress | None = None,
    load: Callable[..., Dataset] | None = None,
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
        load: Called in the place of :func:`fullspectrum_ext.experiments.data.load_data`.

    Returns:
        What ``results.json`` holds: settings, environment, and the figures of each run.
    """
    config = config.resolved()
    with folder.opened(config, fresh=fresh), reproducible(config.threads):
        if folder.results.is_file():
            return read_json(folder.results)
        dataset = (load or load_data)(config.data, config.data_path, augment=config.augment)
        job = _Job(config, folder, dataset, progress or TrainingProgress())
        write_json(folder.results, job.run())
        return read_json(folder.results)


class _Job:
    """The runs of a job, one after the other, in an open folder."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, dataset: Dataset, progress: TrainingProgress
    ) -> None:
        self.config = config
        self.folder = folder
        self.progress = progress
        self.threads = torch.get_num_threads()
        self.dataset = dataset.to(torch.device(config.device))
        # A seed's methods come together, so that an unfinished job already compares them.
        self.order = [(method, seed) for seed in config.seeds for method in config.methods]

    def run(self) -> dict[str, Any]:
        """Run what is not yet run, and sum up all of it."""
        states = {run: self._load(*run) for run in self.order}
        done = {run: state["epoch"] if state else 0 for run, state in states.items()}
        rewind_records(self.folder.records, done)
        runs = {run: _MethodRun(self, *run) for run in self.order}
        with self.progress:
            self.progress.start_job(sum(run.epochs for run in runs.values()))
            results = [runs.pop(run).complete(states.pop(run)) for run in self.order]
        settings = dataclasses.asdict(self.config)
        return {"config": settings, "environment": environment(), "runs": results}

    def _load(self, method: str, seed: int) -> dict[str, Any] | None:
        path = self.folder.checkpoint(method, seed)
        if not path.is_file():
            return None
        expected = {"config": self.config.digest(), "method": method, "seed": seed}
        return load_checkpoint(path, **expected)


class _MethodRun:
    """One method with one seed, stage by stage."""

    run: Run
    masks: MaskSet  # those that the stage began with

    def __init__(self, job: _Job, method: str, seed: int) -> None:
        self.config, self.folder, self.dataset = job.config, job.folder, job.dataset
        self.progress, self.threads = job.progress, job.threads
        self.method, self.seed = method, seed
        self.title = f"{method}, seed {seed}"
        self.ablation = parse_method(method).audit
        self.procedure = make_procedure(method, job.config, seed)
        self.stages = self.procedure.stages
        self.stage = 0
        self.kept: Snapshot | None = None
        self.pruning_seconds = 0.0

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def complete(self, state: dict[str, Any] | None) -> dict[str, Any]:
        """Bring the run from its checkpoint, or from nothing, to its end and judge it."""
        done = state["epoch"] if state else 0
        if torch.device(self.config.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.config.device)
        self.progress.start_run(f"{self.title}: pruning", self.epochs, done)
        if state is None:
            self._begin_first()
        else:
            self._resume(state)
        self._train_stage()
        while not self._is_last():
            self._begin_next()
            self._train_stage()
        result = self._judge()
        self.progress.end_run(f"{self.title}: test accuracy {result['test_accuracy']:.2%}")
        times = {"pruning_seconds": self.pruning_seconds, "training_seconds": self.run.seconds}
        return {"method": self.method, "seed": self.seed, **result, **times}

    # ---- stages ----------------------------------------------------------------------------------

    def _begin_first(self) -> None:
        model = self._build()
        check_fit(model, *self.dataset.train.first(2), self.dataset.classes)
        self._make_run(self._prune(model, None))
        self.run.hook = self.procedure.hook(0, self.run)
        self._save()

    def _begin_next(self) -> None:
        """Go from the end of a stage to the begin of the next one."""
        ended, before = self.run, self._masks_now()
        snapshot = take_snapshot(ended, before)
        if self.stages[self.stage].keeps or self.stages[self.stage].is_anchor:
            self.kept = snapshot
        self.stage += 1
        start = self.stages[self.stage].start
        model = self._build()
        model.load_state_dict(snapshot["model"])
        self._make_run(self._prune(model, before))
        self.run.go_on_after(ended)
        if start == "rewind" and self.kept is not None:
            load_progress(self.run, self.kept, self.masks)
        if start == "continue":
            load_progress(self.run, snapshot, self.masks)
        self.run.hook = self.procedure.hook(self.stage, self.run)
        self._save()

    def _resume(self, state: dict[str, Any]) -> None:
        checkpoint = self.folder.checkpoint(self.method, self.seed)
        self.stage, self.kept = state["stage"], state["kept"]
        self.pruning_seconds = state["pruning_seconds"]
        path = self.folder.masks(self.method, self.seed, self._stage_in_names())
        self.masks = MaskSet.load(path)
        if self.masks.digest() != state["masks"]:
            raise ValueError(f"{path}: not the masks that this run was trained with")
        self._make_run(self._build())
        self.run.hook = self.procedure.hook(self.stage, self.run)
        try:
            self.run.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{checkpoint}: does not fit the run: {error}") from error

    def _train_stage(self) -> None:
        self._search_file().unlink(missing_ok=True)  # what it found is in the run's checkpoint
        title = self.stages[self.stage].title
        self.progress.note(f"{self.title}: {title}" if title else self.title)
        end = sum(stage.epochs for stage in self.stages[: self.stage + 1])
        self.run.logger = self._logger()
        if self.run.topology is not None and self.run.logger is not None:
            self.run.topology.writer = self.run.logger.writer
        while self.run.epoch < end:
            with self._named():
                record = self.run.train_epoch()
            line = {"method": self.method, "seed": self.seed, **record}
            line |= {"density": self._masks_now().density, "threads": self.threads}
            append_record(self.folder.records, line)
            self._save()
            self.progress.end_epoch()
        if self.run.logger is not None:
            self.run.logger.close()

    @contextlib.contextmanager
    def _named(self) -> Generator[None, None, None]:
        """Say of an error which method and seed it is of: a job has many."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.title}: {error}") from error

    # ---- parts of a stage ------------------------------------------------------------------------

    def _build(self) -> nn.Module:
        config, dataset = self.config, self.dataset
        model = build_model(config.model, dataset.shape, dataset.classes, self.seed)
        if dataset.teacher is not None:
            dataset.teacher.plant(model)
        return model.to(config.device)

    def _prune(self, model: nn.Module, before: MaskSet | None) -> nn.Module:
        """Make the masks of the stage, and save them before anything builds on them.

        Args:
            model: Dense, with the weights at the end of the stage before.
            before: The masks then; None in the first stage.

        Returns:
            The dense model with the weights that the stage begins with.
        """
        clock = time.perf_counter()
        start = StageStart(
            model,
            before,
            data=FirstPass(self.dataset.train, self.config.batch_size, self.seed),
            note=lambda words: self.progress.note(f"{self.title}: {words}"),
            search=self._search_file(),
        )
        with self._named():
            masks = self.procedure.masks(self.stage, start)
        if self.stages[self.stage].start == "rewind" and self.kept is not None:
            model.load_state_dict(self.kept["model"])
        if self.ablation and self._is_last():
            model, masks = audit(model, masks, self.ablation, seed=self.seed)
        self.pruning_seconds += time.perf_counter() - clock
        if "pags" in masks.meta:
            write_json(self.folder.trace(self.method, self.seed), masks.meta["pags"])
        path = self.folder.masks(self.method, self.seed, self._stage_in_names())
        masks.save(path)
        self.masks = MaskSet.load(path)  # as a resumed run has them, on the CPU
        return model

    def _make_run(self, model: nn.Module) -> None:
        if self.masks.nnz < self.masks.numel:
            model = sparsify(model, self.masks, backend=self._backends(model))
        schedule = schedule_epochs(self.stages, self.stage)
        self.run = Run(self.config, self.dataset, model, self.seed, schedule)

    def _backends(self, model: nn.Module) -> str | Mapping[str, str]:
        # A measured choice is written down before anything builds on it: another measurement may
        # choose otherwise, and a resumed run would not repeat bit for bit.
        if self.config.backend != "measured":
            return self.config.backend
        path = self.folder.backends(self.method, self.seed, self._stage_in_names())
        if not path.is_file():
            example, _ = self.dataset.train.first(self.config.batch_size)
            choices = choose_backends(model, self.masks, example)
            write_json(path, {name: choice.backend for name, choice in choices.items()})
        return read_json(path)

    def _logger(self) -> SpectrumLogger | None:
        if not self.config.coordinate_every:
            return None
        tensorboard = self.folder.tensorboard(self.method, self.seed)
        return SpectrumLogger(
            self.run.model,
            every=self.config.coordinate_every,
            steps=self.run.steps,
            tensorboard=tensorboard if self.config.tensorboard else None,
        )

    def _masks_now(self) -> MaskSet:
        return self.masks if self.run.hook is None else self.run.hook.masks

    def _search_file(self) -> Path:
        return self.folder.search(self.method, self.seed, self._stage_in_names())

    def _stage_in_names(self) -> int | None:
        """What the names of the stage's files hold; nothing for the last one, whose masks stay."""
        return None if self._is_last() else self.stage

    def _is_last(self) -> bool:
        return self.stage + 1 == len(self.stages)

    def _save(self) -> None:
        facts = {
            "config": self.config.digest(),
            "method": self.method,
            "seed": self.seed,
            "stage": self.stage,
            "masks": self.masks.digest(),
            "kept": self.kept,
            "pruning_seconds": self.pruning_seconds,
        }
        path = self.folder.checkpoint(self.method, self.seed)
        save_checkpoint(path, facts | self.run.state_dict())

    def _judge(self) -> dict[str, Any]:
        """The figures of a finished run."""
        test_loss, test_accuracy = evaluate(self.run.model, self.dataset.test)
        initial = self._build()
        if self.kept is not None and any(stage.is_anchor for stage in self.stages):
            initial.load_state_dict(self.kept["model"])
        if self.ablation == REINITIALISED:
            initial = audit(initial, self.masks, self.ablation, seed=self.seed).model
        before = full_spectrum(self.masks, initial)
        after = full_spectrum(self.masks, self.run.model)
        first = self.folder.masks(self.method, self.seed, 0 if len(self.stages) > 1 else None)
        began = MaskSet.load(first)
        teacher = self.dataset.teacher
        found = {} if teacher is None else {"support_recovered": teacher.recovered(self.masks)}
        return {
            "kept": self.masks.nnz,
            "total": self.masks.numel,
            "sparsity": self.masks.sparsity,
            "layer_densities": {
                name: int(mask.count_nonzero()) / mask.numel() for name, mask in self.masks.items()
            },
            **({"degrees_before": _degrees(began)} if began != self.masks else {}),
            "degrees_after": _degrees(self.masks),
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "coordinate_before": before.vector.tolist(),
            "coordinate_after": after.vector.tolist(),
            "norm_before": before.norm(),
            "norm_after": after.norm(),
            "anchor_distance": after.distance(before),
            "held_bytes": self.run.held_bytes,
            **self._peak(),
            **found,
        }

    def _peak(self) -> dict[str, int]:
        """The most bytes that were ever taken on a GPU, by what of the run was in this process."""
        device = torch.device(self.config.device)
        if device.type != "cuda":
            return {}
        return {"peak_bytes": torch.cuda.max_memory_allocated(device)}


def _degrees(masks: MaskSet) -> dict[str, dict[str, list[list[int]]]]:
    """How often each in- and out-degree comes in each layer."""
    return {name: masks.degrees(name).histograms() for name in masks}
