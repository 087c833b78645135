"""Checkpoints: written whole or not at all, read without running any code from them."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from fullspectrum_ext._files import write_atomically

_FORMAT = "fullspectrum run 1"
_KEYS = {
    "format",
    "config",
    "method",
    "seed",
    "masks",
    "pruning_seconds",
    "epoch",
    "model",
    "optimizer",
    "scheduler",
    "generator",
    "seconds",
}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a run (tensors, numbers, text and containers of them) atomically."""
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_tensors(path: Path) -> Any:
    """Read a ``.pt`` file of tensors and plain containers, and nothing else.

    Args:
        path: The file.

    Returns:
        What was saved, on the CPU.

    Raises:
        ValueError: If the file is cut short, is no torch file, or holds code to be run.
    """
    with Path(path).open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            reason = "it holds more than tensors and plain containers, which could run code"
            raise ValueError(f"{path}: not loaded: {reason}, or it is damaged") from error
        except Exception as error:  # torch's readers raise many kinds for what they cannot read
            raise ValueError(f"{path}: not a torch file, or cut short ({error})") from error


def load_checkpoint(path: Path, **expected: Any) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote.

    Args:
        path: The file.
        **expected: Entries that must have these values.

    Returns:
        The state.

    Raises:
        ValueError: If the file is damaged, or is the checkpoint of another run.
    """
    state = load_tensors(path)
    if not isinstance(state, dict) or state.get("format") != _FORMAT or set(state) != _KEYS:
        raise ValueError(f"{path}: not a checkpoint of `fullspectrum train`")
    for key, value in expected.items():
        if state[key] != value:
            raise ValueError(f"{path}: expected {key} {value!r}, got {state[key]!r}")
    return state
