"""Other packages for sparse training on the CPU, each a column of the benchmarks where installed.

SparseProp (Nikdan, Pegolotti, Iofinova, Kurtic, Alistarh, ICML 2023) and SparseLab. Neither is
needed: a package that cannot be imported has no column. README.md says how they are installed.
"""

import importlib
import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Calls = dict[str, Callable[[], object]]
Layers = dict[str, tuple[nn.Module, Tensor]]


def peer_versions() -> dict[str, str]:
    """Return the peers that are installed, with their versions."""
    return {
        name: version(name)
        for name in ("sparseprop", "sparselab")
        if importlib.util.find_spec(name) is not None
    }


def linear_peers(weight: Tensor, x: Tensor, grad: Tensor) -> tuple[Calls, Calls]:
    """Build the peers' forward and step calls for a linear layer whose pruned weights are zero.

    The gradients for the weights are those of the entries other than zero, row by row.
    """
    layers: Layers = {}
    if "sparseprop" in peer_versions():
        layer = importlib.import_module("sparseprop.modules").SparseLinear(weight)
        layers["SparseProp"] = layer, layer.W_val
    if "sparselab" in peer_versions():
        layers["SparseLab"] = _sparselab_linear(weight)
    return _calls(layers, x, grad)


def conv2d_peers(weight: Tensor, x: Tensor, grad: Tensor, padding: int) -> tuple[Calls, Calls]:
    """Build the peers' forward and step calls for a convolution whose pruned weights are zero.

    SparseProp has two loop orders and picks one by measurement; both are timed here.
    """
    layers: Layers = {}
    if "sparseprop" in peer_versions():
        build = importlib.import_module("sparseprop.modules").SparseConv2d
        for name, over_width in (("SparseProp", False), ("SparseProp, over width", True)):
            layer = build(weight, padding=padding, vectorizing_over_on=over_width)
            layers[name] = layer, layer.W_val
    return _calls(layers, x, grad)


def _sparselab_linear(weight: Tensor) -> tuple[nn.Module, Tensor]:
    """SparseLab's layer draws its mask itself: give it ours, without room to grow."""
    sparselab: Any = importlib.import_module("sparselab")
    rows, cols = weight.shape
    layer = sparselab.SparseLinear(cols, rows, bias=False)
    layer._csr = sparselab.PaddedCSR.from_dense(weight, padding_ratio=0.0)
    layer._values = nn.Parameter(torch.from_numpy(np.asarray(layer._csr.values)))
    return layer, layer._values


def _calls(
    layers: dict[str, tuple[nn.Module, Tensor]], x: Tensor, grad: Tensor
) -> tuple[Calls, Calls]:
    def step(layer: nn.Module, values: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(layer(x), (x, values), grad)

    forward: Calls = {name: lambda layer=layer: layer(x) for name, (layer, _) in layers.items()}
    return forward, {name: step(*layer) for name, layer in layers.items()}
