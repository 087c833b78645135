"""Pillar 3: leading singular values of sparse matrices and their subgraphs, with error bounds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fullspectrum_ext import _checks
from fullspectrum_ext.ops.regular_subgraphs import (
    RegularSubgraph,
    Shape,
    as_layers,
    check_one_device,
)


class SingularValues(NamedTuple):
    """Singular values with their error bounds.

    Attributes:
        values: Descending along the last dimension; ``float64``, shape ``[k]`` or ``[n, k]``.
        bounds: For each value a distance within which a singular value of the matrix lies;
            ``float64``, the same shape.
    """

    values: Tensor
    bounds: Tensor


def singular_values(
    crow_indices: Tensor | Sequence[Tensor],
    col_indices: Tensor | Sequence[Tensor],
    values: Tensor | Sequence[Tensor] | None,
    shape: Shape | Sequence[Shape],
    k: int = 2,
    *,
    tol: float = 1e-6,
    validate: bool = False,
) -> SingularValues:
    r"""Compute the leading singular values of a CSR matrix, or of a list of them.

    For up to two values (any number where one side has at most 64 nodes): the block Lanczos
    iteration in ``float64`` on the Gram matrix :math:`G` of the shorter side, which is counted from
    bits for a mask, summed from the sparse entries, or applied as two sparse products,
    whichever a model of the cost finds cheapest. For an eigenvalue :math:`\theta` of
    :math:`G` found with the vector :math:`y`

    .. math:: |\sigma - \sigma_j| \le \frac{\rho}{\sigma + \sqrt{\sigma^2 - \rho}},
        \quad \sigma^2 = \theta, \quad
        \rho = \frac{\|G y - \theta y\|}{\|y\|} + \varepsilon

    with the residual computed at the end and :math:`\varepsilon` for the rounding of forming
    :math:`G` and multiplying with it. Where that bound would exceed ``tol`` (a value far below the
    first, of which squaring leaves little), where leading values nearly coincide, where entries are
    stored twice, and for more values: block Golub-Kahan-Lanczos bidiagonalisation of the matrix
    itself, so that a value of zero comes out as zero and not as :math:`10^{-8}`. Its values come
    with unit vectors :math:`u, v` and the bound

    .. math:: |\sigma - \sigma_j| \le
        \tfrac{1}{\sqrt 2}\,\bigl\|\,(A v - \sigma u,\; A^T u - \sigma v)\,\bigr\| + \varepsilon .

    A complete mask has a closed form, as has a matrix with one entry in each row or in each column.

    Where the matrix is large and very sparse, the Lanczos iteration keeps no basis: one pass finds
    the projected matrix, a second one sums the vectors, in the memory of ten vectors and of a few
    sums a column. The number of steps grows as the leading values draw together; after 4096 of them
    the values come with the bounds reached by then, which may exceed ``tol``.

    On CUDA one sequence of launches solves all matrices, a block of threads each, and the device
    decides between the two iterations: the native operator never waits for it. Weighted Gram
    matrices of more than 64 rows are stored in ``float32`` there; vectors, residuals and bounds are
    ``float64`` and come from the matrix itself.

    What is certain and what is likely: that a singular value lies within the bound is certain. That
    it is the i-th one is certain too where the matrix has at most 64 rows or columns that are not
    zero, for then the whole spectrum is computed. For larger matrices it rests on the random start
    of ``k`` vectors or more, which has a part along every singular vector with probability one:
    values that occur several times (disconnected components of equal shape, say) are found as often
    as they occur, up to ``k`` of them, and up to ``k + 1`` that nearly coincide are told apart. Of
    more than ``k + 1`` that differ by less than ``tol``, one may stand for another; without a
    basis, of more than two. The start is a fixed one, the result the same bits for any number of
    threads; another instruction set may round the last bits differently.

    Args:
        crow_indices: Start of each row; ``int32`` or ``int64``, shape ``[rows + 1]``. For several
            matrices, a list, as are the other fields then: one native call solves them all.
        col_indices: Column of each stored entry; the same dtype and device, shape ``[nnz]``.
        values: Stored entries, any floating dtype, read as ``float64``, shape ``[nnz]``; None means
            all ones. Not differentiable: detached.
        shape: Rows and columns.
        k: How many values. Those beyond ``min(shape)`` are exact zeros with bound zero.
        tol: Relative error bound to reach; 1e-13 and below is limited by rounding, which the bounds
            then show.
        validate: Check every index beforehand. Without it, indices are still checked on the CPU; on
            CUDA a malformed matrix is undefined behaviour.

    Returns:
        Values and bounds, shape ``[k]``; for a list of n matrices ``[n, k]``.

    Raises:
        TypeError: If an argument is no tensor or has a wrong dtype.
        ValueError: If ``k`` or ``tol`` is out of range, lengths or devices disagree, or a value is
            NaN or infinite.

    References:
        Golub, Underwood: The Block Lanczos Method for Computing Eigenvalues, Mathematical Software
        III, 1977.
        Golub, Luk, Overton: A Block Lanczos Method for Computing the Singular Values and
        Corresponding Singular Vectors of a Matrix, ACM TOMS 7, 1981.
        Baglama, Reichel: Augmented Implicitly Restarted Lanczos Bidiagonalization Methods, SIAM J.
        Sci. Comput. 27, 2005.

    Example:
        >>> ones = torch.ones(3, 3).to_sparse_csr()
        >>> sigma = singular_values(ones.crow_indices(), ones.col_indices(), None, (3, 3))
        >>> bool(abs(sigma.values[0] - 3) <= sigma.bounds[0]), sigma.values[1].item() < 1e-12
        (True, True)
    """
    one, crows, cols, shapes = as_layers(crow_indices, col_indices, shape)
    layer_values = _as_values(values, one, len(crows))
    _check(crows, cols, layer_values, shapes, k, tol, validate)
    if not crows:
        empty = torch.empty((0, k), dtype=torch.float64)
        return SingularValues(empty, empty.clone())
    scaled, scales = _scaled(layer_values)
    sigma, bound = torch.ops.fullspectrum.singular_values.default(
        [crow.contiguous() for crow in crows],
        [col.contiguous() for col in cols],
        scaled,
        [width for _, width in shapes],
        k,
        tol,
    )
    result = _unscaled(sigma, bound, scales)
    return SingularValues(result.values[0], result.bounds[0]) if one else result


def subgraph_singular_values(
    crow_indices: Tensor | Sequence[Tensor],
    col_indices: Tensor | Sequence[Tensor],
    values: Tensor | Sequence[Tensor] | None,
    shape: Shape | Sequence[Shape],
    subgraphs: Sequence[RegularSubgraph] | Sequence[Sequence[RegularSubgraph]],
    k: int = 2,
    *,
    tol: float = 1e-6,
    validate: bool = False,
) -> SingularValues | list[SingularValues]:
    r"""Compute the leading singular values of each of a layer's regular subgraphs.

    A subgraph is the matrix restricted to the subgraph's columns. All subgraphs of all layers are
    built in time linear in the edges and solved in one native call.

    Args:
        crow_indices: As in :func:`singular_values`, as are the other arguments.
        col_indices: Column of each stored entry.
        values: Stored entries, or None for all ones.
        shape: Rows and columns.
        subgraphs: What :func:`regular_subgraphs` returned for the layer, or some of it: disjoint
            sets of taps. For a list of layers, a list of such lists.
        k: How many values of each subgraph.
        tol: Relative error bound to reach.
        validate: Check every index beforehand.

    Returns:
        Values and bounds, shape ``[len(subgraphs), k]``; for a list of layers a list of them.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: As in :func:`singular_values`, or if the subgraphs are not the layers'.

    Example:
        >>> from fullspectrum_ext.ops.regular_subgraphs import regular_subgraphs
        >>> mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).to_sparse_csr()
        >>> csr = mask.crow_indices(), mask.col_indices()
        >>> graphs = regular_subgraphs(*csr, (2, 4))
        >>> subgraph_singular_values(*csr, None, (2, 4), graphs, k=1).values  # sqrt(2), 2
        tensor([[1.4142],
                [2.0000]], dtype=torch.float64)
    """
    one, crows, cols, shapes = as_layers(crow_indices, col_indices, shape)
    layer_values = _as_values(values, one, len(crows))
    _check(crows, cols, layer_values, shapes, k, tol, validate)
    groups: list[list[RegularSubgraph]]
    groups = [list(subgraphs)] if one else [list(layer) for layer in subgraphs]  # type: ignore
    if len(groups) != len(crows):
        raise ValueError(f"subgraphs: expected {len(crows)} layers, got {len(groups)}")
    if not crows:
        return []
    scaled, scales = _scaled(layer_values)
    counts = [len(layer) for layer in groups]
    sigma, bound = torch.ops.fullspectrum.subgraph_singular_values.default(
        [crow.contiguous() for crow in crows],
        [col.contiguous() for col in cols],
        scaled,
        [width for _, width in shapes],
        [_all_taps(layer, crow) for layer, crow in zip(groups, crows, strict=True)],
        counts,
        [graph.taps.numel() for layer in groups for graph in layer],
        k,
        tol,
    )
    if scales is not None:
        scales = scales.repeat_interleave(torch.tensor(counts))
    result = _unscaled(sigma, bound, scales)
    if one:
        return result
    return [
        SingularValues(*fields)
        for fields in zip(result.values.split(counts), result.bounds.split(counts), strict=True)
    ]


def _all_taps(layer: list[RegularSubgraph], like: Tensor) -> Tensor:
    """Join the taps of a layer's subgraphs, ``[taps]``."""
    for graph in layer:
        if not isinstance(graph, RegularSubgraph):
            raise TypeError(f"subgraphs: expected RegularSubgraph, got {type(graph).__name__}")
        if graph.taps.device != like.device:
            raise ValueError(
                f"subgraphs is on {graph.taps.device} but crow_indices is on {like.device}"
            )
    if not layer:
        return like.new_empty(0, dtype=torch.int64)
    return torch.cat([graph.taps for graph in layer])


