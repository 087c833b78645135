"""What methods share that prune in the first epochs of an ordinary training."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fullspectrum_ext import _checks
from fullspectrum_ext._layers import Patterns
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning.arguments import chosen_weights, refuse_collapse, resolve_density
from fullspectrum_ext.pruning.densities import total_count


class EarlyPruning(ABC):
    """Watches a training for some steps, in rounds of equal length, and prunes after each round.

    Call :meth:`step` after each step of the optimizer, before the gradients are cleared. What has
    been pruned is set to zero after each step, also when the last round is over, as long as
    :meth:`step` is called; :func:`fullspectrum_ext.sparsify` with ``masks`` takes over from there.

    Attributes:
        steps_done: Steps of the optimizer seen.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None,
        density: float | None,
        steps: int,
        rounds: int,
        include: Patterns,
        exclude: Patterns,
        allow_collapse: bool,
    ) -> None:
        self.density = resolve_density(sparsity, density)
        _checks.check_integer("steps", steps, 1)
        _checks.check_integer("rounds", rounds, 1, steps)
        self.steps, self.rounds, self.steps_done = steps, rounds, 0
        self._weights = chosen_weights(model, include, exclude)
        self._sizes = [weight.numel() for weight in self._weights.values()]
        self._count = total_count(self._sizes, self.density)
        self._allow_collapse = allow_collapse
        self._kept = {
            name: torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
            for name, weight in self._weights.items()
        }

    @property
    def masks(self) -> MaskSet:
        """The weights that are left; exactly as many as asked for, once :attr:`done`."""
        return MaskSet(self._kept, meta=self._made_by())

    @property
    def done(self) -> bool:
        """Whether the last round is over."""
        return self.steps_done >= self.steps

    @torch.no_grad()
    def step(self) -> None:
        """Look at a step of the optimizer, prune if a round ends with it, and hold the zeros.

        Raises:
            ValueError: If the method looks at gradients and there are none, or a layer would lose
                all of its weights.
        """
        if not self.done:
            self._watch()
            self.steps_done += 1
            for number in range(1, self.rounds + 1):
                if self.steps_done == self.steps * number // self.rounds:
                    self._end_round(number)
                    if not self._allow_collapse:
                        refuse_collapse(self.masks)
        for name, weight in self._weights.items():
            weight.masked_fill_(~self._kept[name], 0)

    def state_dict(self) -> dict[str, Any]:
        """Return all that its further doings depend on, beside model and optimizer."""
        return {
            "steps_done": self.steps_done,
            "kept": {name: mask.clone() for name, mask in self._kept.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken.

        Args:
            state: Of an object that was made for the same model with the same arguments.

        Raises:
            ValueError: If it is of another model. Nothing has changed then.
        """
        shapes = {name: mask.shape for name, mask in self._kept.items()}
        if {name: mask.shape for name, mask in state["kept"].items()} != shapes:
            raise ValueError("state: expected masks for the weights of this model")
        self._kept = {
            name: state["kept"][name].to(mask.device, copy=True)
            for name, mask in self._kept.items()
        }
        self.steps_done = int(state["steps_done"])

    @abstractmethod
    def _made_by(self) -> dict[str, Any]:
        """The masks' meta."""

    def _watch(self) -> None:  # noqa: B027 (not all methods do)
        """Look at the gradients of a step."""

    @abstractmethod
    def _end_round(self, number: int) -> None:
        """Prune after a round, the first one being 1."""
