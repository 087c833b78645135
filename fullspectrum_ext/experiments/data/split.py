"""What a data set is once it is loaded, and how batches are drawn from it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fullspectrum_ext.experiments.data.augment import Augment
from fullspectrum_ext.experiments.data.planted import Teacher

Decode = Callable[[Tensor], Tensor]
"""From samples as they are kept, to what a model takes."""


def as_kept(x: Tensor) -> Tensor:
    """Samples that are kept as the model takes them."""
    return x


@dataclass(frozen=True)
class Split:
    """One part of a data set, whole in memory; images and text stay the bytes that they are.

    Attributes:
        x: Samples as they are kept, ``[samples, ...]``.
        y: Classes, int64, ``[samples]``; of text, at each place, ``[samples, length]``.
        decode: Makes inputs of a model, float32, out of samples.
        augment: Changes images at random before that, when batches are drawn to learn from.
    """

    x: Tensor
    y: Tensor
    decode: Decode = as_kept
    augment: Augment | None = None

    def to(self, device: torch.device) -> "Split":
        """The same samples on another device."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def chosen(self, samples: Tensor) -> "Split":
        """Some of the samples, by number or by truth value, without augmentation."""
        return replace(self, x=self.x[samples], y=self.y[samples], augment=None)

    def batch(self, samples: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and classes to learn from, augmented with numbers of a generator on the CPU."""
        x = self.x[samples]
        if self.augment is not None:
            x = self.augment(x, generator)
        return self.decode(x), self.y[samples]

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and classes of all samples, as they are; the last batch may be smaller."""
        for x, y in zip(self.x.split(batch_size), self.y.split(batch_size), strict=True):
            yield self.decode(x), y

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Inputs and classes of the first samples, as they are."""
        return self.decode(self.x[:count]), self.y[:count]


@dataclass(frozen=True)
class Dataset:
    """Samples to learn from, to watch while learning, and to judge by at the end.

    Attributes:
        train: Learned from, and what pruning methods may look at.
        validation: Watched each epoch.
        test: Looked at once, when a run is over.
        classes: Number of classes.
        teacher: The sparse network that the classes come from, where there is one.
    """

    train: Split
    validation: Split
    test: Split
    classes: int
    teacher: Teacher | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: channels, height, width; of text: length, characters."""
        return tuple(self.train.first(1)[0].shape[1:])

    def to(self, device: torch.device) -> "Dataset":
        """The same samples on another device."""
        train, validation, test = (
            part.to(device) for part in (self.train, self.validation, self.test)
        )
        return replace(self, train=train, validation=validation, test=test)


class Batches:
    """Batches of a split, in a new order on each iteration, drawn from a generator of its own.

    Two objects made with the same seed go through the same orders, and change images in the same
    ways, wherever they run.

    Args:
        split: The samples.
        batch_size: Samples in a batch; the last of a pass may be smaller.
        seed: Of the generator.
    """

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        self.split = split
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.split.y) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.split.y), generator=self.generator)
        for samples in order.to(self.split.y.device).split(self.batch_size):
            yield self.split.batch(samples, self.generator)


class FirstPass:
    """The first pass of :class:`Batches`, the same each time: what pruning methods look at.

    Batches are made when they are asked for, so that no more than one is in memory as the floating
    point numbers that a model takes.

    Args:
        split: The samples.
        batch_size: Samples in a batch; the last may be smaller.
        seed: Of the generator.
    """

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        self.split = split
        self.batch_size = batch_size
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(Batches(self.split, self.batch_size, self.seed))

    def draw(self, count: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        """Draw batches at random, without repeating a sample.

        Args:
            count: How many; fewer come back where there is less data.
            generator: Source of the shuffle, on the CPU.

        Returns:
            The batches.
        """
        samples = len(self.split.y)
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(self.seed))
        drawn = order[torch.randperm(samples, generator=generator)[: count * self.batch_size]]
        return [
            self.split.batch(part.to(self.split.y.device), generator)
            for part in drawn.split(self.batch_size)
        ]


def by_turns(y: Tensor, period: int) -> Tensor:
    """Number the samples of each class 0, 1, ..., period - 1, 0, 1, ... in their order.

    Args:
        y: Classes, int64, ``[samples]``.
        period: Numbers there are.

    Returns:
        Number of each sample, int64, ``[samples]``.

    Example:
        >>> by_turns(torch.tensor([5, 7, 5, 5, 7]), 2)
        tensor([0, 0, 1, 0, 1])
    """
    turns = torch.empty_like(y)
    for label in y.unique():
        members = (y == label).nonzero().squeeze(1)
        turns[members] = torch.arange(len(members)) % period
    return turns
