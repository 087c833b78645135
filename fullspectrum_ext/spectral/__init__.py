"""The full-spectrum view: what a layer's graph and its weights say about a sparse network."""

from fullspectrum_ext.spectral import ramanujan
from fullspectrum_ext.spectral.coordinates import FullSpectrum, LayerSpectrum, SubgraphSpectrum
from fullspectrum_ext.spectral.correlation import (
    Correlation,
    partial_correlation,
    pearson,
    spearman,
)
from fullspectrum_ext.spectral.density import SpectralDensity, spectral_density
from fullspectrum_ext.spectral.full_spectrum import dense_spectrum, full_spectrum
from fullspectrum_ext.spectral.paths import effective_masks
