"""What a spectrum can be taken of: models, masks, state dicts, matrices; all become one thing."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fullspectrum_ext._layers import LayerWeight, model_layers, state_dict_layers
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.spectral.graph import LayerGraph, kept_values

Source = nn.Module | Mapping[str, Any] | Tensor | Any
"""A model; a mapping of names to masks, weights or SciPy sparse matrices; or one of these alone."""


class Layers(NamedTuple):
    """The masks and weights of a network.

    Attributes:
        masks: Name to bool tensor, or to the CSR tensor that a SciPy matrix became, whose entries
            are the edges.
        weights: Name to weight, dense or as a CSR tensor; None where there are none.
    """

    masks: Mapping[str, Tensor]
    weights: Mapping[str, Tensor] | None


def read_source(source: Source, weights: Source | None) -> Layers:
    """Read masks and weights off whatever is given; see ``full_spectrum`` for what can be.

    Args:
        source: Where the masks come from, and the weights where there are no others.
        weights: Where the weights come from.

    Returns:
        Masks and weights, all on one device.

    Raises:
        TypeError: If an argument is none of the things a spectrum can be taken of.
        ValueError: If it holds no layer, or a mask other values than 0 and 1.
    """
    masks, own = _read("source", source)
    if len({mask.device for mask in masks.values()}) > 1:  # one native call wants one device
        masks = {name: mask.cpu() for name, mask in masks.items()}
    return Layers(masks, own if weights is None else _read_weights(masks, weights))


def edge_weights(
    name: str, mask: Tensor, graph: LayerGraph, weights: Mapping[str, Tensor]
) -> Tensor:
    """Return the absolute weights under a mask, row by row.

    Args:
        name: The layer.
        mask: Its mask, bool or CSR.
        graph: The mask's graph.
        weights: The network's weights.

    Returns:
        One value an edge, ``[edges]``.

    Raises:
        TypeError: If the weight is no tensor, or not of floating point.
        ValueError: If it is missing, of another shape, without values, or not finite.
    """
    if name not in weights:
        raise ValueError(f"weights: there is none for the mask {name!r}")
    weight = weights[name]
    if not isinstance(weight, Tensor):
        raise TypeError(f"weights[{name!r}]: expected a torch.Tensor, got {type(weight).__name__}")
    if not weight.is_floating_point():
        raise TypeError(f"weights[{name!r}]: expected floating point, got {weight.dtype}")
    if weight.is_meta:
        raise ValueError(f"weights[{name!r}]: expected values, got a tensor on the meta device")
    if weight.shape != mask.shape:
        raise ValueError(
            f"weights[{name!r}]: expected the mask's shape {tuple(mask.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    if is_csr(weight) and weight is mask:
        values = weight.values().abs()
    else:
        dense = weight if weight.layout == torch.strided else weight.to_dense()
        if dense.dtype.itemsize == 1:
            dense = dense.float()  # torch can hardly compute with eight bits
        values = kept_values(dense, graph)
    if not bool(values.isfinite().all()):
        raise ValueError(f"weights[{name!r}]: expected finite weights, got NaN or infinity")
    return values


def is_csr(matrix: Tensor) -> bool:
    """Tell whether a tensor is stored in CSR form."""
    return matrix.layout == torch.sparse_csr


def csr_tensor(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """Make a CSR tensor of checked fields, without torch's warning that these are new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            crow_indices, col_indices, values, size=shape, check_invariants=True
        )


def _read(
    argument: str, source: Source
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """Masks, and the weights where the source has them."""
    if isinstance(source, nn.Module):
        layers = model_layers(source)
        if not layers:
            raise ValueError(
                f"{argument}: expected a model with a Linear, Conv2d or recurrent layer, found none"
            )
        return _split(layers)
    if isinstance(source, MaskSet):
        return source, None
    if isinstance(source, Tensor):
        if source.layout != torch.strided:
            raise TypeError(f"{argument}: expected a dense tensor, got {source.layout}")
        return _read_tensors({"weight": source})
    if _is_scipy(source):
        return _read_scipy({"weight": source})
    if not isinstance(source, Mapping):
        raise TypeError(
            f"{argument}: expected a model, a MaskSet, a mapping, a tensor or a SciPy "
            f"sparse matrix, got {type(source).__name__}"
        )
    if source and all(map(_is_scipy, source.values())):
        return _read_scipy(source)
    return _read_tensors(source)


def _read_tensors(
    source: Mapping[str, Tensor],
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """Masks if all are dense and hold 0 and 1 alone, else the layers of a state dict."""
    if not all(
        isinstance(value, Tensor) and value.layout == torch.strided and _is_binary(value)
        for value in source.values()
    ):
        layers = state_dict_layers(source)
        if layers:
            return _split(layers)
    return MaskSet(source), None  # says what is wrong where it is neither


def _read_scipy(
    source: Mapping[str, Any],
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """Masks if all stored values are 0 or 1, else the weights too."""
    matrices = {name: _from_scipy(name, matrix) for name, matrix in source.items()}
    if all(_is_binary(matrix.values()) for matrix in matrices.values()):
        return matrices, None
    return matrices, matrices


def _read_weights(masks: Mapping[str, Tensor], weights: Source) -> Mapping[str, Tensor]:
    if isinstance(weights, nn.Module):
        return {name: layer.weight for name, layer in model_layers(weights).items()}
    if isinstance(weights, Tensor):
        return {"weight": weights}
    if _is_scipy(weights):
        return {"weight": _from_scipy("weight", weights)}
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights: expected a model or a mapping, got {type(weights).__name__}")
    found = {
        name: _from_scipy(name, value) if _is_scipy(value) else value
        for name, value in weights.items()
    }
    if masks.keys() <= found.keys():
        return found
    layers = state_dict_layers(weights)  # masked and sparse layers keep their weight otherwise
    return {name: layer.weight for name, layer in layers.items()} | found


def _split(layers: Mapping[str, LayerWeight]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    masks = {name: layer.mask for name, layer in layers.items()}
    return masks, {name: layer.weight for name, layer in layers.items()}


def _is_binary(values: Tensor) -> bool:
    return values.dtype == torch.bool or bool(((values == 0) | (values == 1)).all())


def _is_scipy(source: object) -> bool:
    """Tell a SciPy sparse matrix by what it can do, for SciPy need not be installed."""
    return hasattr(source, "tocsr") and hasattr(source, "nnz") and hasattr(source, "shape")


def _from_scipy(name: str, matrix: Any) -> Tensor:
    """Copy a SciPy matrix into a CSR tensor without stored zeros and duplicates."""
    if len(matrix.shape) != 2:
        raise ValueError(f"source[{name!r}]: expected two dimensions, got shape {matrix.shape}")
    if matrix.dtype.kind not in "biuf":
        raise TypeError(f"source[{name!r}]: expected real numbers, got {matrix.dtype}")
    csr = matrix.tocsr(copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr_tensor(
        torch.from_numpy(csr.indptr),
        torch.from_numpy(csr.indices),
        torch.from_numpy(csr.data.astype(np.float64)),
        csr.shape,
    )
