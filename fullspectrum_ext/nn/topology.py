"""What is held by weight, in a parameter and in its optimizer, when the stored weights change."""

from typing import Any

import torch
from torch import Tensor, nn

from fullspectrum_ext.ops import carry

# Where an optimizer's state does not begin at 0: the option of its parameter group that says so.
_INITIAL_STATE = {"sum": "initial_accumulator_value", "step_size": "lr"}  # Adagrad, Rprop


def carry_state(values: nn.Parameter, optimizer: torch.optim.Optimizer, source: Tensor) -> None:
    """Move an optimizer's state to the places of a new topology.

    Args:
        values: The stored weights, not yet changed.
        optimizer: Trains them.
        source: For each new weight where it stood, or -1; the state of those is that of a new
            parameter.

    Raises:
        ValueError: If ``optimizer`` does not train ``values``, or is LBFGS, which holds state that
            cannot be told apart by weight.
    """
    state = optimizer.state.get(values, {})
    for name, (held, fill) in _held_by_weight(values, optimizer).items():
        same = held.shape == source.shape
        state[name] = carry(held, source, fill, out=held if same else None)


def reset_state(weight: nn.Parameter, optimizer: torch.optim.Optimizer, where: Tensor) -> None:
    """Give some weights of a dense parameter the optimizer state of new ones, in place.

    Args:
        weight: The parameter.
        optimizer: Trains it.
        where: Bool, of the weight's shape: which of them.

    Raises:
        ValueError: As for :func:`carry_state`.
    """
    for held, fill in _held_by_weight(weight, optimizer).values():
        held.masked_fill_(where, fill)


def carry_values(values: nn.Parameter, source: Tensor) -> None:
    """Move values to the places of a new topology; new ones are 0, and there is no gradient.

    Args:
        values: Stays the same object, and in the same memory where the number stays the same.
        source: For each new weight where it stood, or -1.
    """
    held = values.detach()
    if values.shape == source.shape:
        values.grad = None
        carry(held, source, out=held)
    else:
        set_values(values, carry(held, source))


def set_values(values: nn.Parameter, new: Tensor) -> None:
    """Give a parameter values of another number, and no gradient.

    Args:
        values: Stays the same object.
        new: The values, of the same dtype and device.
    """
    values.grad = None
    # A graph that is still alive, like that of the last loss, holds torch's record of how long the
    # gradient is. torch drops the record only where the dtype changes.
    other = torch.float32 if values.dtype == torch.float64 else torch.float64
    values.data = torch.empty(0, dtype=other, device=values.device)
    values.data = new


def _held_by_weight(
    values: nn.Parameter, optimizer: torch.optim.Optimizer
) -> dict[str, tuple[Tensor, float]]:
    """Return what an optimizer holds by weight, by its name, and what a new weight begins with."""
    group = _group_of(values, optimizer)
    return {
        name: (held, float(group.get(_INITIAL_STATE.get(name, name), 0.0)))
        for name, held in optimizer.state.get(values, {}).items()
        if isinstance(held, Tensor) and held.shape == values.shape
    }


def _group_of(values: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("optimizer: expected one that holds its state by weight, got LBFGS")
    for group in optimizer.param_groups:
        if any(parameter is values for parameter in group["params"]):
            return group
    raise ValueError("optimizer: expected one that trains the layer's values, this one does not")
