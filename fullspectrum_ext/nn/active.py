"""Weights that a layer stores and trains, and computes without."""

import torch
from torch import Tensor


def active_only(weight: Tensor, active: Tensor | None) -> Tensor:
    """Return a weight that is zero where it is not active, and has its gradient there all the same.

    Args:
        weight: What is stored.
        active: Bool, of its shape; None where all of it is active.

    Returns:
        The weight to compute with. Its gradient is handed on as it is (straight through).

    Example:
        >>> weight = torch.tensor([2.0, 3.0], requires_grad=True)
        >>> used = active_only(weight, torch.tensor([True, False]))
        >>> used.tolist(), torch.autograd.grad(used.sum(), weight)[0].tolist()
        ([2.0, 0.0], [1.0, 1.0])
    """
    if active is None:
        return weight
    return weight - weight.detach().masked_fill(active, 0)


def room_for_active(saved: Tensor | None, weight: Tensor) -> Tensor | None:
    """Return the buffer into which a saved one can be loaded; None where none was saved."""
    return None if saved is None else torch.ones_like(weight, dtype=torch.bool)
