"""Lottery tickets: iterative magnitude pruning, with the weights rewound in between."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from torch import nn

from fullspectrum_ext import _checks
from fullspectrum_ext._layers import Patterns
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.nn.masked import update_masks
from fullspectrum_ext.pruning.gradual import held_masks, hold_masks, keep_largest
from fullspectrum_ext.pruning.selection import SCOPES

Rewinding = Literal["weights", "learning_rate"]
REWINDINGS = ("weights", "learning_rate")


class Ticket(NamedTuple):
    """A network that is trained and pruned so far.

    Attributes:
        round: Prunings so far; 0 for the dense network.
        masks: The weights that are left.
    """

    round: int
    masks: MaskSet


def ticket_densities(sparsity: float, rate: float = 0.2) -> list[float]:
    """Return the density after each round, where each removes a fraction of what is left.

    Args:
        sparsity: Reached exactly by the last round, which may remove less than the others.
        rate: The fraction.

    Returns:
        The densities, falling; the last one is ``1 - sparsity``.

    Raises:
        ValueError: If ``sparsity`` or ``rate`` is not in (0, 1).

    Example:
        >>> [round(density, 3) for density in ticket_densities(0.4)]
        [0.8, 0.64, 0.6]
    """
    for name, value in (("sparsity", sparsity), ("rate", rate)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: expected a fraction in (0, 1), got {value}")
    # not one round more where the division is exact but for rounding
    rounds = math.ceil(math.log(1 - sparsity) / math.log(1 - rate) - 1e-9)
    return [(1 - rate) ** turn for turn in range(1, rounds)] + [1 - sparsity]


def lottery_tickets(
    model: nn.Module,
    train: Callable[[nn.Module, int, int], object],
    *,
    steps: int,
    sparsity: float,
    rate: float = 0.2,
    rewind: Rewinding = "weights",
    rewind_step: int = 0,
    scope: str = "global",
    include: Patterns = None,
    exclude: Patterns = None,
) -> Iterator[Ticket]:
    """Find lottery tickets: train, prune the smallest weights, rewind, and train again.

    ``train(model, start, stop)`` is yours: it makes a new optimizer and takes the steps from
    ``start`` to ``stop``, with the learning rate that belongs to each. It is called for the steps
    up to ``rewind_step``, for the rest of the dense training, and once in each round. What is
    pruned stays zero, whatever is done along the gradient.

    With ``rewind="weights"`` each round begins with the parameters and buffers (those of batch
    normalisation too) of the dense network after ``rewind_step`` steps, to the bit. With
    ``"learning_rate"`` the trained weights go on, and only the steps begin anew.

    Args:
        model: Changed in place: its layers are replaced by masked ones.
        train: Trains a model from one step to another.
        steps: Steps of a whole training.
        sparsity: Fraction of the weights removed in the last round, in (0, 1).
        rate: Fraction of what is left that a round removes.
        rewind: ``"weights"`` or ``"learning_rate"``.
        rewind_step: Where a round begins.
        scope: ``"global"``, ``"layer"``, ``"er"`` or ``"erk"``, as for
            :func:`fullspectrum_ext.prune`.
        include: Glob patterns of parameter or layer names; only these are pruned.
        exclude: Glob patterns of names to leave out.

    Yields:
        A ticket after each training, the dense one first; ``model`` is then the trained network.

    Raises:
        ValueError: If a value is out of range or the model cannot be pruned.

    References:
        Frankle, Carbin: The Lottery Ticket Hypothesis, ICLR 2019, https://arxiv.org/abs/1803.03635.
        Frankle et al.: Linear Mode Connectivity and the Lottery Ticket Hypothesis, ICML 2020,
        https://arxiv.org/abs/1912.05671 (rewinding to step k). Renda, Frankle, Carbin: Comparing
        Rewinding and Fine-tuning in Neural Network Pruning, ICLR 2020,
        https://arxiv.org/abs/2003.02389 (learning-rate rewinding).

    Example:
        >>> import torch
        >>> def train(model, start, stop):
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     for _ in range(start, stop):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(1, 8)).square().sum().backward()
        ...         optimizer.step()
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> for ticket in lottery_tickets(model, train, steps=4, sparsity=0.4):
        ...     print(ticket.round, ticket.masks)
        0 MaskSet(2 layers, 40 of 40 weights kept, sparsity 0.0000)
        1 MaskSet(2 layers, 32 of 40 weights kept, sparsity 0.2000)
        2 MaskSet(2 layers, 26 of 40 weights kept, sparsity 0.3500)
        3 MaskSet(2 layers, 24 of 40 weights kept, sparsity 0.4000)
    """
    _checks.check_choice("rewind", rewind, REWINDINGS)
    if not 0 <= rewind_step < steps:
        raise ValueError(
            f"rewind_step, steps: expected 0 <= rewind_step < steps, got {rewind_step} and {steps}"
        )
    _checks.check_choice("scope", scope, SCOPES)
    densities = ticket_densities(sparsity, rate)
    weights = hold_masks(model, include, exclude)
    if rewind_step:
        train(model, 0, rewind_step)
    kept = copy.deepcopy(model.state_dict())
    train(model, rewind_step, steps)
    masks = held_masks(model, weights)
    yield Ticket(0, masks)
    for turn, density in enumerate(densities, start=1):
        masks = MaskSet(keep_largest(weights, masks, density, scope))
        if rewind == "weights":
            model.load_state_dict(kept)
        update_masks(model, masks)
        train(model, rewind_step, steps)
        yield Ticket(turn, masks)
