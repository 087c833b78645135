"""Dissipating gradients: weights that stay near their start are removed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fullspectrum_ext import _checks
from fullspectrum_ext._layers import Patterns
from fullspectrum_ext.pruning.early import EarlyPruning
from fullspectrum_ext.pruning.gradual import select_left
from fullspectrum_ext.pruning.selection import SCOPES


class DissipatingGradients(EarlyPruning):
    r"""Removes the weights that the first epochs hardly move, whatever their magnitude.

    After each of ``rounds`` equal parts of ``steps`` optimizer steps, the weights are ranked by how
    far they are from their start :math:`w^0`, relative to it:

    .. math:: \rho = |w - w^0| / (|w^0| + 10^{-12})

    and the lowest are removed for good. The number kept falls in equal steps from all to
    ``round(density * N)``. Where layers start from weights of different sizes, as in convolutional
    networks, those with large ones come out last in a ranking over all layers, and the first layer
    may keep next to nothing: give another ``scope`` there. Weight decay moves every weight in the
    same proportion, which does not change their order. See :class:`EarlyPruning` for how to call
    it::

        dissipating = fs.DissipatingGradients(model, sparsity=0.9, steps=2 * len(loader))
        for x, y in batches:
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()
            dissipating.step()
        fs.sparsify(model, dissipating.masks)

    Args:
        model: Its ``Linear``, ``Conv2d``, ``RNN``, ``LSTM`` and ``GRU`` layers are pruned; their
            weights are the start.
        sparsity: Fraction of the weights to remove. Give this or ``density``.
        density: Fraction to keep.
        steps: Optimizer steps until the last removal: those of the first epochs.
        rounds: Removals in this time.
        scope: ``"global"``: the lowest over all layers together. ``"layer"``, ``"er"``, ``"erk"``:
            the lowest of each, as for :func:`fullspectrum_ext.prune`.
        include: Glob patterns of parameter or layer names; only these are pruned.
        exclude: Glob patterns of names to leave out.
        allow_collapse: Accept masks that leave a layer without a single weight.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a value is out of range or the model cannot be pruned.

    References:
        Haroon, 2022, https://arxiv.org/abs/2209.02201: the idea; the rounds are ours.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2, bias=False))
        >>> dissipating = DissipatingGradients(model, sparsity=0.75, steps=1, rounds=1)
        >>> with torch.no_grad():
        ...     _ = model[0].weight[1, 2:].mul_(2)  # in place of a step of the optimizer
        >>> dissipating.step()
        >>> model[0].weight.ne(0).int().tolist()
        [[0, 0, 0, 0], [0, 0, 1, 1]]
    """  # noqa: DOC502

    def __init__(
        self,
        model: nn.Module,
        *,
        sparsity: float | None = None,
        density: float | None = None,
        steps: int,
        rounds: int = 2,
        scope: str = "global",
        include: Patterns = None,
        exclude: Patterns = None,
        allow_collapse: bool = False,
    ) -> None:
        super().__init__(model, sparsity, density, steps, rounds, include, exclude, allow_collapse)
        _checks.check_choice("scope", scope, SCOPES)
        self.scope = scope
        self._start = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all that its further doings depend on, beside model and optimizer."""
        start = {name: weight.clone() for name, weight in self._start.items()}
        return {**super().state_dict(), "start": start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken; see :class:`EarlyPruning`."""
        super().load_state_dict(state)
        for name, weight in self._start.items():
            weight.copy_(state["start"][name])

    def _made_by(self) -> dict[str, Any]:
        options = {"steps": self.steps, "rounds": self.rounds}
        made_by = {"method": "dissipating", "density": self.density, "scope": self.scope}
        return {**made_by, "options": options}

    def _end_round(self, number: int) -> None:
        size = sum(self._sizes)
        left = size - round((size - self._count) * number / self.rounds)
        moved = {name: self._moved(name) for name in self._weights}
        self._kept = select_left(moved, self._kept, left / size, self.scope)

    def _moved(self, name: str) -> Tensor:
        weight, start = self._weights[name].detach(), self._start[name]
        if weight.dtype in {torch.float16, torch.bfloat16}:
            weight, start = weight.float(), start.float()
        moved = (weight - start).abs() / (start.abs() + 1e-12)
        if not bool(moved.isfinite().all()):
            raise ValueError(f"model: {name} holds NaN or infinite values")
        return moved.masked_fill_(~self._kept[name], -torch.inf)
