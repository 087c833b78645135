"""Text, character by character."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fullspectrum_ext.experiments.data.split import Dataset, Split

LENGTH = 64
_WINDOWS = 10  # at least, one of them to validate and one to test


@dataclass(frozen=True)
class OneHot:
    """From numbers of characters to float32, one-hot.

    Attributes:
        characters: How many different ones there are.
    """

    characters: int

    def __call__(self, codes: Tensor) -> Tensor:
        """``[samples, length]`` to ``[samples, length, characters]``."""
        return F.one_hot(codes.long(), self.characters).float()


def text(path: str) -> Dataset:
    """Predict each next character in pieces of 64 characters.

    The first eight tenths of the pieces are learned from, the next validates, the last tests.

    Args:
        path: A text file in UTF-8; empty: acts 1 to 4 of Shakespeare's Coriolanus (99 843
            characters, 61 different ones, in the public domain), which come with the package.

    Returns:
        The data set.

    Raises:
        ValueError: If the file is missing, is no text, or is too short or too varied.
    """
    if path:
        content = _read(Path(path))
    else:
        content = resources.files(__package__).joinpath("shakespeare.txt").read_text("utf-8")
    points = np.frombuffer(content.encode("utf-32-le"), dtype=np.uint32)
    characters, codes = np.unique(points, return_inverse=True)
    windows = (len(codes) - 1) // LENGTH
    if windows < _WINDOWS:
        least = _WINDOWS * LENGTH + 1
        raise ValueError(f"{path}: expected at least {least} characters, got {len(codes)}")
    if len(characters) > 256:
        raise ValueError(
            f"{path}: expected at most 256 different characters, got {len(characters)}"
        )
    kept = torch.from_numpy(codes.astype(np.uint8)[: windows * LENGTH + 1])
    decode = OneHot(len(characters))
    whole = Split(kept[:-1].view(-1, LENGTH), kept[1:].view(-1, LENGTH).long(), decode)
    tenth = windows // 10
    order = torch.arange(windows)
    train, validation, test = order.split([windows - 2 * tenth, tenth, tenth])
    return Dataset(
        whole.chosen(train), whole.chosen(validation), whole.chosen(test), len(characters)
    )


def _read(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: expected a text file, there is none")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8: {error}") from error
