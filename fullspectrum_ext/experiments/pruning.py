"""Pruning a model that is given by name, as ``fullspectrum prune`` does."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fullspectrum_ext.experiments.data import DATASETS, Batches, load_data
from fullspectrum_ext.experiments.methods import check_method, make_masks, split_ablation
from fullspectrum_ext.experiments.models import MODELS, Shape, build_model
from fullspectrum_ext.experiments.procedures import PROCEDURES
from fullspectrum_ext.experiments.state import read_state
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning.audit import REINITIALISED, audit

_DIGITS: tuple[Shape, int] = (1, 8, 8), 10  # where no data says otherwise


def prune_by_name(
    model: str,
    method: str,
    *,
    sparsity: float | None = None,
    density: float | None = None,
    data: str = "digits",
    weights: Path | None = None,
    candidates: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> MaskSet:
    """Build a model, load its weights and data, and prune it.

    Args:
        model: Key of ``MODELS``, or ``package.module:function`` that returns a module.
        method: A pruning method that needs no training, or ``pags:BASE``; perhaps with
            ``:shuffled``, ``:randomised`` or ``:inverted`` after it.
        sparsity: Fraction to remove. Give this or ``density``.
        density: Fraction to keep.
        data: Key of ``DATASETS`` (its training part is looked at), ``none``, or
            ``package.module:function`` that returns batches ``(inputs, targets)``.
        weights: Checkpoint to load; without one a model of ``MODELS`` has its initial weights.
        candidates: Masks that ``pags`` draws.
        seed: Of the initial weights and of the method.
        progress: Called by ``pags`` with the number of candidates seen and of all of them.

    Returns:
        The masks.

    Raises:
        TypeError: If the function for ``model`` returns something else.
        ValueError: If the method trains, or makes no masks of its own.
    """  # noqa: DOC502
    check_method(method)
    method, ablation = split_ablation(method)
    if method in PROCEDURES:
        raise ValueError(
            f"method: {method} prunes in the course of training: `fullspectrum train` runs it"
        )
    if ablation == REINITIALISED:
        raise ValueError(f"method: {ablation} weights leave the masks as they are; got {method!r}")
    shape, classes = _DIGITS
    batches: Any = None
    if data in DATASETS:
        dataset = load_data(data)
        shape, classes = dataset.shape, dataset.classes
        batches = list(Batches(dataset.train, 64, seed))
    elif data != "none":
        batches = _imported("data", data, DATASETS)
    network = model_by_name(model, shape, classes, seed)
    if weights is not None:
        _load_weights(network, weights)
    masks = make_masks(
        method,
        network,
        sparsity=sparsity,
        density=density,
        candidates=candidates,
        data=batches,
        seed=seed,
        progress=progress,
    )
    return audit(network, masks, ablation, seed=seed).masks if ablation else masks


def model_by_name(model: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a model that is given by name or by import path.

    Args:
        model: Key of ``MODELS``, or ``package.module:function`` that returns a module.
        shape: Shape of one input, for a model of ``MODELS``.
        classes: Number of outputs, likewise.
        seed: Of the initial weights, likewise.

    Returns:
        The model.

    Raises:
        TypeError: If the function returns something else.
        ValueError: If there is none of this name.
    """  # noqa: DOC502
    if model in MODELS:
        return build_model(model, shape, classes, seed)
    network = _imported("model", model, MODELS)
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"model: expected {model} to return a torch.nn.Module, got {type(network).__name__}"
        )
    return network


def _imported(argument: str, path: str, known: dict[str, Any]) -> Any:
    """What ``package.module:function`` returns; modules are looked for in this folder too."""
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name:
        raise ValueError(
            f"{argument}: expected one of {', '.join(known)}, or package.module:function, "
            f"got {path!r}"
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise  # the module is there, and misses another
        raise ValueError(f"{argument}: there is no module {module_name!r}") from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, function_name):
        raise ValueError(f"{argument}: {module_name} has no {function_name!r}")
    return getattr(module, function_name)()


def _load_weights(network: nn.Module, file: Path) -> None:
    try:
        network.load_state_dict(read_state(file))
    except RuntimeError as error:
        raise ValueError(f"{file}: does not fit the model: {error}") from error
