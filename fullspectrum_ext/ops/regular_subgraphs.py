"""Pillar 2: the left-regular subgraphs nested in a layer's bipartite graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from fullspectrum_ext import _checks

Shape = tuple[int, int]


@dataclass(frozen=True, eq=False)
class RegularSubgraph:
    """The input taps of one degree, with all the edges they have: a left-regular graph.

    Attributes:
        degree: Edges of each tap.
        taps: The taps (columns of the layer), ascending; ``int64``, ``[taps]``. A slice of the one
            permutation that all subgraphs of a call share.
        edges: Number of edges, ``degree`` times the number of taps.
        live_outputs: Number of outputs (rows) that the taps reach.
    """

    degree: int
    taps: Tensor
    edges: int
    live_outputs: int


@overload
def regular_subgraphs(
    crow_indices: Tensor, col_indices: Tensor, shape: Shape, *, validate: bool = False
) -> list[RegularSubgraph]: ...


@overload
def regular_subgraphs(
    crow_indices: Sequence[Tensor],
    col_indices: Sequence[Tensor],
    shape: Sequence[Shape],
    *,
    validate: bool = False,
) -> list[list[RegularSubgraph]]: ...


def regular_subgraphs(
    crow_indices: Tensor | Sequence[Tensor],
    col_indices: Tensor | Sequence[Tensor],
    shape: Shape | Sequence[Shape],
    *,
    validate: bool = False,
) -> list[RegularSubgraph] | list[list[RegularSubgraph]]:
    r"""Decompose a layer, or a list of layers, into its left-regular subgraphs.

    The layer is the bipartite graph of a matrix :math:`B` with one row per output and one column
    per input tap. The taps of degree :math:`d` and their edges are the subgraph :math:`K_d`. The
    subgraphs partition the taps and the edges, so :math:`B B^T = \sum_d K_d K_d^T`. Only the taps
    are sorted, in one native call for all layers; the graph is not copied.

    Args:
        crow_indices: Start of each row; ``int32`` or ``int64``, shape ``[rows + 1]``. For several
            layers, a list, as are ``col_indices`` and ``shape`` then.
        col_indices: Column of each edge; the same dtype and device, shape ``[nnz]``.
        shape: Rows and columns.
        validate: Check every index beforehand, see :func:`fullspectrum_ext._checks.check_csr`.

    Returns:
        The subgraphs with at least one edge, ascending by degree; for a list of layers, a list of
        such lists.

    Raises:
        TypeError: If an argument is no tensor or has a wrong dtype.
        ValueError: If lengths or devices (or, with ``validate``, indices) are wrong.

    References:
        Hoang, Liu, Marculescu, Wang: Revisiting Pruning at Initialization through the Lens of
        Ramanujan Graph, ICLR 2023, section 4 (iterative mean difference of bound).

    Example:
        >>> mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).to_sparse_csr()
        >>> for graph in regular_subgraphs(mask.crow_indices(), mask.col_indices(), (2, 3)):
        ...     print(graph.degree, graph.taps.tolist(), graph.edges, graph.live_outputs)
        1 [1] 1 1
        2 [0] 2 2
    """
    one, crows, cols, shapes = as_layers(crow_indices, col_indices, shape)
    for crow, col, layer_shape in zip(crows, cols, shapes, strict=True):
        _checks.check_csr(crow, col, layer_shape, validate=validate)
    check_one_device("crow_indices", crows)
    if not crows:
        return []
    taps, degrees, live_outputs = torch.ops.fullspectrum.regular_subgraphs.default(
        [crow.contiguous() for crow in crows],
        [col.contiguous() for col in cols],
        [layer_shape[1] for layer_shape in shapes],
    )
    described = torch.stack([degrees, live_outputs]).cpu().numpy()  # one transfer for all layers
    ends = np.cumsum([width for _, width in shapes])
    layers = [
        _layer(taps[end - width : end], *described[:, end - width : end])
        for end, (_, width) in zip(ends.tolist(), shapes, strict=True)
    ]
    return layers[0] if one else layers


def _layer(taps: Tensor, degrees: np.ndarray, live_outputs: np.ndarray) -> list[RegularSubgraph]:
    """Cut a layer's taps, sorted by degree, where the degree changes."""
    if len(degrees) == 0:
        return []
    starts = [0, *(np.flatnonzero(np.diff(degrees)) + 1).tolist()]
    return [
        RegularSubgraph(degree, taps[start:end], degree * (end - start), live)
        for start, end, degree, live in zip(
            starts,
            [*starts[1:], len(degrees)],
            degrees[starts].tolist(),
            live_outputs[starts].tolist(),
            strict=True,
        )
        if degree > 0
    ]


def as_layers(
    crow_indices: Tensor | Sequence[Tensor],
    col_indices: Tensor | Sequence[Tensor],
    shape: Shape | Sequence[Shape],
) -> tuple[bool, list[Tensor], list[Tensor], list[Shape]]:
    """Make lists of one matrix's or several matrices' fields.

    Args:
        crow_indices: One tensor, or a sequence of them.
        col_indices: The same.
        shape: One pair, or a sequence of them.

    Returns:
        Whether there is one matrix, and the lists.

    Raises:
        TypeError: If one argument is a list and another is not.
        ValueError: If the lists differ in length.
    """
    one = isinstance(crow_indices, Tensor)
    if isinstance(col_indices, Tensor) != one:
        raise TypeError("col_indices: expected a list of tensors where crow_indices is one")
    if one:
        return True, [crow_indices], [col_indices], [_pair(shape)]  # type: ignore[list-item]
    crows, cols = list(crow_indices), list(col_indices)
    shapes = [_pair(pair) for pair in shape]
    if not len(crows) == len(cols) == len(shapes):
        raise ValueError(
            f"expected as many col_indices and shapes as crow_indices, {len(crows)}, "
            f"got {len(cols)} and {len(shapes)}"
        )
    return False, crows, cols, shapes


def _pair(shape: object) -> Shape:
    if not isinstance(shape, Sequence) or len(shape) != 2:
        raise TypeError(f"shape: expected (rows, cols), got {shape!r}")
    return int(shape[0]), int(shape[1])


def check_one_device(name: str, tensors: Sequence[Tensor]) -> None:
    """Raise ValueError unless all tensors lie on one device."""
    for tensor in tensors:
        if tensor.device != tensors[0].device:
            raise ValueError(
                f"{name}: expected all matrices on one device, "
                f"got {tensors[0].device} and {tensor.device}"
            )


@torch.library.register_fake("fullspectrum::regular_subgraphs")
def _fake(
    crow_indices: list[Tensor], col_indices: list[Tensor], cols: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    def column() -> Tensor:
        return crow_indices[0].new_empty(sum(cols), dtype=torch.int64)

    return column(), column(), column()
