"""Regular subgraphs, in plain torch on a dense mask."""

from torch import Tensor


def regular_subgraphs(mask: Tensor) -> list[tuple[int, Tensor, int, int]]:
    """Group the columns of a dense mask by their number of nonzeros.

    Args:
        mask: Zeros and others, ``[outputs, taps]``.

    Returns:
        ``(degree, taps, edges, live_outputs)`` for each degree above zero, ascending.

    Example:
        >>> import torch
        >>> regular_subgraphs(torch.tensor([[1, 1, 0], [1, 0, 0]]))
        [(1, tensor([1]), 1, 1), (2, tensor([0]), 2, 2)]
    """
    mask = mask != 0
    degrees = mask.sum(0)
    groups = []
    for degree in degrees.unique().tolist():
        if degree > 0:
            taps = (degrees == degree).nonzero().flatten()
            live = int(mask[:, taps].any(1).sum())
            groups.append((degree, taps, degree * taps.numel(), live))
    return groups
