"""Checkpoints: written whole or not at all, read without running any code from them."""

import io
from pathlib import Path
from typing import Any

import torch

from fullspectrum_ext._files import write_atomically
from fullspectrum_ext.checkpoints import load_tensors

_FORMAT = "fullspectrum run 2"
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
    "hook",
    "seconds",
    "stage",
    "kept",
}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a run (tensors, numbers, text and containers of them) atomically."""
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


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
