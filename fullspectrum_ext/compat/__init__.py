"""The classes that other libraries' users know, over this package: one module for each origin.

:mod:`~fullspectrum_ext.compat.itop`, :mod:`~fullspectrum_ext.compat.granet` and
:mod:`~fullspectrum_ext.compat.sparse_learning` have ``Masking``,
:mod:`~fullspectrum_ext.compat.torchao` has ``WeightNormSparsifier``. A script changes imports and
nothing else; where it does otherwise than the original is said in
``docs/coming_from_elsewhere.md``.
"""
