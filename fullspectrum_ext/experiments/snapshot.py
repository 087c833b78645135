"""The state of a run with the layers dense, to go on from with other masks."""

import copy
from typing import Any, TypedDict

import torch
from torch import Tensor

from fullspectrum_ext.experiments.training import Run
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.nn import densify


class Snapshot(TypedDict):
    """Weights, optimizer and learning rate, by the names that they have in the dense model.

    Attributes:
        model: State dict of the dense model.
        optimizer: Parameter name to its state; a tensor that is held by weight has its shape.
        options: Those of the optimizer's one parameter group.
        scheduler: State dict of the scheduler.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, dict[str, Any]]
    options: dict[str, Any]
    scheduler: dict[str, Any]


def take_snapshot(run: Run, masks: MaskSet) -> Snapshot:
    """Copy the state of a run whose layers are dense, masked or truly sparse.

    Args:
        run: The run; it is not changed.
        masks: Those of its layers.

    Returns:
        The copy; what was pruned is zero.
    """
    states = {}
    for name, parameter in run.model.named_parameters():
        state = copy.deepcopy(dict(run.optimizer.state.get(parameter, {})))
        dense_name = _dense_name(name, masks)
        if dense_name != name:
            state = {key: _spread(value, masks[dense_name]) for key, value in state.items()}
        states[dense_name] = state
    (group,) = run.optimizer.param_groups
    return {
        "model": densify(copy.deepcopy(run.model)).state_dict(),
        "optimizer": states,
        "options": {name: value for name, value in group.items() if name != "params"},
        "scheduler": copy.deepcopy(run.scheduler.state_dict()),
    }


def load_progress(run: Run, snapshot: Snapshot, masks: MaskSet) -> None:
    """Take over the optimizer and the learning rate of a snapshot; the model has its weights.

    Args:
        run: New, with layers under ``masks``.
        snapshot: As :func:`take_snapshot` made it, perhaps with other masks; what these remove has
            a state of zero or none.
        masks: Those of the run.
    """
    for name, parameter in run.model.named_parameters():
        dense_name = _dense_name(name, masks)
        state = {
            key: _on_device(value, parameter.device)
            for key, value in copy.deepcopy(snapshot["optimizer"][dense_name]).items()
        }
        mask = masks.get(dense_name)
        if mask is not None:
            is_sparse = dense_name != name
            state = {key: _cut(value, mask, is_sparse) for key, value in state.items()}
        if state:
            run.optimizer.state[parameter] = state
    run.optimizer.param_groups[0].update(snapshot["options"])
    run.scheduler.load_state_dict(copy.deepcopy(snapshot["scheduler"]))


def _dense_name(name: str, masks: MaskSet) -> str:
    weight = name.removesuffix("values") + "weight"
    return weight if name.endswith("values") and weight in masks else name


def _spread(value: Any, mask: Tensor) -> Any:
    """Stored values, in the order of CSR, at their places in the dense weight."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return value.new_zeros(mask.shape).masked_scatter(mask.to(value.device), value)


def _on_device(value: Any, device: torch.device) -> Any:
    # a snapshot out of a checkpoint is on the CPU; counts of steps stay there
    return value.to(device) if isinstance(value, Tensor) and value.dim() else value


def _cut(value: Any, mask: Tensor, is_sparse: bool) -> Any:
    if not isinstance(value, Tensor) or value.shape != mask.shape:
        return value
    mask = mask.to(value.device)
    return value[mask] if is_sparse else torch.where(mask, value, 0)
