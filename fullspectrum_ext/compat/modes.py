"""What the names of modes stand for, and what is said of those that have no counterpart."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import optim

from fullspectrum_ext.compat.exploration import (
    Exploration,
    GradientExploration,
    MomentumExploration,
    Scheduled,
)
from fullspectrum_ext.pruning.gradual import check_optimizer

_DEATHS = ("magnitude", "SET", "Taylor_FO")
_GROWTHS = ("random", "gradient", "momentum")
_INSTEAD = {
    "threshold": "fullspectrum_ext.DynamicSparsity(..., 'dsr') drops below a threshold",
    "random_unfired": "'random' explores, and fired_masks_update() says which share was explored",
    "momentum_neuron": "'momentum' looks at the same momentum",
}


def check_mode(name: str, value: object, known: Sequence[str], instead: Mapping[str, str]) -> str:
    """Return a mode, or refuse it.

    Args:
        name: Of the argument.
        value: What was given.
        known: What there is.
        instead: What to use in place of others.

    Returns:
        The mode.

    Raises:
        TypeError: If it is a function of one's own.
        ValueError: If there is no such mode here.
    """
    if callable(value):
        raise TypeError(
            f"{name}: expected a name, got a function; write a fullspectrum_ext.dynamic.Method and "
            "give it to fullspectrum_ext.DynamicSparsity"
        )
    if not isinstance(value, str) or value not in known:
        hint = f": {instead[value]}" if isinstance(value, str) and value in instead else ""
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}{hint}")
    return value


def exploration(
    optimizer: optim.Optimizer, death: str, growth: str, every: int, rate: float
) -> Scheduled:
    """Make the method that a death mode and a growth mode stand for, each layer by itself.

    Args:
        optimizer: Has the momentum.
        death: The death mode.
        growth: The growth mode.
        every: Steps from one update to the next.
        rate: Fraction dropped at first.

    Returns:
        The method.
    """
    check_mode("death_mode", death, _DEATHS, _INSTEAD)
    check_mode("growth_mode", growth, _GROWTHS, _INSTEAD)
    if growth == "momentum":
        return MomentumExploration(
            every=every, fraction=rate, death=death, momentum=momentum_of(optimizer)
        )
    made = GradientExploration if growth == "gradient" else Exploration
    return made(every=every, fraction=rate, death=death)


def momentum_of(optimizer: optim.Optimizer) -> float:
    """Return the momentum that an optimizer trains with, or the first of its betas.

    Args:
        optimizer: As SGD or Adam; of another one, 0.9.

    Returns:
        The momentum.
    """
    check_optimizer(optimizer)
    group = optimizer.param_groups[0]
    return float(group.get("momentum") or group.get("betas", (0.9,))[0])


def check_ratio(growth_death_ratio: float) -> None:
    """Refuse a ratio other than 1, which the originals take and do not read."""
    if growth_death_ratio != 1:
        raise ValueError(
            f"growth_death_ratio: expected 1, got {growth_death_ratio}: as many grow as die"
        )


def check_args(args: Any, names: tuple[str, ...]) -> None:
    """Refuse ``args`` without what is read of it."""
    for name in names:
        if not hasattr(args, name):
            raise ValueError(
                f"args: expected the options of add_sparse_args with {', '.join(names)}, "
                f"got {type(args).__name__} without {name}"
            )
