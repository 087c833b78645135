"""State dicts out of the files that people keep them in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fullspectrum_ext.experiments.checkpoint import load_tensors

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
"""Keys under which training scripts put the state dict beside other things."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a model out of a checkpoint; no code in the file is run.

    Args:
        path: ``.safetensors``, or a file of ``torch.save``: a state dict, or a dict with one under
            the usual names, such as a checkpoint of ``fullspectrum train``.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        ValueError: If the file is damaged or holds no state dict.
    """
    path = Path(path)
    path.stat()  # FileNotFoundError in the system's own words
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file, or cut short ({error})") from error
    content = load_tensors(path)
    state: dict[str, Tensor] = {}
    if isinstance(content, Mapping):
        # Beside the model a checkpoint may have tensors of its own, so the wrapped come first.
        candidates = [*(content.get(wrapper) for wrapper in _WRAPPERS), content]
        state = next(filter(None, map(_tensors, candidates)), {})
    if not state:
        keys = f"the keys {', '.join(map(str, content))}" if isinstance(content, Mapping) else ""
        raise ValueError(
            f"{path}: expected a state dict (parameter name to tensor), "
            f"got {keys or type(content).__name__}"
        )
    return state


def _tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of what may be a state dict, whose other entries are extra state."""
    if not isinstance(content, Mapping):
        return {}
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
