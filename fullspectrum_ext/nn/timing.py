"""How a layer is used in its model, and how long a training step of it takes."""

import contextlib
import time
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class LayerUse(NamedTuple):
    """One call of a layer, as far as its speed depends on it.

    Attributes:
        shape: Of the input.
        dtype: Of the input.
        device: Of the input.
        channels_last: Whether the input lies in channels-last order.
        needs_gradient: Whether the gradient for the input is computed in training: not for the
            first layer of a model.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    needs_gradient: bool


def layer_uses(
    model: nn.Module, layers: Mapping[str, nn.Module], example: Any
) -> dict[str, list[LayerUse]]:
    """Run a model once and write down with what its layers are called.

    The model runs in evaluation mode: modes, statistics of batch normalisation, gradients and the
    state of the random generators are afterwards what they were.

    Args:
        model: The model.
        layers: Those of its layers that are of interest, by name.
        example: Input of the model: a tensor, or a tuple of all its arguments.

    Returns:
        Layer name to its calls in order; none for a layer that the model does not call.

    Raises:
        TypeError: If ``example`` is neither a tensor nor a tuple.
        ValueError: If the model cannot be run with it.
    """
    if not isinstance(example, Tensor | tuple):
        raise TypeError(
            f"example: expected a tensor or a tuple of the model's arguments, "
            f"got {type(example).__name__}"
        )
    arguments = example if isinstance(example, tuple) else (example,)
    uses: dict[str, list[LayerUse]] = {name: [] for name in layers}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            uses[name].append(_use(x))

        return hook

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(watch(name), with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(_evaluating(model))
        devices = {tensor.device for tensor in arguments if isinstance(tensor, Tensor)}
        stack.enter_context(torch.random.fork_rng([d for d in devices if d.type == "cuda"]))
        # with gradients on, an input says whether training would compute one for it
        stack.enter_context(torch.enable_grad())
        try:
            model(*arguments)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"example: the model cannot be run with it: {error}") from error
    return uses


def time_steps(
    candidates: Mapping[str, nn.Module], use: LayerUse, *, seconds: float, rounds: int = 30
) -> dict[str, list[float]]:
    """Time the training step of several forms of a layer, in turns.

    A step is forward, and the gradients for the input (where training needs it) and for the
    parameters. The optimizer is not in it. The turns let a slow moment of the machine meet all.

    Args:
        candidates: The layer in its forms, by name; they are not changed.
        use: What to call them with.
        seconds: Stop after this time; at least one round is timed, after one that warms up.
        rounds: Stop after these rounds.

    Returns:
        The seconds of each form, round by round.
    """
    generator = torch.Generator().manual_seed(0)
    # under autocast or not, as the caller is
    x = torch.randn(use.shape, generator=generator).to(use.device, use.dtype)
    if use.channels_last:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_(use.needs_gradient)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.enable_grad():
        grad = torch.ones_like(next(iter(candidates.values()))(x))
        begun = time.perf_counter()
        for turn in range(rounds + 1):
            for name, layer in candidates.items():
                elapsed = _step(layer, x, grad)
                if turn > 0:
                    times[name].append(elapsed)
            if turn > 0 and time.perf_counter() - begun > seconds:
                break
    return times


def _step(layer: nn.Module, x: Tensor, grad: Tensor) -> float:
    wanted = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]
    _wait(x)
    start = time.perf_counter()
    y = layer(x)
    if wanted:
        torch.autograd.grad(y, wanted, grad)
    _wait(x)
    return time.perf_counter() - start


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _use(x: Tensor) -> LayerUse:
    channels_last = (
        x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )
    return LayerUse(tuple(x.shape), x.dtype, x.device, channels_last, x.requires_grad)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Generator[None, None, None]:
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
