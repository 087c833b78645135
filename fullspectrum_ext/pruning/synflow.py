"""SynFlow: pruning without data by iteratively conserving synaptic flow."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from fullspectrum_ext.pruning.base import ScoringContext, register_pruner
from fullspectrum_ext.pruning.rounds import check_rounds, removed_for_good


@register_pruner("synflow", varies_by="nothing", candidate_options={"rounds": 10})
def synflow(
    context: ScoringContext, *, rounds: int = 100, input_shape: Sequence[int] | None = None
) -> dict[str, Tensor]:
    r"""Score a weight by its share in the flow through a network of absolute values.

    With every parameter and buffer replaced by its absolute value and an input of ones,
    :math:`R = \sum \text{outputs}` and the score is :math:`w\,\partial R/\partial w`. Round
    :math:`k` of :math:`n` prunes to density :math:`d^{k/n}` and the scores are taken anew, which is
    what keeps layers from collapsing. Computed in float64 (the flow through a deep network leaves
    the range of float32) and in evaluation mode.

    Args:
        context: What to score; of the data only the shape is used.
        rounds: Number of pruning rounds.
        input_shape: Shape of one input without the batch dimension; by default that of the data.

    Returns:
        Name to scores: minus the place of each weight in the order of removal, the last one first.

    Raises:
        ValueError: If ``rounds`` is below 1, or there is neither ``input_shape`` nor data.

    References:
        Tanaka, Kunin, Yamins, Ganguli: Pruning neural networks without any data by iteratively
        conserving synaptic flow, NeurIPS 2020, https://arxiv.org/abs/2006.05467, algorithm 1.
    """
    check_rounds(rounds)
    model = _linearised(context.copy_model())
    ones = _ones(context, input_shape)
    full = {name: model.get_parameter(name).detach().clone() for name in context.weights}
    return removed_for_good(context, rounds, lambda alive: _flow(model, ones, full, alive))


def _linearised(model: nn.Module) -> nn.Module:
    model = model.double().eval()
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            tensor.detach().abs_()
    return model


def _ones(context: ScoringContext, input_shape: Sequence[int] | None) -> Tensor:
    if input_shape is None:
        if context.batches is None:
            raise ValueError(
                "input_shape: method 'synflow' needs the shape of one input: pass "
                "input_shape=(channels, height, width), or data"
            )
        inputs = next(context.on_device())[0]
        if not inputs.is_floating_point():
            raise ValueError(
                "data: method 'synflow' sends ones through the network, which means nothing to one "
                f"that takes {inputs.dtype}"
            )
        input_shape = inputs.shape[1:]
    return torch.ones(1, *input_shape, dtype=torch.float64, device=context.device)


def _flow(
    model: nn.Module, ones: Tensor, full: dict[str, Tensor], alive: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return weight times derivative of the summed output, with only the living weights in."""
    parameters = [model.get_parameter(name) for name in full]
    with torch.no_grad():
        for name, parameter in zip(full, parameters, strict=True):
            parameter.copy_(full[name] * alive[name])
            parameter.requires_grad_(True)
    with torch.enable_grad():
        gradients = torch.autograd.grad(model(ones).sum(), parameters, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else parameter.detach() * gradient
        for name, parameter, gradient in zip(full, parameters, gradients, strict=True)
    }
