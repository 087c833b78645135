"""Sparse training that is really sparse, and the full-spectrum view of sparse networks."""

from importlib.metadata import version as _version

from fullspectrum_ext import _library, dynamic, nn, ops, spectral  # noqa: F401 (_library, to fail first)
from fullspectrum_ext.dynamic import DynamicSparsity
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.nn import densify, load_sparse_state_dict, sparsify
from fullspectrum_ext.pruning import (
    DissipatingGradients,
    DissipatingKStarts,
    GradualPruning,
    KStarts,
    ProbMask,
    audit,
    lottery_tickets,
    methods,
    prune,
    register_pruner,
)
from fullspectrum_ext.spectral import FullSpectrum, LayerSpectrum, dense_spectrum, full_spectrum

__version__ = _version("fullspectrum-ext")
__all__ = [
    "DissipatingGradients",
    "DissipatingKStarts",
    "DynamicSparsity",
    "FullSpectrum",
    "GradualPruning",
    "KStarts",
    "LayerSpectrum",
    "MaskSet",
    "ProbMask",
    "audit",
    "dense_spectrum",
    "densify",
    "dynamic",
    "full_spectrum",
    "load_sparse_state_dict",
    "lottery_tickets",
    "methods",
    "nn",
    "ops",
    "prune",
    "register_pruner",
    "sparsify",
    "spectral",
]
