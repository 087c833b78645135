"""Published sets of images, read by torchvision from files that are already here."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fullspectrum_ext.experiments.data.augment import Augment, Normalise
from fullspectrum_ext.experiments.data.split import Dataset, Split, by_turns
from fullspectrum_ext.experiments.extras import MissingExtraError

FOLDER = "data"
"""Where the files are looked for, if nothing else is said."""

# What torchvision raises where files are missing, cut short or of another kind.
_DAMAGE = (RuntimeError, AssertionError, OSError, ValueError, EOFError, pickle.UnpicklingError)


@dataclass(frozen=True)
class _Published:
    """A data set of torchvision's that has a training and a test part.

    Attributes:
        kind: Class of ``torchvision.datasets``.
        folder: What it is in, below the folder of all data.
        classes: Number of classes.
        normalise: With the mean and deviation of the training part.
        augment: How training images are usually changed.
    """

    kind: str
    folder: str
    classes: int
    normalise: Normalise
    augment: Augment | None = None

    def __call__(self, path: str) -> Dataset:
        """Load both parts; of each class, every tenth training image validates."""
        root = Path(path or FOLDER)
        datasets = _torchvision(self.kind).datasets
        train, test = (self._part(datasets, root, train) for train in (True, False))
        return _with_validation(train, test, self.classes, self.augment)

    def _part(self, datasets: ModuleType, root: Path, train: bool) -> Split:
        try:
            found = getattr(datasets, self.kind)(root, train=train)
        except _DAMAGE as error:
            raise ValueError(self._advice(root)) from error
        return Split(_channels_first(found.data), torch.as_tensor(found.targets), self.normalise)

    def _advice(self, root: Path) -> str:
        folder = root / self.folder
        problem = "cut short or damaged" if folder.is_dir() else "missing"
        return (
            f'data: {folder} is {problem}; get it with python -c "from torchvision.datasets '
            f"import {self.kind}; {self.kind}('{root}', download=True)\", or say where it is "
            "(data_path)"
        )


cifar10 = _Published(
    "CIFAR10",
    "cifar-10-batches-py",
    10,
    Normalise((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    Augment(),
)
cifar100 = _Published(
    "CIFAR100",
    "cifar-100-python",
    100,
    Normalise((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    Augment(),
)
mnist = _Published("MNIST", "MNIST/raw", 10, Normalise((0.1307,), (0.3081,)))
fashion_mnist = _Published("FashionMNIST", "FashionMNIST/raw", 10, Normalise((0.2860,), (0.3530,)))


def tiny_imagenet(path: str) -> Dataset:
    """200 classes of 500 images of 64 x 64 pixels; the published validation part is the test part.

    Args:
        path: The folder that ``tiny-imagenet-200`` is in.

    Returns:
        The data set; normalised with the mean and deviation that are used for ImageNet.

    Raises:
        ValueError: If files are missing or damaged.
    """
    datasets = _torchvision("Tiny-ImageNet").datasets
    root = Path(path or FOLDER) / "tiny-imagenet-200"
    if not root.is_dir():
        raise ValueError(
            f"data: {root} is missing; get http://cs231n.stanford.edu/tiny-imagenet-200.zip and "
            "unpack it there, or say where it is (data_path)"
        )
    annotations = root / "val" / "val_annotations.txt"
    try:
        train = datasets.ImageFolder(root / "train")  # images lie in train/CLASS/images
        labels = train.class_to_idx
        lines = annotations.read_text(encoding="utf-8").splitlines()
        names = [line.split("\t")[:2] for line in lines]
        test = [(str(root / "val" / "images" / name), labels[word]) for name, word in names]
    except (*_DAMAGE, KeyError) as error:
        raise ValueError(f"data: {root} is cut short or damaged: {error}") from error
    normalise = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return _with_validation(
        _decoded(train.samples, train.loader, normalise),
        _decoded(test, train.loader, normalise),
        len(labels),
        Augment(),
    )


def _decoded(samples: list[tuple[str, int]], loader: Any, normalise: Normalise) -> Split:
    """Read images, of which each is a file."""
    x = torch.empty(len(samples), 3, 64, 64, dtype=torch.uint8)
    for index, (file, _) in enumerate(samples):
        try:
            image = np.array(loader(file))  # in colour, also where the file is grey
        except (OSError, SyntaxError) as error:
            raise ValueError(f"data: {file} is missing or cut short: {error}") from error
        if image.shape != (64, 64, 3):
            raise ValueError(f"data: {file}: expected 64 x 64 pixels, got {image.shape[:2]}")
        x[index] = torch.from_numpy(image).permute(2, 0, 1)
    return Split(x, torch.tensor([label for _, label in samples]), normalise)


def _with_validation(train: Split, test: Split, classes: int, augment: Augment | None) -> Dataset:
    held_out = by_turns(train.y, 10) == 9
    learned = train.chosen(~held_out)
    return Dataset(
        Split(learned.x, learned.y, learned.decode, augment),
        train.chosen(held_out),
        test,
        classes,
    )


def _channels_first(images: np.ndarray | Tensor) -> Tensor:
    """Bytes ``[images, channels, height, width]`` of what torchvision keeps."""
    found = torch.as_tensor(images)
    return found.unsqueeze(1) if found.dim() == 3 else found.permute(0, 3, 1, 2).contiguous()


def _torchvision(purpose: str) -> ModuleType:
    """Import torchvision, the one place where that is done."""
    try:
        import torchvision
    except ImportError as error:
        raise MissingExtraError(f"the data set {purpose}", "torchvision", "data") from error
    except RuntimeError as error:
        raise ValueError(
            f"the data set {purpose}: torchvision cannot be imported beside this torch "
            f"{torch.__version__} ({error}); install builds of both that belong together"
        ) from error
    return torchvision
