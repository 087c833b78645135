"""How many bytes of weights, gradients and optimizer state a model holds in training."""

from torch import nn


def training_bytes(model: nn.Module, *, states: int = 2) -> int:
    """Count the bytes that training a model keeps from step to step.

    Every trained parameter counts ``2 + states`` times: itself, its gradient, and what the
    optimizer keeps beside it. Frozen parameters count once. Buffers count as they are: masks,
    indices of sparse layers, statistics of batch normalisation. Activations do not count.

    Args:
        model: Any module.
        states: Tensors of a parameter's size in the optimizer: 2 for Adam, 1 for SGD with momentum.

    Returns:
        Bytes; a tensor that several modules share counts once.

    Example:
        >>> training_bytes(nn.Linear(100, 100, bias=False))  # of 4 bytes: 4 times 10,000
        160000
    """
    parameters = sum(
        parameter.nbytes * (2 + states if parameter.requires_grad else 1)
        for parameter in model.parameters()
    )
    return parameters + sum(buffer.nbytes for buffer in model.buffers())
