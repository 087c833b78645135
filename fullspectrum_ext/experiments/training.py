"""One run: a model, its masks and its optimizer, epoch by epoch, resumable after each."""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullspectrum_ext.dynamic import TopologyLogger
from fullspectrum_ext.experiments.config import TrainConfig
from fullspectrum_ext.experiments.data import Batches, Dataset, Split
from fullspectrum_ext.experiments.procedures import Hook
from fullspectrum_ext.experiments.spectrum_logger import SpectrumLogger
from fullspectrum_ext.nn import training_bytes


@contextlib.contextmanager
def reproducible(threads: int) -> Generator[None, None, None]:
    """Within it, torch uses this many threads and only operations that repeat bit for bit."""
    before = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic)


Forward = Callable[[], tuple[Tensor, Tensor]]
"""Passes the batch through the model once: the outputs and the loss."""


def one_backward(forward: Forward) -> tuple[Tensor, Tensor]:
    """Pass a batch forward and backward once: what most methods need of a step."""
    output, loss = forward()
    loss.backward()
    return output, loss


class Run:
    """One method with one seed, at the end of some epoch.

    Args:
        config: Settings of the job.
        dataset: On the device of the model.
        model: What is trained, already sparse where it is to be.
        seed: Of the order of the data.
        schedule: Epochs in which the learning rate falls.

    Attributes:
        hook: What acts after each step of the optimizer, if anything does.
        backward: Leaves a batch's gradients, and returns the outputs and the loss to record.
        logger: What measures the coordinate after some steps, if anything does.
        topology: What the hook tells of its updates of the topology, if it makes any.
    """

    def __init__(
        self, config: TrainConfig, dataset: Dataset, model: nn.Module, seed: int, schedule: int
    ) -> None:
        self.dataset = dataset
        self.model = model
        self.optimizer = _optimizer(config, model)
        self.scheduler = _scheduler(config, self.optimizer, schedule)
        self.batches = Batches(dataset.train, config.batch_size, seed)
        self.epoch = 0
        self.seconds = 0.0
        self.hook: Hook | None = None
        self.backward: Callable[[Forward], tuple[Tensor, Tensor]] = one_backward
        self.logger: SpectrumLogger | None = None
        self.topology: TopologyLogger | None = None

    def go_on_after(self, ended: "Run") -> None:
        """Count on, and draw the batches, from where another run of the same data ended."""
        self.epoch, self.seconds = ended.epoch, ended.seconds
        self.batches.generator.set_state(ended.batches.generator.get_state())

    @property
    def steps(self) -> int:
        """Optimizer steps in the epochs that are done."""
        return self.epoch * len(self.batches)

    @property
    def held_bytes(self) -> int:
        """Bytes of parameters, gradients, buffers and the optimizer's state, as they are now.

        Gradients count also where they are not there yet: after an epoch, or a resumption.
        """
        states = self.optimizer.state.values()
        tensors = (value for state in states for value in state.values() if torch.is_tensor(value))
        return training_bytes(self.model, states=0) + sum(tensor.nbytes for tensor in tensors)

    def train_epoch(self) -> dict[str, float]:
        """Go through the training data once, then look at the validation data.

        Returns:
            The figures of the epoch, for the records.

        Raises:
            ValueError: If the loss is no longer a finite number.
        """
        start = time.perf_counter()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.model.train()
        loss_sum, correct = 0.0, 0
        for x, y in self.batches:
            self.optimizer.zero_grad()
            output, loss = self.backward(functools.partial(self._forward, x, y))
            self.optimizer.step()
            if self.hook is not None:
                self.hook.step()
            if self.logger is not None:
                self.logger.step()
            loss_sum += loss.item() * y.numel()
            correct += int((output.argmax(1) == y).sum())
        self.scheduler.step()
        self.epoch += 1
        predictions = self.dataset.train.y.numel()
        if not math.isfinite(loss_sum):
            raise ValueError(
                f"learning_rate: the loss became {loss_sum} in epoch {self.epoch}; "
                f"expected it to stay finite, try less than {learning_rate:g}"
            )
        validation_loss, validation_accuracy = evaluate(self.model, self.dataset.validation)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        return {
            "epoch": self.epoch,
            "learning_rate": learning_rate,
            "train_loss": loss_sum / predictions,
            "train_accuracy": correct / predictions,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "seconds": seconds,
            **(self.logger.take() if self.logger is not None else {}),
            **(self.topology.take() if self.topology is not None else {}),
        }

    def _forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(x)
        return output, F.cross_entropy(output, y)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        return {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.batches.generator.get_state(),
            "hook": None if self.hook is None else self.hook.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self.epoch = state["epoch"]
        self.seconds = state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.batches.generator.set_state(state["generator"])
        if self.hook is not None:
            self.hook.load_state_dict(state["hook"])


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of a model, in evaluation mode, over all of a split."""
    model.eval()
    loss, correct = 0.0, 0
    for x, y in split.in_order(1024):
        output = model(x)
        loss += F.cross_entropy(output, y, reduction="sum").item()
        correct += int((output.argmax(1) == y).sum())
    return loss / split.y.numel(), correct / split.y.numel()


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay
        )
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)


@dataclass
class _Steps:
    """A tenth from half of the epochs on, a hundredth from three quarters on."""

    epochs: int  # in the scheduler's state: a stage that continues has those of the whole

    def __call__(self, epoch: int) -> float:
        return 0.1 ** ((2 * epoch >= self.epochs) + (4 * epoch >= 3 * self.epochs))


def _scheduler(
    config: TrainConfig, optimizer: torch.optim.Optimizer, epochs: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "steps":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, _Steps(epochs))
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
