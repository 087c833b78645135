"""What a pruning method is, what it is given, and the list of those there are."""

import copy
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning.batches import Batch, Batches
from fullspectrum_ext.pruning.selection import SCOPES, Scores, select

Loss = Callable[[Tensor, Tensor], Tensor]
Variation = Literal["batches", "seed", "nothing"]


@dataclass
class ScoringContext:
    """All that a pruning method may look at; a new need is a new attribute, not a new argument.

    Attributes:
        weights: Name to weight, detached, for reading. They may differ from the model's own: PAGS
            perturbs them for methods that neither data nor seed makes vary.
        density: Fraction of the weights to keep.
        scope: How the budget is spread over layers; see :func:`fullspectrum_ext.prune`.
        generator: The one source of randomness, on the CPU, so that masks are the same everywhere.
        batches: Data to score on, or None.
        loss: ``(outputs, targets) -> scalar``.
    """

    weights: Mapping[str, Tensor]
    density: float
    scope: str
    generator: torch.Generator
    batches: Batches | None
    loss: Loss
    _model: nn.Module

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where batches are moved."""
        return next(iter(self.weights.values())).device

    def copy_model(self) -> nn.Module:
        """Return a copy of the model, with ``weights`` in it, that the method may change."""
        model = copy.deepcopy(self._model)
        with torch.no_grad():
            for name, weight in self.weights.items():
                parameter = model.get_parameter(name)
                parameter.copy_(weight)
                parameter.grad = None
        return model

    def on_device(self) -> Iterator[Batch]:
        """Yield the batches, on the device of the weights.

        Yields:
            Inputs and targets.

        Raises:
            ValueError: If there is no data.
        """
        for inputs, targets in self._needed_batches():
            yield inputs.to(self.device), targets.to(self.device)

    def drawing(self, count: int) -> "ScoringContext":
        """Return the same context with a few freshly shuffled batches in place of all the data.

        Args:
            count: How many batches to draw from ``generator``; see :meth:`Batches.draw`.

        Returns:
            A context to score on.

        Raises:
            ValueError: If there is no data.
        """
        return dataclasses.replace(
            self, batches=Batches(self._needed_batches().draw(count, self.generator))
        )

    def trainable_copy(self) -> nn.Module:
        """Return a copy in training mode, of which only the weights to prune ask for gradients.

        Batch normalisation then uses the statistics of the batch: those of a fresh network (mean 0,
        variance 1) say nothing about its activations, and scores taken with them have been seen to
        prune whole layers. The running statistics that change are the copy's.
        """
        model = self.copy_model().train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.weights)
        return model

    def loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            outputs: What the model says.
            targets: What it should say.

        Returns:
            A tensor with one element.

        Raises:
            ValueError: If the loss is anything else.
        """
        loss = self.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError(f"loss: expected a scalar tensor, got {_described(loss)}")
        return loss

    def gradient(self) -> dict[str, Tensor]:
        """Return the gradient of the loss for every weight, summed over the batches.

        It is taken on a :meth:`trainable_copy`.

        Returns:
            Name to gradient; zeros for a weight that the loss does not depend on.

        Raises:
            ValueError: If there is no data, or the loss is not a scalar.
        """
        model = self.trainable_copy()
        with torch.enable_grad():
            for inputs, targets in self.on_device():
                self.loss_of(model(inputs), targets).backward()
        gradients = {name: model.get_parameter(name).grad for name in self.weights}
        return {
            name: torch.zeros_like(self.weights[name]) if gradient is None else gradient
            for name, gradient in gradients.items()
        }

    def select(self, scores: Scores, density: float | None = None) -> dict[str, Tensor]:
        """Cut scores to masks at ``density``, by default the one asked for, within the scope."""
        return select(scores, self.density if density is None else density, self.scope)

    def _needed_batches(self) -> Batches:
        if self.batches is None:
            raise ValueError("data: this method scores on data; pass batches (inputs, targets)")
        return self.batches


