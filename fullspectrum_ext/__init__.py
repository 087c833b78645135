"""Sparse training that is really sparse, and the full-spectrum view of sparse networks."""

from fullspectrum_ext import _library
from fullspectrum_ext.masks import MaskSet
from fullspectrum_ext.pruning import methods, prune, register_pruner
from fullspectrum_ext.spectral import FullSpectrum, dense_spectrum, full_spectrum
