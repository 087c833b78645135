"""Random masks: over the whole network, or with every layer's count fixed."""

import torch
from torch import Tensor

from fullspectrum_ext.pruning.base import ScoringContext, register_pruner


@register_pruner("random", varies_by="seed")
@register_pruner("uniform", scopes=("layer",), varies_by="seed")
@register_pruner("er", scopes=("er",), varies_by="seed")
@register_pruner("erk", scopes=("erk",), varies_by="seed")
def random(context: ScoringContext) -> dict[str, Tensor]:
    """Score every weight by a uniform random number.

    ``"random"`` spends the budget anywhere, so that each layer's density is the network's up to
    chance. ``"uniform"`` gives every layer that density exactly, ``"er"`` and ``"erk"`` the
    densities of the Erdős–Rényi rules, which keep more of small layers: by their numbers of inputs
    and outputs, and by these and the size of the kernel.

    Args:
        context: What to score.

    Returns:
        Name to scores.

    References:
        Mocanu et al.: Scalable training of artificial neural networks with adaptive sparse
        connectivity inspired by network science, Nature Communications 2018 (ER). Evci et al.:
        Rigging the Lottery, ICML 2020, section 3 (ERK).
    """
    return {
        # float64: with float32 a layer of millions of weights has many ties, kept by position.
        name: torch.rand(weight.shape, generator=context.generator, dtype=torch.float64).to(
            weight.device
        )
        for name, weight in context.weights.items()
    }
