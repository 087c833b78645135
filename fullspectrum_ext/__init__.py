"""Sparse training that is really sparse, and the full-spectrum view of sparse networks."""

from fullspectrum_ext import _library
