"""Data sets by name, split once and for all into training, validation and test parts."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fullspectrum_ext.experiments.data import images
from fullspectrum_ext.experiments.data.digits import digits
from fullspectrum_ext.experiments.data.split import Batches, Dataset, FirstPass, Split
from fullspectrum_ext.experiments.data.teacher import (
    LINEAR_INPUTS,
    MLP_INPUTS,
    linear_teacher_data,
    mlp_teacher_data,
)
from fullspectrum_ext.experiments.data.text import LENGTH, text


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and what is known of it before it is loaded.

    Attributes:
        load: Loads it from a path; an empty one stands for the usual place.
        kind: ``images``, ``text`` or a teacher's, which decides what models take it.
        shape: Of one input.
    """

    load: Callable[[str], Dataset]
    kind: str
    shape: tuple[int, ...]


DATASETS: dict[str, Source] = {
    "digits": Source(digits, "images", (1, 8, 8)),
    "mnist": Source(images.mnist, "images", (1, 28, 28)),
    "fashion-mnist": Source(images.fashion_mnist, "images", (1, 28, 28)),
    "cifar10": Source(images.cifar10, "images", (3, 32, 32)),
    "cifar100": Source(images.cifar100, "images", (3, 32, 32)),
    "tiny-imagenet": Source(images.tiny_imagenet, "images", (3, 64, 64)),
    "teacher-linear": Source(linear_teacher_data, "teacher-linear", (LINEAR_INPUTS,)),
    "teacher-mlp": Source(mlp_teacher_data, "teacher-mlp", (MLP_INPUTS,)),
    "text": Source(text, "text", (LENGTH, 61)),
}
"""Name of each data set, and where it comes from. A new one is a new entry."""


def load_data(name: str, path: str = "", *, augment: bool = True) -> Dataset:
    """Load a data set of :data:`DATASETS`.

    Args:
        name: Its name.
        path: The folder that it is in, or the text file; empty: the usual place.
        augment: Whether training images are changed at random as is usual for the data set.

    Returns:
        The data set, on the CPU.

    Raises:
        ValueError: If a package or a file that it needs is missing, or a file is damaged.
    """
    dataset = DATASETS[name].load(path)
    return dataset if augment else replace(dataset, train=replace(dataset.train, augment=None))
