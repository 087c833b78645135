"""Which layers are worth storing sparse: measured at their real shapes, or by a rule."""

import contextlib
import copy
import json
import math
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fullspectrum_ext import _core
from fullspectrum_ext._files import write_atomically
from fullspectrum_ext._progress import LateProgress
from fullspectrum_ext.nn.timing import LayerUse, layer_uses, time_steps

AUTO, SPARSE, MASKED = "auto", "sparse", "masked"
_SECONDS = 0.3  # that measuring one layer may take

MaskedLayers = Mapping[str, tuple[nn.Module, Tensor]]
"""Parameter name to the dense layer that it is the weight of, and its mask."""
Build = Callable[[Any, Tensor, str], nn.Module]
"""Makes of a dense layer and its mask the layer of a backend."""


class Choice(NamedTuple):
    """What was chosen for a layer, and why.

    Attributes:
        backend: ``"sparse"`` or ``"masked"``.
        sparse_seconds: A training step of the truly sparse layer, the median; None where the rule
            decided.
        masked_seconds: Of the dense layer with its mask.
    """

    backend: str
    sparse_seconds: float | None = None
    masked_seconds: float | None = None


# Weights and sparsity from which on the sparse layer is the faster one.
_LINEAR_SIZE, _LINEAR_SPARSITY = 2**14, 0.5
_CONV2D_SIZE, _CONV2D_SPARSITY = 2**10, 0.6


def choose_by_rule(layer: nn.Module, mask: Tensor) -> str:
    """Choose a backend from the size of a weight and its sparsity alone.

    The same on every machine. The bounds were measured on two Zen 4 cores with AVX-512, batches of
    64 and more: from them on the sparse layer was at most 1 % slower and mostly several times
    faster. Below them, and for ``Linear`` in batches of 16 and less up to 80 % sparsity, the dense
    product costs less. On CUDA the bounds are not measured.

    Args:
        layer: The dense layer; a recurrent one has no sparse form.
        mask: Of its weight.

    Returns:
        ``"sparse"`` or ``"masked"``.
    """
    if isinstance(layer, nn.RNNBase):
        return MASKED
    sparsity = 1 - int(mask.sum()) / max(mask.numel(), 1)
    smallest, lowest = (
        (_CONV2D_SIZE, _CONV2D_SPARSITY)
        if isinstance(layer, nn.Conv2d)
        else (_LINEAR_SIZE, _LINEAR_SPARSITY)
    )
    return SPARSE if mask.numel() >= smallest and sparsity >= lowest else MASKED


def choose_by_measurement(
    model: nn.Module, layers: MaskedLayers, example: Any, build: Build
) -> dict[str, Choice]:
    """Choose each layer's backend by its measured training step.

    The truly sparse layer is taken where it was faster in three of four rounds at least. Each kind
    of layer is measured once a machine: the result is kept in a file of the user's cache folder.
    Layers that ``example`` does not reach are chosen by :func:`choose_by_rule`.

    Args:
        model: The dense model.
        layers: Its layers to choose for.
        example: Input of the model: a tensor, or a tuple of all its arguments.
        build: Makes the layer of a backend.

    Returns:
        Parameter name to choice.
    """
    candidates = {n: layer for n, (layer, _) in layers.items() if not isinstance(layer, nn.RNNBase)}
    uses = layer_uses(model, candidates, example)
    cache = _Cache()
    choices = {}
    with LateProgress() as progress:
        progress.start("measuring layers")
        for done, (name, (layer, mask)) in enumerate(layers.items()):
            progress.advance(done, len(layers))
            if not uses.get(name):
                choices[name] = Choice(choose_by_rule(layer, mask))
                continue
            key = _key(layer, mask, uses[name])
            if key not in cache.choices:
                cache.choices[key] = _measure(layer, mask, uses[name], build)
                cache.save()
            choices[name] = cache.choices[key]
    return choices


def _measure(layer: nn.Module, mask: Tensor, uses: list[LayerUse], build: Build) -> Choice:
    """Time both backends in all the uses of a layer, whose step is their sum."""
    candidates = {name: build(copy.deepcopy(layer), mask, name) for name in (SPARSE, MASKED)}
    measured = [time_steps(candidates, use, seconds=_SECONDS / len(uses)) for use in uses]
    rounds = min(len(times[SPARSE]) for times in measured)
    sparse, masked = (
        [sum(times[name][i] for times in measured) for i in range(rounds)]
        for name in (SPARSE, MASKED)
    )
    return choose(sparse, masked)


def choose(sparse: list[float], masked: list[float]) -> Choice:
    """Choose from the seconds of both backends, round by round.

    Args:
        sparse: Of the truly sparse layer.
        masked: Of the dense layer with its mask, in the same rounds.

    Returns:
        The sparse one where it was faster in three of four rounds at least.

    Example:
        >>> choose([1.0, 1.0, 1.0, 9.0], [2.0, 2.0, 2.0, 2.0]).backend
        'sparse'
        >>> choose([1.0, 1.0, 9.0, 9.0], [2.0, 2.0, 2.0, 2.0]).backend
        'masked'
    """
    faster = sum(own < other for own, other in zip(sparse, masked, strict=True))
    backend = SPARSE if faster >= 0.75 * len(sparse) else MASKED
    return Choice(backend, statistics.median(sparse), statistics.median(masked))


# ---- the cache ---------------------------------------------------------------------------------


def _key(layer: Any, mask: Tensor, uses: list[LayerUse]) -> str:
    """All that the speed of a layer's two backends depends on, on this machine."""
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    density = int(mask.sum()) / max(mask.numel(), 1)
    trained = "trained" if layer.weight.requires_grad else "frozen"
    calls = [
        f"{use.dtype} {'x'.join(map(str, use.shape))}"
        + " channels_last" * use.channels_last
        + " no_input_gradient" * (not use.needs_gradient)
        for use in uses
    ]
    device = uses[0].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        calls.append(f"autocast to {torch.get_autocast_dtype(device)}")
    described = f"{kind.__name__}({kind.extra_repr(layer)}) {trained}, density {density:.2g}"
    return "; ".join([described, *calls, _machine(uses[0].device)])


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {_core.active_isa()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, fullspectrum-ext {version('fullspectrum-ext')}"


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class _Cache:
    """Measured choices, in a JSON file that can be thrown away at any time."""

    def __init__(self) -> None:
        folder = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        self.file = pathlib.Path(folder) / "fullspectrum_ext" / "backends.json"
        self.choices = self._read()

    def save(self) -> None:
        """Write what was measured, and what another process has written meanwhile."""
        self.choices = self._read() | self.choices
        content = {key: choice._asdict() for key, choice in sorted(self.choices.items())}
        with contextlib.suppress(OSError):  # nowhere to write: measured again next time
            write_atomically(self.file, (json.dumps(content, indent=1) + "\n").encode())

    def _read(self) -> dict[str, Choice]:
        """Whatever in the file is not as written here is measured again."""
        try:
            content = json.loads(self.file.read_bytes())
            return {key: _choice(fields) for key, fields in content.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def _choice(fields: dict[str, Any]) -> Choice:
    choice = Choice(**fields)
    if choice.backend not in {SPARSE, MASKED}:
        raise ValueError(choice.backend)
    if not all(math.isfinite(seconds) for seconds in choice[1:]):  # type: ignore[arg-type]
        raise ValueError("seconds")
    return choice
