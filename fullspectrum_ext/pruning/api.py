"""The one function that prunes."""

import contextlib
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fullspectrum_ext._layers import Patterns
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning.arguments import (
    chosen_weights,
    refuse_collapse,
    resolve_density,
    resolve_seed,
)
from fullspectrum_ext.pruning.base import Loss, ScoringContext, find_method
from fullspectrum_ext.pruning.batches import Batches
from fullspectrum_ext.pruning.selection import Scores, check_scores, keep_top_per_layer, select

_NOT_RECORDED = {"progress", "checkpoint"}  # options that do not change the masks


def prune(
    model: nn.Module,
    method: str,
    *,
    sparsity: float | None = None,
    density: float | None = None,
    data: Any = None,
    loss: Loss | None = None,
    scope: str | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    seed: int | None = None,
    allow_collapse: bool = False,
    invert: bool = False,
    **options: Any,
) -> MaskSet:
    """Choose which weights of a model to keep, by any registered method.

    The weights of ``Linear``, ``Conv2d``, ``RNN``, ``LSTM`` and ``GRU`` layers are pruned, biases
    and normalisation never. Of ``N`` weights exactly ``round(density * N)`` are kept (a half is
    rounded to even); equal scores are decided by position. The model is only read: weights,
    buffers, mode, gradients and torch's random state are afterwards what they were.

    Args:
        model: A model with plain dense layers. A weight that two layers share counts once.
        method: A name out of :func:`methods`.
        sparsity: Fraction of the weights to remove, in [0, 1). Give this or ``density``.
        density: Fraction to keep, in (0, 1].
        data: Batches ``(inputs, targets)`` for methods that look at data: a DataLoader, any
            iterable of such pairs, or one pair. All of it is used, so pass as much as the method's
            paper does (SNIP: one batch).
        loss: ``(outputs, targets) -> scalar``; by default cross entropy.
        scope: How the budget is spread over layers. ``"global"``: the best scores wherever they
            are. ``"layer"``: the same density for each. ``"er"``, ``"erk"``: the Erdős–Rényi
            densities. By default what the method's paper does.
        include: Glob patterns of parameter or layer names; only these are pruned (and counted).
        exclude: Glob patterns of names to leave out.
        seed: Makes random masks, shuffles and dropout repeatable. By default it is derived from
            torch's random state, without advancing it: ``torch.manual_seed`` decides.
        allow_collapse: Accept masks that leave a layer without a single weight.
        invert: Keep the lowest scores in place of the largest, as many in each layer: a sanity
            check, which a method that finds good weights does not survive. See also
            :func:`fullspectrum_ext.audit`.
        **options: Options of the method, see its own documentation.

    Returns:
        The masks, on the weights' devices; ``.meta`` records how they were made.

    Raises:
        TypeError: If an option is unknown or an argument has a wrong type.
        ValueError: If a value is out of range, the method unknown, the model not prunable, the
            scores not finite, a layer would lose all of its weights, or there are no scores to
            invert.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> prune(model, "magnitude", sparsity=0.75)
        MaskSet(2 layers, 10 of 40 weights kept, sparsity 0.7500)
    """
    registered = find_method(method)
    registered.check_options(options)
    density = resolve_density(sparsity, density)
    scope = registered.resolve_scope(scope)
    parameters = chosen_weights(model, include, exclude)
    weights = {name: weight.detach() for name, weight in parameters.items()}
    seed = resolve_seed(seed)
    context = ScoringContext(
        weights=weights,
        density=density,
        scope=scope,
        generator=torch.Generator().manual_seed(seed),
        batches=None if data is None else Batches(data),
        loss=nn.functional.cross_entropy if loss is None else loss,
        _model=model,
    )
    with _own_random_state(seed, weights.values()), torch.inference_mode(False):
        result = registered.function(context, **options)
    unscored: list[str] = []
    if isinstance(result, MaskSet):
        if invert:
            raise ValueError(f"invert: method {method!r} makes masks without scores to invert")
    else:
        scores = check_scores(method, result, weights)
        unscored = [name for name, score in scores.items() if not bool(score.any())]
        masks = select(scores, density, scope)
        result = MaskSet(_lowest_instead(scores, masks) if invert else masks)
    if not allow_collapse:
        refuse_collapse(result, unscored)
    made_by = {"method": method, "density": density, "scope": scope, "seed": seed}
    made_by |= {"invert": True} if invert else {}
    recorded = {name: value for name, value in options.items() if name not in _NOT_RECORDED}
    result.meta = {**made_by, "options": recorded, **result.meta}
    return result


def _lowest_instead(scores: Scores, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    counts = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
    return keep_top_per_layer({name: -score for name, score in scores.items()}, counts)


@contextlib.contextmanager
def _own_random_state(seed: int, weights: Iterable[Tensor]) -> Generator[None, None, None]:
    """Lend torch's generators, seeded, to what draws from them: loaders and dropout."""
    cuda = sorted({weight.device.index for weight in weights if weight.is_cuda})
    with torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed, which would also seed devices that were not forked.
        torch.random.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
