"""What a method of dynamic sparse training is: what goes, what comes, when, and how much."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from fullspectrum_ext import _checks
from fullspectrum_ext.dynamic.layer import DynamicLayer

ANNEALINGS = ("constant", "cosine", "linear")


class Change(NamedTuple):
    """What becomes of a layer's topology.

    Attributes:
        drop: Indices into the layer's kept weights, rising; int64.
        grow: Flat positions in its matrix that are not kept, or are dropped, rising; int64. A
            weight that is dropped and grown stays as it is.
    """

    drop: Tensor
    grow: Tensor


@dataclass(frozen=True)
class Turn:
    """One update.

    Attributes:
        step: After which step of the optimizer it comes.
        progress: The share of the training that is over.
        is_last: Whether it stands at the end of the schedule.
        fraction: The fraction of a layer's weights to drop, as annealed.
        generator: The one source of randomness, on the CPU.
    """

    step: int
    progress: float
    is_last: bool
    fraction: float
    generator: torch.Generator


@dataclass(kw_only=True)
class Method:
    r"""Drops the smallest weights of each layer and grows as many at random, unless a subclass differs.

    With :math:`T` steps of training, updates come after every ``every`` steps, before the share
    ``until`` of them is over. The fraction :math:`\alpha` of a layer's weights that are dropped is,
    with :math:`x = t / (\mathrm{until} \cdot T)` and the floor :math:`\phi`,

    .. math:: \alpha, \quad
        \phi + \tfrac{1}{2} (\alpha - \phi) (1 + \cos \pi x), \quad
        \phi + (\alpha - \phi) (1 - x)

    for ``anneal`` ``"constant"``, ``"cosine"`` and ``"linear"``; the number of them is rounded down.

    A method of one's own overrides :meth:`drop_score` or :meth:`grow`, or :meth:`budgets` to move
    weights from layer to layer, or all of :meth:`update`.

    Args:
        every: Steps from one update to the next.
        fraction: Of a layer's weights, dropped at the first updates; in (0, 1).
        anneal: How it changes.
        floor: What it falls to.
        until: Share of the training in which the topology changes; in (0, 1].

    Raises:
        TypeError: If ``every`` is no int.
        ValueError: If a value is out of range.
    """  # noqa: E501

    every: int = 100
    fraction: float = 0.3
    anneal: str = "cosine"
    floor: float = 0.0
    until: float = 0.75

    needs_gradients: ClassVar[bool] = False
    """Whether an update looks at dense gradients (:meth:`DynamicLayer.steepest_places`)."""
    observes: ClassVar[bool] = False
    """Whether :meth:`observe` looks at the dense gradients of every step."""
    skips_step: ClassVar[bool] = False
    """Whether an update takes the place of the optimizer's step."""
    finishes: ClassVar[bool] = False
    """Whether there is an update at the end of the schedule, besides the regular ones."""
    starts: ClassVar[bool] = False
    """Whether there is one before the first step, too."""
    adjusts: ClassVar[bool] = False
    """Whether :meth:`adjust` changes the gradients before each step of the optimizer."""

    def __post_init__(self) -> None:
        _checks.check_integer("every", self.every, 1)
        _checks.check_choice("anneal", self.anneal, ANNEALINGS)
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction: expected a number in (0, 1), got {self.fraction}")
        if not 0 <= self.floor <= self.fraction:
            raise ValueError(
                f"floor: expected a number in [0, fraction = {self.fraction}], got {self.floor}"
            )
        if not 0 < self.until <= 1:
            raise ValueError(f"until: expected a share in (0, 1], got {self.until}")

    def last_step(self, steps: int) -> int:
        """Return the step at which the schedule ends, of all ``steps``."""
        return math.floor(self.until * steps)

    def is_due(self, step: int, steps: int) -> bool:
        """Say whether there is an update after a step, the first one being 1, of all ``steps``."""
        end = self.last_step(steps)
        return (0 < step < end and step % self.every == 0) or (self.finishes and step == end)

    def fraction_at(self, step: int, steps: int) -> float:
        """Return the fraction to drop after a step, of all ``steps``."""
        if self.anneal == "constant":
            return self.fraction
        x = min(step / max(self.last_step(steps), 1), 1.0)
        left = 1 - x if self.anneal == "linear" else (1 + math.cos(math.pi * x)) / 2
        return self.floor + (self.fraction - self.floor) * left

    def bind(self, layers: Sequence[DynamicLayer]) -> None:
        """Look at the layers before training begins."""

    def observe(self, layers: Sequence[DynamicLayer]) -> None:
        """Look at the gradients of a step; called where :attr:`observes` says so."""

    def update(self, layers: Sequence[DynamicLayer], turn: Turn) -> list[Change]:
        """Decide what goes and what comes.

        Args:
            layers: All layers that are trained with this method.
            turn: When this is, and how much.

        Returns:
            A change for each layer.
        """
        drops = [self.drop(layer, turn) for layer in layers]
        budgets = self.budgets(layers, drops)
        return [
            Change(drop, self.grow(layer, drop, count, turn))
            for layer, drop, count in zip(layers, drops, budgets, strict=True)
        ]

    def drop(self, layer: DynamicLayer, turn: Turn) -> Tensor:
        """Return which weights of a layer go: rising indices into its values."""
        return layer.smallest(self.drop_score(layer), int(turn.fraction * layer.nnz))

    def drop_score(self, layer: DynamicLayer) -> Tensor:
        """Return a score for each kept weight, not negative; the smallest go."""
        return layer.values.abs()

    def budgets(self, layers: Sequence[DynamicLayer], drops: Sequence[Tensor]) -> list[int]:
        """Return how many weights each layer grows: as many as it loses."""
        return [drop.numel() for drop in drops]

    def grow(self, layer: DynamicLayer, drop: Tensor, count: int, turn: Turn) -> Tensor:
        """Return which weights of a layer come: rising flat positions in its matrix."""
        return layer.random_places(drop, count, turn.generator)

    def settle(self, layer: DynamicLayer, grow: Tensor, copies: Sequence[DynamicLayer]) -> None:
        """Look at a layer after its update.

        Args:
            layer: The layer.
            grow: Flat positions of the weights that have come, and are 0, rising.
            copies: The same layer of the copies that follow the model.
        """

    def adjust(self, layers: Sequence[DynamicLayer]) -> None:
        """Change the gradients of a step, until the end of the schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return what further updates depend on, beside the layers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""


_METHODS: dict[str, Callable[..., Method]] = {}

MethodType = TypeVar("MethodType", bound=type[Method])


def register_method(name: str) -> Callable[[MethodType], MethodType]:
    """Give a method a name, by which :class:`fullspectrum_ext.DynamicSparsity` finds it.

    Args:
        name: One that is not taken.

    Returns:
        A decorator for a subclass of :class:`Method`.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> from fullspectrum_ext import dynamic
        >>> @dynamic.register_method("sensitivity")
        ... class Sensitivity(dynamic.Method):
        ...     def drop_score(self, layer):
        ...         return (layer.values * layer.gradient).abs()
        >>> "sensitivity" in dynamic.methods()
        True
    """
    if name in _METHODS:
        raise ValueError(f"name: there is a method {name!r} already")

    def register(method: MethodType) -> MethodType:
        _METHODS[name] = method
        return method

    return register


def methods() -> list[str]:
    """Return the names of the methods there are.

    Example:
        >>> from fullspectrum_ext import dynamic
        >>> {"set", "rigl"} <= set(dynamic.methods())
        True
    """
    return sorted(_METHODS)


def make_method(method: str | Method, options: Mapping[str, Any]) -> Method:
    """Make a method of its name and its options.

    Args:
        method: A name, or a method, which takes no options.
        options: Options of a method with a name.

    Returns:
        The method.

    Raises:
        TypeError: If it is neither, or does not have an option.
        ValueError: If there is no method of that name, or an option is out of range.
    """
    if isinstance(method, Method):
        if options:
            raise TypeError(
                f"{next(iter(options))}: expected options with the name of a method only; give "
                f"them to {type(method).__name__}(...)"
            )
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"method: expected a name, a Method or a mapping of glob patterns to these, "
            f"got {type(method).__name__}"
        )
    if method not in _METHODS:
        near = difflib.get_close_matches(method, _METHODS)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"method: expected one of {', '.join(methods())}, got {method!r}{hint}")
    made = _METHODS[method]
    known = {field.name for field in fields(made)}  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise TypeError(
                f"{option}: method {method!r} has no such option; it has {', '.join(sorted(known))}"
            )
    return made(**options)
