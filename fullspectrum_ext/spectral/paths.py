"""Which weights lie on a path from the input to the output of a network: effective density."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from fullspectrum_ext._layers import join

_UNIT_BY_UNIT = {  # modules of torch whose output unit depends on the input unit of its place
    f"torch.nn.modules.{name}"
    for name in ("activation", "batchnorm", "dropout", "flatten", "normalization", "pooling")
}
_MIXES = (nn.MultiheadAttention, nn.GLU, nn.Unflatten)


def chain_of(model: object, masks: Mapping[str, Tensor]) -> bool:
    """Tell whether a model's layers are known to form a chain, each fed by the one before alone.

    That is so of an ``nn.Sequential`` (of others) that holds, beside the layers, only torch's own
    activations, normalisations, dropout, pooling and flattening, or subclasses of these. Whatever
    else a model does in its ``forward`` cannot be seen from its modules.

    Args:
        model: Anything.
        masks: The masks of all its layers, by the name of the weight.

    Returns:
        True where the structure is known to be a chain.
    """
    if not isinstance(model, nn.Module):
        return False
    found: list[str] = []
    for name, module in _leaves(model, ""):
        if join(name, "weight") in masks:
            if getattr(module, "groups", 1) != 1:
                return False
            found.append(join(name, "weight"))
        elif not keeps_units(module):
            return False
    if found != list(masks):  # a layer that is used twice is named once
        return False
    pairs = list(zip(masks.values(), list(masks.values())[1:], strict=False))
    # Flattened after a linear layer, the features of all places would be taps in another order.
    return all(_spread(a, b) == 1 if a.dim() == 2 else _spread(a, b) for a, b in pairs)


def keeps_units(module: nn.Module) -> bool:
    """Tell whether a module is one of torch's that leave every unit in its place, or a subclass."""
    return not isinstance(module, _MIXES) and (
        isinstance(module, nn.Identity)
        or any(base.__module__ in _UNIT_BY_UNIT for base in type(module).__mro__)
    )


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for key, child in module._modules.items():
            if child is not None:
                yield from _leaves(child, join(name, key))
    else:
        yield name, module


def _spread(before: Tensor, mask: Tensor) -> int:
    """Return how many taps each output of the layer before feeds; 0 where it cannot be."""
    outputs, taps = before.shape[0], mask.flatten(1).shape[1]
    return taps // outputs if outputs and taps % outputs == 0 else 0


def effective_masks(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""Remove, from a chain of layers, every weight on no path from an input to an output.

    A weight from a unit that nothing reaches, or to a unit that reaches nothing, changes no output
    through its input. (A bias that still feeds a cut unit is no path from the input.) Where a layer
    has ``s`` times as many taps as the one before has outputs, each output feeds ``s`` taps in a
    row: the places of a kernel, and those of an image that is flattened.

    Args:
        masks: Name to bool tensor ``[outputs, ...]``, in the order of the chain.

    Returns:
        The masks without those weights, new tensors.

    Raises:
        ValueError: If a layer cannot be fed by the one before.

    References:
        Vysogorets, Kempe: Connectivity Matters: Neural Network Pruning Through the Lens of
        Effective Sparsity, JMLR 2023.

    Example:
        >>> import torch
        >>> masks = {"a": torch.eye(2).bool(), "b": torch.tensor([[True, False]])}
        >>> effective_masks(masks)["a"]
        tensor([[ True, False],
                [False, False]])
    """
    matrices = [mask.flatten(1).clone() for mask in masks.values()]
    spreads = []
    for name, before, matrix in zip(list(masks)[1:], matrices, matrices[1:], strict=False):
        spread = _spread(before, matrix)
        if not spread:
            raise ValueError(
                f"chain: {name} has {matrix.shape[1]} taps, which the {before.shape[0]} outputs of "
                "the layer before cannot feed"
            )
        spreads.append(spread)
    for i, spread in enumerate(spreads):  # forwards: what the input reaches
        reached = matrices[i].any(dim=1).repeat_interleave(spread)
        matrices[i + 1] &= reached
    for i, spread in reversed(list(enumerate(spreads))):  # backwards: what reaches the output
        used = matrices[i + 1].any(dim=0).reshape(-1, spread).any(dim=1)
        matrices[i] &= used[:, None]
    return {
        name: matrix.reshape(mask.shape)
        for (name, mask), matrix in zip(masks.items(), matrices, strict=True)
    }


def effective_densities(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the fraction of each layer's weights that lie on a path of the chain.

    Args:
        masks: As for :func:`effective_masks`.

    Returns:
        Name to effective density.
    """
    dense = {name: mask.to_dense() != 0 for name, mask in masks.items()}
    return {
        name: float(mask.count_nonzero()) / max(mask.numel(), 1)
        for name, mask in effective_masks(dense).items()
    }
