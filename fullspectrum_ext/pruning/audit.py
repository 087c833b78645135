"""Sanity ablations: does it matter which weights were kept, and with which values?"""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fullspectrum_ext import _checks
from fullspectrum_ext.masks import MaskSet, as_mask

_Draw = Callable[[Tensor, torch.Generator], Tensor]


class Audited(NamedTuple):
    """What to train in place of the pruned network: ``fs.sparsify(audited.model, audited.masks)``.

    Attributes:
        model: A copy of the model; its weights differ after ``"reinitialised"`` only.
        masks: Of the same layers, as many weights in each as before.
    """

    model: nn.Module
    masks: MaskSet


def audit(
    model: nn.Module, masks: Mapping[str, Tensor], ablation: str, *, seed: int = 0
) -> Audited:
    """Break one thing about a pruned network, and leave everything else as it is.

    A method that finds good masks beats all of these. One that only finds good layer densities
    does not beat ``"shuffled"``; where the values do not matter, ``"reinitialised"`` costs nothing.

    ========================  ======================================================================
    ablation                  what it does in each layer
    ========================  ======================================================================
    ``"shuffled"``            permutes the mask
    ``"randomised"``          keeps as many weights, drawn without a look at the mask; the same
                              distribution as ``"shuffled"``, with its own draws
    ``"complement"``          keeps as many weights, drawn from among the removed ones as far as
                              there are so many
    ``"reinitialised"``       permutes the dense weight, and keeps the mask: other values of exactly
                              the same distribution, whatever the initialisation was
    ========================  ======================================================================

    The literature's inversion, which keeps the *lowest* scores, needs the scores that a mask does
    not have: ``fullspectrum_ext.prune(..., invert=True)``.

    Args:
        model: Dense, with the weights that training is to begin with.
        masks: Of its weights, by name.
        ablation: One of the above.
        seed: Of all that is drawn. Layer by layer, on the CPU: the same on every device.

    Returns:
        A copy of the model, and masks. The arguments are not changed, and of the copy nothing but
        the masked layers' weights, and only by ``"reinitialised"``.

    Raises:
        TypeError: If ``model`` is no module, or ``masks`` no mapping of names to tensors.
        ValueError: If ``ablation`` is unknown, or a mask is not one of a weight of the model.

    References:
        Frankle, Dziugaite, Roy, Carbin: Pruning Neural Networks at Initialization: Why Are We
        Missing the Mark?, ICLR 2021, https://arxiv.org/abs/2009.08576, section 5. Su et al.:
        Sanity-Checking Pruning Methods, NeurIPS 2020, https://arxiv.org/abs/2009.11094.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> masks = {"0.weight": torch.arange(32).view(4, 8) < 8}
        >>> audited = audit(model, masks, "complement")
        >>> audited.masks, bool((audited.masks["0.weight"] & masks["0.weight"]).any())
        (MaskSet(1 layer, 8 of 32 weights kept, sparsity 0.7500), False)
    """
    _checks.check_choice("ablation", ablation, ABLATIONS)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks: expected a mapping name -> tensor, got {type(masks).__name__}")
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        as_mask(name, mask)
        if name not in parameters or parameters[name].shape != mask.shape:
            raise ValueError(
                f"masks[{name!r}]: expected a mask of a parameter of the model, of its shape"
            )
    generator = torch.Generator().manual_seed(seed)
    meta = {**getattr(masks, "meta", {}), "audit": {"ablation": ablation, "seed": seed}}
    if ablation == REINITIALISED:
        for name in masks:
            weight = parameters[name].detach()
            weight.copy_(_shuffled(weight, generator))
        return Audited(model, MaskSet(masks, meta=meta))
    draw = _DRAWS[ablation]
    drawn = {name: draw(as_mask(name, mask), generator) for name, mask in masks.items()}
    return Audited(model, MaskSet(drawn, meta=meta))


def _shuffled(tensor: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.flatten()[order].view(tensor.shape)


def _random(mask: Tensor, generator: torch.Generator) -> Tensor:
    return _lowest(torch.rand(mask.shape, generator=generator, dtype=torch.float64), mask)


def _complement(mask: Tensor, generator: torch.Generator) -> Tensor:
    scores = torch.rand(mask.shape, generator=generator, dtype=torch.float64)
    return _lowest(scores + mask.cpu(), mask)  # kept ones come after all removed ones


def _lowest(scores: Tensor, mask: Tensor) -> Tensor:
    """Keep as many weights as ``mask`` does, those with the lowest scores."""
    kept = torch.zeros(mask.numel(), dtype=torch.bool)
    kept[scores.flatten().argsort(stable=True)[: int(mask.count_nonzero())]] = True
    return kept.view(mask.shape).to(mask.device)


REINITIALISED = "reinitialised"
_DRAWS: dict[str, _Draw] = {"shuffled": _shuffled, "randomised": _random, "complement": _complement}
ABLATIONS = (*_DRAWS, REINITIALISED)
"""What :func:`audit` can do."""
