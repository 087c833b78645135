"""Data sets by name, split once and for all into training, validation and test parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fullspectrum_ext.experiments.extras import MissingExtraError


@dataclass(frozen=True)
class Split:
    """One part of a data set, whole in memory.

    Attributes:
        x: Inputs, float32, ``[samples, channels, height, width]``.
        y: Classes, int64, ``[samples]``.
    """

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> "Split":
        """The same samples on another device."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Dataset:
    """Samples to learn from, to watch while learning, and to judge by at the end.

    Attributes:
        train: Learned from, and what pruning methods may look at.
        validation: Watched each epoch.
        test: Looked at once, when a run is over.
        classes: Number of classes.
    """

    train: Split
    validation: Split
    test: Split
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: channels, height, width."""
        return tuple(self.train.x.shape[1:])

    def to(self, device: torch.device) -> "Dataset":
        """The same samples on another device."""
        train, validation, test = (
            part.to(device) for part in (self.train, self.validation, self.test)
        )
        return Dataset(train, validation, test, self.classes)


class Batches:
    """Batches of a split, in a new order on each iteration, drawn from a generator of its own.

    Two objects made with the same seed go through the same orders, wherever they run.

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
        for batch in order.to(self.split.y.device).split(self.batch_size):
            yield self.split.x[batch], self.split.y[batch]


def load_data(name: str) -> Dataset:
    """Load a data set of :data:`DATASETS`."""
    return DATASETS[name]()


def _digits() -> Dataset:
    """1797 handwritten digits of 8 x 8 pixels, as they come with scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the data set digits", "scikit-learn", "digits") from error
    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    return _split_by_class(x, torch.tensor(digits.target, dtype=torch.int64))


def _split_by_class(x: Tensor, y: Tensor) -> Dataset:
    """Of each class in its order, every fifth sample for the test and the next for validation."""
    turn = torch.empty_like(y)
    classes = int(y.max()) + 1
    for label in range(classes):
        members = (y == label).nonzero().squeeze(1)
        turn[members] = torch.arange(len(members)) % 5
    test, validation, train = turn == 0, turn == 1, turn > 1
    return Dataset(
        train=Split(x[train], y[train]),
        validation=Split(x[validation], y[validation]),
        test=Split(x[test], y[test]),
        classes=classes,
    )


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": _digits}
"""Name of each data set, and the function that loads it. A new one is a new entry."""
