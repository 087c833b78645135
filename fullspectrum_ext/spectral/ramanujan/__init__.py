"""Masks that are Ramanujan by construction, each with its certificate; one generator a file."""

from fullspectrum_ext.spectral.ramanujan.biregular import biregular_random
from fullspectrum_ext.spectral.ramanujan.certificate import RamanujanMask, certify
from fullspectrum_ext.spectral.ramanujan.quasi_cyclic import (
    QuasiCyclicMask,
    array_code,
    mask_from_shifts,
    quasi_cyclic,
)
from fullspectrum_ext.spectral.ramanujan.two_lift import two_lift
