"""Pruning a model that is given by name, as ``fullspectrum prune`` does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fullspectrum_ext.experiments.data import DATASETS, FirstPass, load_data
from fullspectrum_ext.experiments.methods import make_masks, parse_method
from fullspectrum_ext.experiments.models import build_model, check_model
from fullspectrum_ext.experiments.models.imported import check_fit, import_function
from fullspectrum_ext.experiments.models.layers import Shape
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
    data_path: str = "",
    weights: Path | None = None,
    candidates: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> MaskSet:
    """Build a model, load its weights and data, and prune it.

    Args:
        model: Key of ``MODELS``, or ``package.module:function`` that returns a module.
        method: A pruning method that needs no training, or ``pags:BASE``; perhaps with
            ``:drift`` (of pags) and an ablation of the masks (``:shuffled``) after it.
        sparsity: Fraction to remove. Give this or ``density``.
        density: Fraction to keep.
        data: Key of ``DATASETS`` (its training part is looked at), ``none``, or
            ``package.module:function`` that returns batches ``(inputs, targets)``.
        data_path: Folder that the data set is in, or the text file; empty: the usual place.
        weights: Checkpoint to load; without one a model of ``MODELS`` has its initial weights.
        candidates: Masks that ``pags`` draws.
        seed: Of the initial weights and of the method.
        progress: Called by ``pags`` with the number of candidates seen and of all of them.

    Returns:
        The masks.

    Raises:
        TypeError: If the function for ``model`` returns something else.
        ValueError: If model and data do not fit, anything is missing, or the method trains or makes
            no masks of its own.
    """
    name = parse_method(method)
    if name.trains:
        raise ValueError(
            f"method: {method} prunes in the course of training: `fullspectrum train` runs it"
        )
    if name.ablation == REINITIALISED:
        raise ValueError(
            f"method: {name.ablation} weights leave the masks as they are; got {method!r}"
        )
    shape, classes = _DIGITS
    batches: Any = None
    dataset = None
    if data in DATASETS:
        check_model(model, DATASETS[data].kind)
        dataset = load_data(data, data_path)
        shape, classes = dataset.shape, dataset.classes
        batches = FirstPass(dataset.train, 64, seed)
    elif data != "none":
        batches = import_function("data", data, DATASETS)()
    network = build_model(model, shape, classes, seed)
    if dataset is not None:
        check_fit(network, *dataset.train.first(2), classes)
        if dataset.teacher is not None:
            dataset.teacher.plant(network)
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
    return audit(network, masks, name.audit, seed=seed).masks if name.audit else masks


def _load_weights(network: nn.Module, file: Path) -> None:
    try:
        network.load_state_dict(read_state(file))
    except RuntimeError as error:
        raise ValueError(f"{file}: does not fit the model: {error}") from error
