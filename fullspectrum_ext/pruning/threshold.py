"""Gradual pruning by a rising threshold, as it was done to recurrent networks."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fullspectrum_ext._layers import Patterns, prunable_weights, select_names
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.nn.masked import update_masks
from fullspectrum_ext.pruning.gradual import check_optimizer, held_masks, hold_masks, refuse_empty


def rising_threshold(
    step: int, quantile: float, begin: int, ramp: int, end: int, every: int
) -> float:
    r"""Return the threshold of Narang et al. after some steps, about :math:`q` in the end.

    .. math:: \epsilon_t = \begin{cases} \theta (t - t_0 + 1) / f & t < t_r \\
        (\theta (t_r - t_0 + 1) + \varphi (t - t_r + 1)) / f & t \ge t_r \end{cases}, \quad
        \theta = \frac{2 q f}{2 (t_r - t_0) + 3 (t_1 - t_r)}, \quad \varphi = 1.5\, \theta

    Args:
        step: :math:`t`.
        quantile: :math:`q`, a large magnitude of the layer's trained weights.
        begin: :math:`t_0`.
        ramp: :math:`t_r`, from which on it rises faster.
        end: :math:`t_1`.
        every: :math:`f`, steps from one pruning to the next.

    Returns:
        The threshold.

    References:
        Narang, Diamos, Sengupta, Elsen: Exploring Sparsity in Recurrent Neural Networks, ICLR 2017,
        https://arxiv.org/abs/1704.05119, section 3.

    Example:
        >>> round(rising_threshold(1999, 0.1, 1000, 1500, 2000, 100), 3)
        0.1
    """
    theta = 2 * quantile * every / (2 * (ramp - begin) + 3 * (end - ramp))
    if step < ramp:
        return theta * (step - begin + 1) / every
    return (theta * (ramp - begin + 1) + 1.5 * theta * (step - ramp + 1)) / every


def magnitude_quantiles(
    model: nn.Module,
    fraction: float = 0.9,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
) -> dict[str, float]:
    """Return a quantile of the magnitudes in each weight of a network that was trained dense.

    Args:
        model: The trained network; it is not changed.
        fraction: Of the weights that are smaller.
        include: Glob patterns of parameter or layer names.
        exclude: Glob patterns of names to leave out.

    Returns:
        Parameter name to quantile: the ``ceil(fraction * n)``-th smallest of ``n`` magnitudes.

    Raises:
        ValueError: If ``fraction`` is not in (0, 1), or the model cannot be pruned.

    Example:
        >>> layer = nn.Linear(10, 1)
        >>> layer.weight.data = torch.arange(10.0).view(1, 10)
        >>> magnitude_quantiles(nn.Sequential(layer))
        {'0.weight': 8.0}
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected a number in (0, 1), got {fraction}")
    weights = dict(prunable_weights(model))
    return {
        name: _quantile(weights[name], fraction) for name in select_names(weights, include, exclude)
    }


class ThresholdPruning:
    """Prunes a network while it is trained, by thresholds that rise (Narang et al.).

    Made for recurrent networks, whose layers differ in scale: each weight matrix has a threshold of
    its own, which ends at a quantile of the magnitudes that it has after dense training. How many
    weights are left is what comes of it; :class:`GradualPruning` meets a sparsity exactly.

    Call :meth:`step` after each step of the optimizer. Every ``every`` steps between ``begin`` and
    ``end``, what is below the threshold of :func:`rising_threshold` is removed, and stays zero. The
    layers of the model are replaced in place by masked ones, as by :class:`GradualPruning`, and it
    is resumed in the same way.

    Args:
        model: Its weights are pruned.
        optimizer: The one that trains it.
        quantiles: Parameter name to :func:`magnitude_quantiles` of a dense run; weights that are
            not named are not pruned.
        begin: The paper takes the start of the second epoch.
        ramp: Where the thresholds begin to rise faster; the paper: a quarter of all steps.
        end: The last pruning comes before; the paper: half of all steps.
        every: Steps from one pruning to the next.

    Attributes:
        steps: Steps of the optimizer seen.

    Raises:
        TypeError: If ``model`` or ``optimizer`` is something else.
        ValueError: If a value is out of range, a name is not that of a weight, or the model cannot
            be pruned.

    References:
        Narang, Diamos, Sengupta, Elsen: Exploring Sparsity in Recurrent Neural Networks, ICLR 2017,
        https://arxiv.org/abs/1704.05119, section 3.

    Example:
        >>> model = nn.ModuleDict({"lstm": nn.LSTM(3, 8)})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> quantiles = magnitude_quantiles(model)  # of a network that was trained, really
        >>> pruning = ThresholdPruning(
        ...     model, optimizer, quantiles, begin=2, ramp=6, end=10, every=2
        ... )
        >>> for _ in range(10):
        ...     pruning.step()  # after optimizer.step()
        >>> pruning.masks.sparsity > 0.7
        True
    """  # noqa: DOC502

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        quantiles: Mapping[str, float],
        *,
        begin: int,
        ramp: int,
        end: int,
        every: int = 100,
    ) -> None:
        if not 0 <= begin < ramp < end or every < 1:
            raise ValueError(
                "begin, ramp, end, every: expected 0 <= begin < ramp < end and every >= 1, "
                f"got {begin}, {ramp}, {end} and {every}"
            )
        for name, quantile in quantiles.items():
            if not (quantile >= 0 and math.isfinite(quantile)):
                raise ValueError(f"quantiles[{name!r}]: expected a number >= 0, got {quantile}")
        check_optimizer(optimizer)
        self.model, self.optimizer = model, optimizer
        self.quantiles = dict(quantiles)
        self.begin, self.ramp, self.end, self.every = begin, ramp, end, every
        self.steps = 0
        self._weights = hold_masks(model, include=list(quantiles))

    @property
    def masks(self) -> MaskSet:
        """The weights that are left."""
        return held_masks(self.model, self._weights)

    def step(self) -> None:
        """Count a step of the optimizer, and prune if it is time."""
        self.steps += 1
        if self.begin < self.steps < self.end and self.steps % self.every == 0:
            update_masks(self.model, self._above(), self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return how far it is; the masks are in the state of the model."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self.steps = int(state["steps"])

    def _above(self) -> dict[str, Tensor]:
        masks = {}
        for name, mask in self.masks.items():
            threshold = rising_threshold(
                self.steps, self.quantiles[name], self.begin, self.ramp, self.end, self.every
            )
            masks[name] = mask & (self._weights[name].detach().abs() >= threshold)
        refuse_empty(masks, f"the threshold after {self.steps} steps")
        return masks


def _quantile(weight: Tensor, fraction: float) -> float:
    magnitudes = weight.detach().flatten().abs()
    return float(magnitudes.kthvalue(max(math.ceil(fraction * magnitudes.numel()), 1)).values)
