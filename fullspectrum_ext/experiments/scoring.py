"""The full-spectrum coordinate of checkpoints in files, as ``fullspectrum score`` shows it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from fullspectrum_ext._files import write_atomically
from fullspectrum_ext._layers import state_dict_layers
from fullspectrum_ext.experiments.report import new_figure, png
from fullspectrum_ext.experiments.state import read_state
from fullspectrum_ext.masks import FORMAT, MaskSet
from fullspectrum_ext.spectral import FullSpectrum, full_spectrum


def score_file(path: Path, **arguments: Any) -> FullSpectrum:
    """Place the network in a file in the full-spectrum view.

    Args:
        path: Masks that :meth:`fullspectrum_ext.MaskSet.save` wrote (there are no weights then, and
            the weighted coordinates are undefined), or a checkpoint as :func:`read_state` takes it.
            A weight that is zero counts as pruned, unless a mask says otherwise.
        **arguments: Keywords of :func:`fullspectrum_ext.full_spectrum`.

    Returns:
        The spectrum.

    Raises:
        ValueError: If the file is damaged or holds no layer.
    """
    path = Path(path)
    path.stat()  # FileNotFoundError in the system's own words
    masks: Mapping[str, Tensor]
    weights: Mapping[str, Tensor] | None
    if _holds_masks(path):
        masks, weights = MaskSet.load(path), None
    else:
        layers = state_dict_layers(read_state(path))
        if not layers:
            raise ValueError(f"{path}: expected a weight with two or four dimensions, found none")
        masks = MaskSet({name: layer.mask for name, layer in layers.items()})
        weights = {name: layer.weight for name, layer in layers.items()}
    try:
        return full_spectrum(masks, weights, **arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def draw_spectra(spectra: Mapping[str, FullSpectrum], out: Path) -> None:
    """Draw the singular values of each layer's mask against the Ramanujan bound.

    Args:
        spectra: Title to spectrum; one panel each.
        out: The PNG file to write.
    """
    figure, panels = new_figure(columns=len(spectra))
    for panel, (title, spectrum) in zip(panels, spectra.items(), strict=True):
        names, layers = list(spectrum.layers), list(spectrum.layers.values())
        bounds = [
            math.sqrt(max(layer.left_degree - 1, 0)) + math.sqrt(max(layer.right_degree - 1, 0))
            for layer in layers
        ]
        places = range(len(names))
        panel.plot(places, [layer.sigma1 for layer in layers], "o", label="σ1")
        panel.plot(places, [layer.sigma2 for layer in layers], "o", label="σ2")
        panel.hlines(
            bounds,
            [place - 0.35 for place in places],
            [place + 0.35 for place in places],
            colors="black",
            label="Ramanujan bound √(d_L − 1) + √(d_R − 1)",
        )
        panel.set_xticks(list(places), names, rotation=30 if len(names) < 8 else 90, ha="right")
        panel.set(title=title, ylabel="singular value of the mask", ylim=(0, None))
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    write_atomically(out, png(figure))


def _holds_masks(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return FORMAT in (file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or cut short ({error})") from error
