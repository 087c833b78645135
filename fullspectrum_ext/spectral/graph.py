"""A layer as a bipartite graph: its matrix in CSR form and its degrees."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fullspectrum_ext import _core

Flavor = Literal["neurips", "iclr"]


@dataclass(frozen=True)
class LayerGraph:
    """The graph of one layer: rows are outputs, columns are input taps.

    Attributes:
        crow_indices: Start of each row, int32 where that fits, else int64, ``[rows + 1]``.
        col_indices: Tap of each edge, rising within a row, the same dtype, ``[edges]``.
        shape: Outputs and taps, with and without edges.
        live_outputs: Outputs with an edge.
        live_taps: Taps with an edge.
    """

    crow_indices: Tensor
    col_indices: Tensor
    shape: tuple[int, int]
    live_outputs: int
    live_taps: int

    @property
    def edges(self) -> int:
        """Number of edges."""
        return self.col_indices.numel()

    @property
    def density(self) -> float:
        """Edges over the number of possible ones."""
        return self.edges / max(math.prod(self.shape), 1)

    @property
    def live_density(self) -> float:
        """Edges over the possible ones between live taps and live outputs; nan without edges."""
        return self.edges / (self.live_taps * self.live_outputs) if self.edges else math.nan

    @property
    def left_degree(self) -> float:
        """Mean degree of the taps that have an edge; nan without edges."""
        return self.edges / self.live_taps if self.edges else math.nan

    @property
    def right_degree(self) -> float:
        """Mean degree of the outputs that have an edge; nan without edges."""
        return self.edges / self.live_outputs if self.edges else math.nan

    def has_edges_of(self, other: "LayerGraph") -> bool:
        """Tell whether another graph of the same shape and device has the same edges."""
        return torch.equal(self.crow_indices, other.crow_indices) and torch.equal(
            self.col_indices, other.col_indices
        )


def layer_graph(name: str, mask: Tensor) -> LayerGraph:
    """Read the graph off a mask.

    A convolution's weight ``(out, in, kH, kW)`` has one tap for each of its ``in * kH * kW``
    columns. (A grouped convolution is read as its weight is stored: group by group over the same
    taps.)

    Args:
        name: The layer's name, for the message.
        mask: Bool, two or more dimensions, outputs first; or a CSR tensor, whose entries are edges.

    Returns:
        The graph, on the device of the mask.

    Raises:
        ValueError: If the mask has fewer than two dimensions.
    """
    if mask.dim() < 2:
        raise ValueError(
            f"{name}: expected a weight with at least two dimensions, got {tuple(mask.shape)}"
        )
    shape = (mask.shape[0], math.prod(mask.shape[1:]))
    if mask.layout == torch.sparse_csr:
        return csr_graph(mask.crow_indices(), mask.col_indices(), shape)
    matrix = mask.detach().reshape(shape)
    if mask.device.type == "cpu":
        indptr, indices, *live = _core.mask_to_csr(matrix.contiguous().numpy())
        return LayerGraph(torch.from_numpy(indptr), torch.from_numpy(indices), shape, *live)
    row_lengths = torch.empty(shape[0], dtype=torch.int64, device=mask.device)
    for rows in row_blocks(shape):
        row_lengths[rows] = matrix[rows].sum(dim=1)
    crow_indices = torch.zeros(shape[0] + 1, dtype=torch.int64, device=mask.device)
    crow_indices[1:] = row_lengths.cumsum(0)
    edges = int(crow_indices[-1])
    index_dtype = torch.int32 if max(*shape, edges) < 2**31 else torch.int64
    col_indices = torch.empty(edges, dtype=index_dtype, device=mask.device)
    for rows in row_blocks(shape):
        start, end = int(crow_indices[rows.start]), int(crow_indices[rows.stop])
        col_indices[start:end] = matrix[rows].nonzero()[:, 1]
    return LayerGraph(
        crow_indices.to(index_dtype),
        col_indices,
        shape,
        live_outputs=int(row_lengths.count_nonzero()),
        live_taps=int(matrix.any(dim=0).count_nonzero()),
    )


def csr_graph(crow_indices: Tensor, col_indices: Tensor, shape: tuple[int, int]) -> LayerGraph:
    """Read the graph off a topology.

    Args:
        crow_indices: Start of each row, ``[rows + 1]``.
        col_indices: Tap of each edge, rising within a row, the same dtype, ``[edges]``.
        shape: Outputs and taps.

    Returns:
        The graph, with these very tensors.
    """
    return LayerGraph(
        crow_indices,
        col_indices,
        shape,
        live_outputs=int(crow_indices.diff().count_nonzero()),
        live_taps=int(col_indices.bincount().count_nonzero()),
    )


def row_blocks(shape: tuple[int, int]) -> Iterator[slice]:
    """Cut a matrix into blocks of rows so that what is computed of one block stays small.

    Torch's ``nonzero`` and boolean indexing take 16 bytes a kept weight on the way; block by block
    a large layer needs little more than its result.

    Args:
        shape: Rows and columns.

    Yields:
        The blocks, of about a million weights.
    """
    height = max(2**20 // max(shape[1], 1), 1)
    for start in range(0, shape[0], height):
        yield slice(start, min(start + height, shape[0]))


def kept_values(weight: Tensor, graph: LayerGraph) -> Tensor:
    """Return the absolute weights on the edges of a graph, row by row.

    Args:
        weight: Dense weight, whose rows and columns are the graph's.
        graph: Which of its entries to take.

    Returns:
        ``[edges]``, in the weight's dtype, on the graph's device.
    """
    device = graph.col_indices.device
    matrix = weight.detach().to(device).reshape(graph.shape)
    row_lengths = graph.crow_indices.diff()
    values = matrix.new_empty(graph.edges)
    start = 0
    for rows in row_blocks(graph.shape):
        lengths = row_lengths[rows]
        row_starts = graph.shape[1] * torch.arange(lengths.numel(), device=device)
        places = row_starts.repeat_interleave(lengths)
        end = start + places.numel()
        places += graph.col_indices[start:end]
        torch.index_select(matrix[rows].reshape(-1), 0, places, out=values[start:end])
        start = end
    return values.abs_()


def is_valid(
    left_degree: float, right_degree: float, min_degree: float, flavor: Flavor, *, regular: bool
) -> bool:
    """Tell whether a graph has the degrees that its gap is defined for.

    ``"iclr"`` asks ``min_degree`` of both sides. ``"neurips"`` asks it of one and more than 1 of
    the other: of the outputs for a layer, of the taps for a left-regular subgraph.

    Args:
        left_degree: Mean degree of the taps; nan for a graph without edges.
        right_degree: Mean degree of the outputs.
        min_degree: The degree to ask for, 3 in both papers.
        flavor: Whose rule.
        regular: Whether it is a left-regular subgraph.

    Returns:
        True or False; False for a graph without edges.
    """
    if flavor == "iclr":
        return left_degree >= min_degree and right_degree >= min_degree
    if regular:
        return left_degree >= min_degree and right_degree > 1
    return right_degree >= min_degree and left_degree > 1
