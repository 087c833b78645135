"""GraSP: pruning that preserves the flow of gradients."""

import contextlib
import math
from collections.abc import Generator, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fullspectrum_ext.pruning.base import ScoringContext, register_pruner


@register_pruner("grasp")
def grasp(context: ScoringContext, *, temperature: float = 200.0) -> dict[str, Tensor]:
    r"""Score a weight by :math:`w\,(H g)`, the part of the gradient's flow that goes with it.

    To first order, setting weights to zero changes :math:`g^\top g` by :math:`-2\sum w\,(Hg)` over
    them, where :math:`g` is the gradient of the loss and :math:`H` its Hessian. The largest scores
    are kept, with their sign: a weight of negative score is in the way of training. :math:`g` is
    summed over the batches, :math:`Hg` is the derivative of :math:`\langle g, \nabla L\rangle` with
    the first factor held, and both are taken in training mode, with the same shuffles and dropout.
    The outputs are divided by the temperature before the loss.

    Unlike the authors' code, linear layers are scored with the weights they have, not with others
    that are drawn for the purpose.

    Args:
        context: What to score, with data, which is read twice. The authors take ten samples of each
            class.
        temperature: What to divide the outputs by, above 0; 1 leaves them as they are.

    Returns:
        Name to scores, float32 for weights in half precision.

    Raises:
        TypeError: If the temperature is no number, or the model's output no tensor.
        ValueError: If the temperature is not above 0, or there is no data.

    References:
        Wang, Zhang, Grosse: Picking Winning Tickets Before Training by Preserving Gradient Flow,
        ICLR 2020, https://arxiv.org/abs/2002.07376, equation 8 and algorithm 2.
    """
    _check_temperature(temperature)
    model = context.trainable_copy()
    if any(weight.dtype.itemsize < 4 for weight in context.weights.values()):
        model.float()  # second derivatives in half precision say little
    weights: list[Tensor] = [model.get_parameter(name) for name in context.weights]
    flow = [torch.zeros_like(weight) for weight in weights]
    products = [torch.zeros_like(weight) for weight in weights]
    with torch.enable_grad(), _differentiable_twice(model):
        # Afterwards the random state is as before: the second pass sees the same network and data.
        with torch.random.fork_rng(devices=_cuda(context.device)):
            for loss in _losses(context, model, temperature):
                _add(flow, _derivatives(loss, weights))
        for loss in _losses(context, model, temperature):
            gradient = _derivatives(loss, weights, create_graph=True)
            along = sum((g * f).sum() for g, f in zip(gradient, flow, strict=True))
            if isinstance(along, Tensor) and along.requires_grad:  # else H is zero
                _add(products, _derivatives(along, weights))
    return {
        name: weight.detach() * product
        for name, weight, product in zip(context.weights, weights, products, strict=True)
    }


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _check_temperature(temperature: object) -> None:
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"temperature: expected a number, got {type(temperature).__name__}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")


def _losses(context: ScoringContext, model: nn.Module, temperature: float) -> Iterator[Tensor]:
    for inputs, targets in context.on_device():
        is_half = inputs.is_floating_point() and inputs.dtype.itemsize < 4
        outputs = model(inputs.float() if is_half else inputs)
        if not isinstance(outputs, Tensor):
            raise TypeError(
                "model: method 'grasp' divides the output by the temperature, and expected a "
                f"tensor, got {type(outputs).__name__}"
            )
        yield context.loss_of(outputs / temperature, targets)


def _derivatives(
    value: Tensor, weights: list[Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, weights, create_graph=create_graph, materialize_grads=True)


def _add(totals: list[Tensor], parts: Iterable[Tensor]) -> None:
    for total, part in zip(totals, parts, strict=True):
        total += part


@contextlib.contextmanager
def _differentiable_twice(model: nn.Module) -> Generator[None, None, None]:
    """Keep torch from taking kernels that have no second derivative."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield
