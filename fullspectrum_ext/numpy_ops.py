"""Pillars 2 and 3 on SciPy matrices, for users who analyse masks without torch tensors."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fullspectrum_ext import _core


class CsrMatrix(Protocol):
    """What is asked of a matrix: the fields of ``scipy.sparse.csr_array``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    @property
    def indptr(self) -> NDArray[Any]:
        """Start of each row, ``[rows + 1]``."""

    @property
    def indices(self) -> NDArray[Any]:
        """Column of each stored entry, ``[nnz]``."""

    @property
    def data(self) -> NDArray[Any]:
        """Stored entries, ``[nnz]``."""


class SingularValues(NamedTuple):
    """Singular values with their error bounds.

    Attributes:
        values: Descending, ``float64``, shape ``[k]``.
        bounds: For each a distance within which a singular value lies, the same shape.
    """

    values: NDArray[np.float64]
    bounds: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RegularSubgraph:
    """The columns of one degree, see :class:`fullspectrum_ext.ops.RegularSubgraph`."""

    degree: int
    taps: NDArray[np.int64]
    edges: int
    live_outputs: int


def singular_values(matrix: CsrMatrix, k: int = 2, *, tol: float = 1e-6) -> SingularValues:
    """Compute the leading singular values of a SciPy matrix, with certified error bounds.

    The routine behind :func:`fullspectrum_ext.ops.singular_values`, on one thread and with the GIL
    released.

    Args:
        matrix: A ``scipy.sparse.csr_array``: ``int32`` or ``int64`` indices and real entries, which
            are read as ``float64``. Duplicate entries are added up.
        k: How many values; those beyond ``min(matrix.shape)`` are exact zeros.
        tol: Relative error bound to reach.

    Returns:
        Values and bounds, ``[k]``.

    Raises:
        TypeError: If ``matrix`` is not in CSR form.

    Example:
        >>> import scipy.sparse
        >>> sigma = singular_values(scipy.sparse.csr_array([[3.0, 0.0], [0.0, 4.0]]))
        >>> sigma.values.round(12)
        array([4., 3.])
    """
    indptr, indices, shape = _pattern(matrix)
    data = np.asarray(matrix.data)
    scale = 1.0
    if data.dtype.kind == "f" and data.size:
        # Squares of the entries must neither overflow nor vanish; a power of two rounds nothing.
        largest = float(np.abs(data).max())
        if np.isfinite(largest) and largest > 0 and not 1e-60 < largest < 1e60:
            scale = math.ldexp(1.0, min(max(math.frexp(largest)[1], -1000), 1000))
            data = data.astype(np.float64) / scale
    values, bounds, _ = _core.singular_values(indptr, indices, data, shape, k, tol)
    return SingularValues(values * scale, bounds * scale)


def regular_subgraphs(matrix: CsrMatrix) -> list[RegularSubgraph]:
    """Decompose the bipartite graph of a SciPy matrix into its left-regular subgraphs.

    The routine behind :func:`fullspectrum_ext.ops.regular_subgraphs`: rows are outputs, columns
    input taps, and every stored entry is an edge, whatever its value.

    Args:
        matrix: A ``scipy.sparse.csr_array``.

    Returns:
        The subgraphs with at least one edge, ascending by degree.

    Raises:
        TypeError: If ``matrix`` is not in CSR form.

    Example:
        >>> import scipy.sparse
        >>> graphs = regular_subgraphs(scipy.sparse.csr_array([[1, 1, 0], [1, 0, 0]]))
        >>> [(graph.degree, graph.taps.tolist()) for graph in graphs]
        [(1, [1]), (2, [0])]
    """
    indptr, indices, shape = _pattern(matrix)
    taps, degrees, live_outputs = _core.regular_subgraphs(indptr, indices, shape)
    starts = np.flatnonzero(np.diff(degrees, prepend=0))
    ends = np.append(starts[1:], len(degrees))
    return [
        RegularSubgraph(
            int(degrees[start]),
            taps[start:end],
            int(degrees[start] * (end - start)),
            int(live_outputs[start]),
        )
        for start, end in zip(starts, ends, strict=False)
    ]


def _pattern(matrix: CsrMatrix) -> tuple[NDArray[Any], NDArray[Any], tuple[int, int]]:
    if getattr(matrix, "format", "csr") != "csr":
        raise TypeError(f"matrix: expected CSR form, got {matrix.format}; use matrix.tocsr()")  # type: ignore[attr-defined]
    try:
        rows, cols = matrix.shape
        return np.asarray(matrix.indptr), np.asarray(matrix.indices), (int(rows), int(cols))
    except (AttributeError, ValueError) as error:
        raise TypeError(
            f"matrix: expected a scipy.sparse.csr_array of two dimensions, "
            f"got {type(matrix).__name__}"
        ) from error