def _as_values(
    values: Tensor | Sequence[Tensor] | None, one: bool, matrices: int
) -> list[Tensor] | None:
    if values is None:
        return None
    if isinstance(values, Tensor) != one:
        raise TypeError("values: expected a list of tensors where crow_indices is one")
    tensors = [values] if isinstance(values, Tensor) else list(values)
    if len(tensors) != matrices:
        raise ValueError(f"values: expected one tensor a matrix, {matrices}, got {len(tensors)}")
    return tensors


def _check(
    crows: list[Tensor],
    cols: list[Tensor],
    values: list[Tensor] | None,
    shapes: list[Shape],
    k: int,
    tol: float,
    validate: bool,
) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k: expected an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    if not tol > 0 or math.isinf(tol):
        raise ValueError(f"tol: expected a finite number above 0, got {tol}")
    for i in range(len(crows)):
        layer_values = None if values is None else values[i]
        _checks.check_csr(crows[i], cols[i], shapes[i], layer_values, validate=validate)
    check_one_device("crow_indices", crows)


def _scaled(values: list[Tensor] | None) -> tuple[list[Tensor], Tensor | None]:
    """Detach the values; scale those whose squares could over- or underflow by a power of two.

    Returns:
        The values to compute with, and the power of two by which each matrix's results are to be
        multiplied, float64 ``[n]`` on the CPU (None if all are one).

    Raises:
        ValueError: If a value is NaN or infinite.
    """
    if values is None:
        return [], None
    result = [tensor.detach().contiguous() for tensor in values]
    largest = torch.stack([
        tensor.abs().max().double() if tensor.numel() else tensor.new_zeros((), dtype=torch.float64)
        for tensor in result
    ]).cpu()
    if not bool(largest.isfinite().all()):
        raise ValueError("values: expected finite numbers, got NaN or infinity")
    extreme = (largest > 0) & ((largest < 1e-60) | (largest > 1e60))
    if not bool(extreme.any()):
        return result, None
    scales = [1.0] * len(result)
    for i in extreme.nonzero().flatten().tolist():
        # at most 2^1000 either way, whose inverse is a normal number too
        exponent = min(max(math.frexp(float(largest[i]))[1], -1000), 1000)
        scales[i] = math.ldexp(1.0, exponent)
        result[i] = result[i].double() / scales[i]
    return result, torch.tensor(scales, dtype=torch.float64)


