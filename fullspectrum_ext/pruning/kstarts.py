"""K-starts: random masks compete in the first epochs, and the fittest are kept."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fullspectrum_ext import _checks
from fullspectrum_ext._layers import Patterns
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning.arguments import resolve_seed
from fullspectrum_ext.pruning.densities import DENSITY_RULES, layer_counts
from fullspectrum_ext.pruning.early import EarlyPruning
from fullspectrum_ext.pruning.selection import keep_top_per_layer

Fitness = Literal["weight", "gradient", "both"]
Compete = Literal["layer", "network"]


class KStarts(EarlyPruning):
    r"""Draws random masks, lets them compete while the dense network trains, and keeps the fittest.

    Each of ``candidates`` random masks :math:`m_i` holds exactly the weights asked for. After each
    of ``rounds`` equal parts of ``steps`` optimizer steps the fitter half goes on, and after the
    last one the fittest alone; what it does not hold is removed. With the gradients accumulated
    over the round, :math:`G = \sum_t |\partial L_t / \partial w|`, the fitness is

    .. math:: f_i^{\text{weight}} = \frac{\|m_i \circ w\|_1}{\|w\|_1}, \qquad
        f_i^{\text{gradient}} = \frac{\|m_i \circ G\|_1}{\|G\|_1}

    or the sum of both; of equally fit masks the one drawn first wins. See :class:`EarlyPruning`
    for how to call it::

        kstarts = fs.KStarts(model, sparsity=0.9, steps=2 * len(loader), seed=0)
        for x, y in batches:
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()
            kstarts.step()
        fs.sparsify(model, kstarts.masks)

    Args:
        model: Its ``Linear``, ``Conv2d``, ``RNN``, ``LSTM`` and ``GRU`` layers are pruned.
        sparsity: Fraction of the weights to remove. Give this or ``density``.
        density: Fraction to keep.
        steps: Optimizer steps until the fittest is known: those of the first epochs.
        rounds: Selections in this time.
        candidates: Masks drawn, :math:`k`.
        fitness: ``"weight"``, ``"gradient"`` or ``"both"``.
        compete: ``"layer"``: each layer takes its fittest mask. ``"network"``: the masks of one
            draw stay together.
        scope: How the budget is spread over layers: ``"layer"``, ``"er"`` or ``"erk"``, see
            :func:`fullspectrum_ext.prune`.
        within: Masks that the candidates are drawn inside of; the others are removed from the
            beginning. Each layer then keeps the same share of them (``scope`` ``"layer"``).
        include: Glob patterns of parameter or layer names; only these are pruned.
        exclude: Glob patterns of names to leave out.
        seed: Of the masks; by default torch's random state decides it.
        allow_collapse: Accept masks that leave a layer without a single weight.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a value is out of range or the model cannot be pruned.

    References:
        Haroon, 2022, https://arxiv.org/abs/2209.02201: the idea; the tournament is ours.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> kstarts = KStarts(model, sparsity=0.75, steps=10, seed=0)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(1, 8)).square().sum().backward()
        ...     optimizer.step()
        ...     kstarts.step()
        >>> kstarts.masks
        MaskSet(2 layers, 10 of 40 weights kept, sparsity 0.7500)
    """  # noqa: DOC502

    def __init__(
        self,
        model: nn.Module,
        *,
        sparsity: float | None = None,
        density: float | None = None,
        steps: int,
        rounds: int = 2,
        candidates: int = 10,
        fitness: Fitness = "both",
        compete: Compete = "layer",
        scope: str = "layer",
        within: MaskSet | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        seed: int | None = None,
        allow_collapse: bool = False,
    ) -> None:
        super().__init__(model, sparsity, density, steps, rounds, include, exclude, allow_collapse)
        _checks.check_integer("candidates", candidates, 1)
        _checks.check_choice("fitness", fitness, get_args(Fitness))
        _checks.check_choice("compete", compete, get_args(Compete))
        _checks.check_choice("scope", scope, tuple(DENSITY_RULES) if within is None else ("layer",))
        self.candidates, self.fitness, self.compete = candidates, fitness, compete
        self.scope, self.seed = scope, resolve_seed(seed)
        if within is not None:
            self._kept = _starts_within(within, self._kept)
        self._within = self._kept
        self._counts = self._layer_counts()
        names = list(self._weights)
        self._groups = {name: [name] for name in names} if compete == "layer" else {"all": names}
        self._alive = {group: list(range(candidates)) for group in self._groups}
        self._starts = self._draw()
        self._gradients = {name: torch.zeros_like(w) for name, w in self._weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all that its further doings depend on, beside model and optimizer."""
        return {
            **super().state_dict(),
            "seed": self.seed,
            "alive": {group: list(numbers) for group, numbers in self._alive.items()},
            "gradients": {name: gradient.clone() for name, gradient in self._gradients.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken; see :class:`EarlyPruning`."""
        super().load_state_dict(state)
        self._alive = {group: list(numbers) for group, numbers in state["alive"].items()}
        for name, gradient in self._gradients.items():
            gradient.copy_(state["gradients"][name])
        if state["seed"] != self.seed:
            self.seed = state["seed"]
            self._starts = self._draw()

    def _made_by(self) -> dict[str, Any]:
        names = ("steps", "rounds", "candidates", "fitness", "compete")
        options = {name: getattr(self, name) for name in names}
        made_by = {"method": "kstarts", "density": self.density, "scope": self.scope}
        return {**made_by, "seed": self.seed, "options": options}

    def _layer_counts(self) -> dict[str, int]:
        left = {name: int(mask.count_nonzero()) for name, mask in self._within.items()}
        if left == {name: mask.numel() for name, mask in self._within.items()}:
            shapes = {name: tuple(mask.shape) for name, mask in self._within.items()}
            return layer_counts(shapes, self.density, self.scope)
        if sum(left.values()) < self._count:
            raise ValueError(
                f"within: expected at least the {self._count} weights to keep, "
                f"got {sum(left.values())}"
            )
        share = self._count / sum(left.values())
        return layer_counts({name: (count,) for name, count in left.items()}, share, "layer")

    def _draw(self) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        starts = []
        for _ in range(self.candidates):
            scores = {}
            for name, mask in self._within.items():
                score = torch.rand(mask.shape, generator=generator, dtype=torch.float64)
                scores[name] = score.to(mask.device).masked_fill_(~mask, -1)
            starts.append(keep_top_per_layer(scores, self._counts))
        return starts

    def _watch(self) -> None:
        if self.fitness == "weight":
            return
        if all(weight.grad is None for weight in self._weights.values()):
            raise ValueError("step: expected gradients: call it before they are cleared")
        for name, weight in self._weights.items():
            if weight.grad is not None:
                self._gradients[name] += weight.grad.abs()

    def _end_round(self, number: int) -> None:
        for group, numbers in self._alive.items():
            fitness = {start: self._fitness_of(start, self._groups[group]) for start in numbers}
            if not all(map(math.isfinite, fitness.values())):
                raise ValueError("model: the weights or gradients hold NaN or infinite values")
            left = 1 if number == self.rounds else math.ceil(len(numbers) / 2)
            fittest = sorted(numbers, key=lambda start: (-fitness[start], start))  # noqa: B023
            self._alive[group] = sorted(fittest[:left])
        for gradient in self._gradients.values():
            gradient.zero_()
        if number == self.rounds:
            self._kept = {
                name: self._starts[self._alive[group][0]][name]
                for group, names in self._groups.items()
                for name in names
            }

    def _fitness_of(self, start: int, names: list[str]) -> float:
        measures = []
        if self.fitness != "gradient":
            measures.append({name: self._weights[name].detach().abs() for name in names})
        if self.fitness != "weight":
            measures.append({name: self._gradients[name] for name in names})
        fitness = 0.0
        for values in measures:
            whole = sum(float(value.double().sum()) for value in values.values())
            inside = sum(
                float((value.double() * self._starts[start][name]).sum())
                for name, value in values.items()
            )
            fitness += inside / whole if whole != 0 else 0.0
        return fitness


def _starts_within(within: object, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(within, MaskSet):
        raise TypeError(f"within: expected a MaskSet, got {type(within).__name__}")
    if {name: mask.shape for name, mask in within.items()} != {
        name: mask.shape for name, mask in kept.items()
    }:
        raise ValueError("within: expected masks for the weights that are to be pruned")
    return {name: within[name].to(mask.device) for name, mask in kept.items()}