Method = Callable[..., Scores | MaskSet]


@dataclass(frozen=True)
class RegisteredMethod:
    """A pruning method with what the caller of it must know.

    Attributes:
        name: Its name.
        function: ``(context, **options) -> scores``, or whole masks.
        scopes: The scopes it can be used with; the first is the default.
        varies_by: What makes two runs of it differ.
        candidate_options: Options for PAGS's candidates, where a cheaper run will do.
    """

    name: str
    function: Method
    scopes: tuple[str, ...]
    varies_by: Variation
    candidate_options: Mapping[str, object] = field(default_factory=dict)

    def resolve_scope(self, scope: str | None) -> str:
        """Return the scope to use, the method's own where none is asked for.

        Args:
            scope: What the caller asked for.

        Returns:
            One of ``scopes``.

        Raises:
            ValueError: If the method cannot be used with it.
        """
        if scope is None:
            return self.scopes[0]
        if scope not in self.scopes:
            raise ValueError(
                f"scope: expected one of {', '.join(map(repr, self.scopes))} for method "
                f"{self.name!r}, got {scope!r}"
            )
        return scope

    def check_options(self, options: Mapping[str, object]) -> None:
        """Raise TypeError for an option that the method does not have.

        Args:
            options: Option name to value.

        Raises:
            TypeError: Naming the option and those there are.
        """
        known = list(inspect.signature(self.function).parameters)[1:]
        for option in options:
            if option not in known:
                near = difflib.get_close_matches(option, known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise TypeError(
                    f"method {self.name!r} has no option {option!r}{hint}; "
                    f"it has {', '.join(known) or 'none'}"
                )


_METHODS: dict[str, RegisteredMethod] = {}


def register_pruner(
    name: str,
    *,
    scopes: tuple[str, ...] = SCOPES,
    varies_by: Variation = "batches",
    candidate_options: Mapping[str, object] | None = None,
) -> Callable[[Method], Method]:
    """Add a pruning method under a name, as a decorator of the function that scores.

    The function gets a :class:`ScoringContext` and its options as keywords, and returns a score of
    the weight's shape for every name in ``context.weights``: the larger, the more to be kept. The
    budget, the ties and the checks are not its business. It may return a
    :class:`fullspectrum_ext.MaskSet` instead where scores cannot say what it wants.

    Args:
        name: What users call it.
        scopes: The scopes that make sense for it; the first is the default.
        varies_by: What makes two runs of it differ, so that PAGS can draw candidates: the
            ``"batches"`` it sees, the ``"seed"`` of ``context.generator``, or ``"nothing"`` (PAGS
            then adds noise to the weights).
        candidate_options: Options for these candidates, where a cheaper run will do.

    Returns:
        The decorator; it returns the function as it was. It refuses a name that another function
        has.

    Example:
        >>> @register_pruner("smallest", varies_by="nothing")
        ... def smallest(context):
        ...     return {name: -weight.abs() for name, weight in context.weights.items()}
        >>> "smallest" in methods()
        True
    """

    def register(function: Method) -> Method:
        taken = _METHODS.get(name)
        if taken is not None and taken.function.__qualname__ != function.__qualname__:
            raise ValueError(f"name: a pruning method {name!r} is already registered")
        _METHODS[name] = RegisteredMethod(
            name, function, scopes, varies_by, candidate_options or {}
        )
        return function

    return register


def methods() -> list[str]:
    """Return the names of the pruning methods, in alphabetical order.

    Example:
        >>> "snip" in methods()
        True
    """
    return sorted(_METHODS)


def find_method(name: str) -> RegisteredMethod:
    """Return the method of a name.

    Args:
        name: A name out of :func:`methods`.

    Returns:
        The method.

    Raises:
        ValueError: If there is none, with the names that are nearest.
    """
    if name not in _METHODS:
        near = difflib.get_close_matches(str(name), _METHODS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"method: there is no {name!r}; {hint}Known: {', '.join(methods())}")
    return _METHODS[name]


def _described(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
