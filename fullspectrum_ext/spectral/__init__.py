"""The full-spectrum view: what a layer's graph and its weights say about a sparse network."""

from fullspectrum_ext.spectral import ramanujan
from fullspectrum_ext.spectral.coordinates import FullSpectrum, LayerSpectrum, SubgraphSpectrum
from fullspectrum_ext.spectral.full_spectrum import dense_spectrum, full_spectrum
