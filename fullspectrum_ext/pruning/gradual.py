"""Gradual magnitude pruning: a little is pruned every so many steps of an ordinary training."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fullspectrum_ext import _checks
from fullspectrum_ext._layers import Patterns, prunable_weights, select_names
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.nn.masked import update_masks
from fullspectrum_ext.nn.sparsify import sparsify
from fullspectrum_ext.pruning.densities import layer_counts, total_count
from fullspectrum_ext.pruning.selection import SCOPES, keep_top, keep_top_per_layer


def cubic_sparsity(step: int, begin: int, end: int, initial: float, final: float) -> float:
    r"""Return the sparsity that gradual pruning has after some steps.

    .. math:: s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{t_1 - t_0}\right)^3,
        \quad t_0 \le t \le t_1

    and :math:`s_i` before, :math:`s_f` after: most is pruned early, while much is redundant.

    Args:
        step: :math:`t`.
        begin: :math:`t_0`.
        end: :math:`t_1`, larger.
        initial: :math:`s_i`.
        final: :math:`s_f`.

    Returns:
        The sparsity.

    References:
        Zhu, Gupta: To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878, equation 1.

    Example:
        >>> [cubic_sparsity(step, 0, 4, 0.0, 0.64) for step in (0, 2, 4)]
        [0.0, 0.56, 0.64]
    """
    left = 1 - (min(max(step, begin), end) - begin) / (end - begin)
    return final + (initial - final) * left**3


class GradualPruning:
    """Prunes a network by magnitude while it is trained, little by little, to an exact sparsity.

    Call :meth:`step` after each step of the optimizer. After ``begin`` steps, every ``every`` steps
    from there and after ``end`` steps, the smallest of the weights that are left are removed, so
    that ``round((1 - s_t) * N)`` of ``N`` remain, with the sparsity of :func:`cubic_sparsity`. What
    is pruned is zero and stays so.

    The layers of the model are replaced in place by masked ones, whose parameters are the same
    objects, so the optimizer stays as it is. Afterwards :func:`fullspectrum_ext.sparsify` with
    ``pruning.masks`` makes the model truly sparse.

    To resume: make model, optimizer and this object as before, then load the state of each. The
    masks are in the model's.

    Args:
        model: Its ``Linear``, ``Conv2d``, ``RNN``, ``LSTM`` and ``GRU`` layers are pruned.
        optimizer: The one that trains it.
        sparsity: Fraction of the weights removed in the end, in (0, 1).
        end: Optimizer steps after which it is reached.
        begin: Steps before any weight is pruned.
        every: Steps from one pruning to the next.
        initial_sparsity: The sparsity after ``begin`` steps.
        scope: ``"layer"`` (as in the paper), ``"global"``, ``"er"`` or ``"erk"``, as for
            :func:`fullspectrum_ext.prune`.
        include: Glob patterns of parameter or layer names; only these are pruned.
        exclude: Glob patterns of names to leave out.

    Attributes:
        steps: Steps of the optimizer seen.

    Raises:
        TypeError: If ``model`` or ``optimizer`` is something else.
        ValueError: If a value is out of range, the model cannot be pruned, or the optimizer holds
            its state otherwise than by weight.

    References:
        Zhu, Gupta: To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> pruning = GradualPruning(model, optimizer, sparsity=0.75, end=20, every=5)
        >>> for _ in range(20):
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
        optimizer: torch.optim.Optimizer,
        *,
        sparsity: float,
        end: int,
        begin: int = 0,
        every: int = 100,
        initial_sparsity: float = 0.0,
        scope: str = "layer",
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> None:
        if not 0 <= initial_sparsity <= sparsity < 1:
            raise ValueError(
                "initial_sparsity, sparsity: expected 0 <= initial_sparsity <= sparsity < 1, "
                f"got {initial_sparsity} and {sparsity}"
            )
        if not 0 <= begin < end or every < 1:
            raise ValueError(
                "begin, end, every: expected 0 <= begin < end and every >= 1, "
                f"got {begin}, {end} and {every}"
            )
        _checks.check_choice("scope", scope, SCOPES)
        self.model, self.optimizer = model, optimizer
        self.sparsity, self.initial_sparsity = sparsity, initial_sparsity
        self.begin, self.end, self.every = begin, end, every
        self.scope = scope
        self.steps = 0
        check_optimizer(optimizer)
        self._weights = hold_masks(model, include, exclude)
        if begin == 0:
            self._prune()

    @property
    def masks(self) -> MaskSet:
        """The weights that are left."""
        return held_masks(self.model, self._weights)

    @property
    def done(self) -> bool:
        """Whether the sparsity asked for is reached."""
        return self.steps >= self.end

    def step(self) -> None:
        """Count a step of the optimizer, and prune if it is time."""
        self.steps += 1
        since = self.steps - self.begin
        if self.steps == self.end or (
            since >= 0 and self.steps < self.end and not since % self.every
        ):
            self._prune()

    def state_dict(self) -> dict[str, Any]:
        """Return how far it is; the masks are in the state of the model."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self.steps = int(state["steps"])

    def _prune(self) -> None:
        sparsity = cubic_sparsity(
            self.steps, self.begin, self.end, self.initial_sparsity, self.sparsity
        )
        kept = keep_largest(self._weights, self.masks, 1 - sparsity, self.scope)
        update_masks(self.model, kept, self.optimizer)


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse what is no optimizer, or one whose state cannot be told apart by weight."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected one of torch.optim, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("optimizer: expected one that holds its state by weight, got LBFGS")


def hold_masks(
    model: nn.Module, include: Patterns = None, exclude: Patterns = None
) -> dict[str, nn.Parameter]:
    """Replace the layers of a model by masked ones that keep every weight.

    Args:
        model: Changed in place; the parameters stay the same objects.
        include: Glob patterns of names, as for :func:`fullspectrum_ext.prune`.
        exclude: Likewise.

    Returns:
        Name to weight, of those that have a mask now.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If there is no layer to prune.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    weights = dict(prunable_weights(model))
    if not weights:
        raise ValueError("model: expected a layer to prune, found none")
    if any("." not in name for name in weights):
        raise ValueError("model: expected a module with layers, got a layer: wrap it in Sequential")
    chosen = {name: weights[name] for name in select_names(weights, include, exclude)}
    if not chosen:
        raise ValueError("include, exclude: no layer is left to prune")
    ones = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in chosen.items()}
    sparsify(model, ones, backend="masked")
    return chosen