def _unscaled(sigma: Tensor, bound: Tensor, scales: Tensor | None) -> SingularValues:
    if scales is None:
        return SingularValues(sigma, bound)
    factor = scales.to(sigma.device).unsqueeze(-1)
    return SingularValues(sigma * factor, bound * factor)


@torch.library.register_fake("fullspectrum::singular_values")
def _fake(
    crow_indices: list[Tensor],
    col_indices: list[Tensor],
    values: list[Tensor],
    cols: list[int],
    k: int,
    tol: float,
    method: int = 0,
) -> tuple[Tensor, Tensor]:
    sigma = crow_indices[0].new_empty((len(cols), k), dtype=torch.float64)
    return sigma, torch.empty_like(sigma)


@torch.library.register_fake("fullspectrum::subgraph_singular_values")
def _fake_subgraphs(
    crow_indices: list[Tensor],
    col_indices: list[Tensor],
    values: list[Tensor],
    cols: list[int],
    taps: list[Tensor],
    subgraphs: list[int],
    taps_of: list[int],
    k: int,
    tol: float,
    method: int = 0,
) -> tuple[Tensor, Tensor]:
    sigma = crow_indices[0].new_empty((len(taps_of), k), dtype=torch.float64)
    return sigma, torch.empty_like(sigma)
