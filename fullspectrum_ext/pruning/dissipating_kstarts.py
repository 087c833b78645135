"""Dissipating gradients and K-starts one after the other."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fullspectrum_ext import _checks
from fullspectrum_ext._layers import Patterns
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning.arguments import resolve_density, resolve_seed
from fullspectrum_ext.pruning.dissipating import DissipatingGradients
from fullspectrum_ext.pruning.kstarts import Compete, Fitness, KStarts


class DissipatingKStarts:
    r"""Removes the weights that hardly move, then lets random masks compete inside what is left.

    In the first half of the steps :class:`DissipatingGradients` takes the network to the density
    :math:`\sqrt d`; in the second half the candidates of :class:`KStarts` are drawn inside the
    survivors and take it to :math:`d`. It is called as they are.

    Args:
        model: Its ``Linear``, ``Conv2d``, ``RNN``, ``LSTM`` and ``GRU`` layers are pruned; their
            weights are the start.
        sparsity: Fraction of the weights to remove. Give this or ``density``.
        density: Fraction to keep.
        steps: Optimizer steps until the masks are final.
        rounds: Rounds in each half.
        candidates: Masks drawn.
        fitness: ``"weight"``, ``"gradient"`` or ``"both"``.
        compete: ``"layer"`` or ``"network"``.
        scope: What the first half spreads the weights over layers by, as in
            :class:`DissipatingGradients`; the second half removes the same share of each.
        include: Glob patterns of parameter or layer names; only these are pruned.
        exclude: Glob patterns of names to leave out.
        seed: Of the masks; by default torch's random state decides it.
        allow_collapse: Accept masks that leave a layer without a single weight.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a value is out of range or the model cannot be pruned.

    References:
        Haroon, 2022, https://arxiv.org/abs/2209.02201.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> pruning = DissipatingKStarts(model, sparsity=0.75, steps=10, seed=0)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(1, 8)).square().sum().backward()
        ...     optimizer.step()
        ...     pruning.step()
        >>> pruning.masks
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
        scope: str = "global",
        include: Patterns = None,
        exclude: Patterns = None,
        seed: int | None = None,
        allow_collapse: bool = False,
    ) -> None:
        self.density = resolve_density(sparsity, density)
        _checks.check_integer("rounds", rounds, 1)
        _checks.check_integer("steps", steps, 2 * rounds)
        self.steps = steps
        common: dict[str, Any] = {
            "rounds": rounds,
            "include": include,
            "exclude": exclude,
            "allow_collapse": allow_collapse,
        }
        self._model = model
        self._options = common | {
            "density": self.density,
            "steps": steps - steps // 2,
            "candidates": candidates,
            "fitness": fitness,
            "compete": compete,
            "seed": resolve_seed(seed),
        }
        KStarts(model, **self._options)  # refuses now what it would refuse in the middle
        self._dissipating = DissipatingGradients(
            model, density=math.sqrt(self.density), steps=steps // 2, scope=scope, **common
        )
        self._kstarts: KStarts | None = None

    @property
    def masks(self) -> MaskSet:
        """The weights that are left; exactly as many as asked for, once :attr:`done`."""
        masks = (self._kstarts or self._dissipating).masks
        masks.meta["method"] = "dissipating_kstarts"
        return masks

    @property
    def done(self) -> bool:
        """Whether the last round is over."""
        return self._kstarts is not None and self._kstarts.done

    @torch.no_grad()
    def step(self) -> None:
        """Look at a step of the optimizer, prune if it is time, and hold the zeros."""
        if self._kstarts is not None:
            self._kstarts.step()
            return
        self._dissipating.step()
        if self._dissipating.done:
            self._kstarts = self._make_kstarts()

    def state_dict(self) -> dict[str, Any]:
        """Return all that its further doings depend on, beside model and optimizer."""
        return {
            "dissipating": self._dissipating.state_dict(),
            "kstarts": None if self._kstarts is None else self._kstarts.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken; see :class:`EarlyPruning`."""
        self._dissipating.load_state_dict(state["dissipating"])
        self._kstarts = None
        if state["kstarts"] is not None:
            self._kstarts = self._make_kstarts()
            self._kstarts.load_state_dict(state["kstarts"])

    def _make_kstarts(self) -> KStarts:
        return KStarts(self._model, within=self._dissipating.masks, **self._options)
