"""The file from which an interrupted PAGS search goes on."""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning.base import ScoringContext

_STATE = "pags_search"  # the entry of the masks' meta


class SearchFile:
    """Keeps the best masks so far, with what the search must know to go on, as a file of masks.

    Args:
        path: The file, which need not be there.
        context: What is pruned; its weights, device, density, scope and seed must be those of
            the file.
        settings: All else that decides what is found, as JSON-like values.

    Raises:
        TypeError: If the path is none, or a setting is nothing that JSON can say.
    """

    def __init__(self, path: object, context: ScoringContext, settings: Mapping[str, Any]):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"checkpoint: expected a path, got {type(path).__name__}")
        self.path = Path(path)
        self.context = context
        decides = {
            **settings,
            "density": context.density,
            "scope": context.scope,
            "seed": context.generator.initial_seed(),
            "device": context.device.type,
            "weights": _digest(context.weights),
        }
        self.settings = json.loads(json.dumps(decides))

    def load(self) -> MaskSet | None:
        """Return the masks with their record, and set the random states; None without a file.

        Returns:
            What was saved, on the device of the weights.

        Raises:
            ValueError: If the file is of another search, or no file of a search at all.
        """
        if not self.path.is_file():
            return None
        found = MaskSet.load(self.path)
        state = found.meta.pop(_STATE, None)
        if state is None:
            raise ValueError(f"checkpoint: {self.path} holds masks, but no search to go on with")
        other = [
            f"{name} = {state['settings'].get(name)!r}, not {value!r}"
            for name, value in self.settings.items()
            if state["settings"].get(name) != value
        ]
        if other:
            raise ValueError(f"checkpoint: {self.path} is of another search: {', '.join(other)}")
        for generator, text in zip(self._generators(), state["random"], strict=True):
            generator.set_state(_bytes(text))
        masks = {name: mask.to(self.context.device) for name, mask in found.items()}
        return MaskSet(masks, meta=found.meta)

    def save(self, masks: MaskSet) -> None:
        """Write masks, their record and the random states in one atomic step."""
        random = [_text(generator.get_state()) for generator in self._generators()]
        state = {"settings": self.settings, "random": random}
        MaskSet(masks, meta={**masks.meta, _STATE: state}).save(self.path)

    def _generators(self) -> list[torch.Generator]:
        """Return all that candidates draw from: their own, and torch's for shuffles and dropout."""
        device = self.context.device
        own = [self.context.generator, torch.random.default_generator]
        return [*own, torch.cuda.default_generators[device.index]] if device.type == "cuda" else own


def _digest(weights: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name, weight in weights.items():
        state.update(json.dumps([name, list(weight.shape), str(weight.dtype)]).encode())
        state.update(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