def held_masks(model: nn.Module, names: Iterable[str]) -> MaskSet:
    """Read the masks of these weights off a model."""
    layers = MaskSet.from_model(model)
    return MaskSet({name: layers[name] for name in names})


def keep_largest(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], density: float, scope: str
) -> dict[str, Tensor]:
    """Keep the largest of the weights that are left, ``round(density * N)`` of all ``N``.

    Args:
        weights: Name to weight.
        masks: Name to which are left; no other is kept.
        density: Fraction of all weights, at most that which is left.
        scope: How the budget is spread over layers.

    Returns:
        Name to mask.

    Raises:
        ValueError: If a layer would lose all of its weights, or one is NaN.
    """
    scores = {
        name: weight.detach().abs().masked_fill(~masks[name].to(weight.device), -torch.inf)
        for name, weight in weights.items()
    }
    for name, score in scores.items():
        if not bool(score.max() < torch.inf):  # the largest of some with NaN is NaN
            raise ValueError(f"model: {name} holds NaN or infinite values")
    kept = select_left(scores, masks, density, scope)
    refuse_empty(kept, f"density {density:.3g}")
    return kept


def select_left(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], density: float, scope: str
) -> dict[str, Tensor]:
    """Keep the largest scores of the weights that are left, ``round(density * N)`` of all ``N``.

    Args:
        scores: Name to scores, ``-inf`` for weights that are gone.
        masks: Name to which are left.
        density: Fraction of all weights, at most that which is left.
        scope: How the budget is spread over layers. No layer gets back what it has lost: what it
            cannot fill goes to the others.

    Returns:
        Name to mask.
    """
    left = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
    if scope == "global":
        count = total_count([score.numel() for score in scores.values()], density)
        return keep_top(scores, min(count, sum(left.values())))
    asked = layer_counts({name: score.shape for name, score in scores.items()}, density, scope)
    return keep_top_per_layer(scores, _at_most(asked, left))


def refuse_empty(masks: Mapping[str, Tensor], cause: str) -> None:
    """Raise ValueError where a layer has lost all of its weights, and say by what."""
    empty = [name for name, mask in masks.items() if not bool(mask.any())]
    if empty:
        raise ValueError(
            f"{cause} leaves no weight in {', '.join(empty)}; prune less, choose another scope, or "
            "exclude the layer"
        )


def _at_most(asked: Mapping[str, int], left: Mapping[str, int]) -> dict[str, int]:
    """Counts of the same sum, none above what is left: rounding may ask a layer for one more."""
    counts = {name: min(asked[name], left[name]) for name in asked}
    missing = min(sum(asked.values()), sum(left.values())) - sum(counts.values())
    for name in counts:
        more = min(missing, left[name] - counts[name])
        counts[name] += more
        missing -= more
    return counts
