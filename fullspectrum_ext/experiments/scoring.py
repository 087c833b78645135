"""The full-spectrum coordinate of checkpoints in files, as ``fullspectrum score`` shows it."""

import ctypes
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from fullspectrum_ext._files import write_atomically
from fullspectrum_ext._layers import (
    Patterns,
    StoredLayer,
    read_layer,
    select_names,
    stored_layers,
    stored_size,
)
from fullspectrum_ext.checkpoints import Checkpoint, open_checkpoint
from fullspectrum_ext.experiments.figures import new_figure, png
from fullspectrum_ext.masks import FORMAT, MaskSet
from fullspectrum_ext.patterns import mask_pattern
from fullspectrum_ext.spectral import FullSpectrum, LayerSpectrum
from fullspectrum_ext.spectral.full_spectrum import graph_spectrum
from fullspectrum_ext.spectral.graph import Flavor, LayerGraph, layer_graph
from fullspectrum_ext.spectral.sources import edge_weights

EMBEDDINGS = ("*embed*", "wte", "wpe", "shared", "lm_head", "word_emb*", "tok_emb*", "pos_emb*")
"""Last part of the names of layers that are no layers of a bipartite network, or tied to one."""
_BATCH = 2**20  # weights scored at once at least, so that small layers share the threads
Advance = Callable[[int, int], None]  # weights done, weights in all


@dataclass(frozen=True)
class FileScore:
    """What a file scores.

    Attributes:
        spectrum: The coordinate of its network.
        patterns: Layer to the pattern of its mask, as
            :func:`fullspectrum_ext.patterns.mask_pattern` names it.
    """

    spectrum: FullSpectrum
    patterns: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold; what is undefined is None."""
        found = self.spectrum.to_dict()
        for name, layer in found["layers"].items():
            layer["pattern"] = self.patterns[name]
        return found


def score_file(
    path: Path,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    skip_dense: bool = False,
    advance: Advance | None = None,
    flavor: Flavor = "neurips",
    **arguments: Any,
) -> FileScore:
    """Place the network in a file in the full-spectrum view, reading one layer after the other.

    Memory follows the largest layer, not the file: layers are read, scored and dropped one by one
    (small ones a million weights at a time).

    Args:
        path: Masks that :meth:`fullspectrum_ext.MaskSet.save` wrote (there are no weights then, and
            the weighted coordinates are undefined), or a checkpoint as
            :func:`fullspectrum_ext.checkpoints.open_checkpoint` opens it. A weight that is zero
            counts as pruned, unless a mask says otherwise.
        include: Patterns as of :func:`full_spectrum`. By default all layers but those that
            :data:`EMBEDDINGS` names.
        exclude: Patterns of layers to leave out.
        skip_dense: Whether to leave out layers of which nothing is pruned.
        advance: Called with the weights done and the weights in all.
        flavor: As of :func:`fullspectrum_ext.full_spectrum`.
        **arguments: ``min_degree`` and ``tol`` of it.

    Returns:
        Spectrum and patterns.

    Raises:
        ValueError: If the file is damaged or holds no layer, or a layer no weight.
    """
    path = Path(path)
    path.stat()  # FileNotFoundError in the system's own words
    try:
        if _holds_masks(path):
            source: Checkpoint | MaskSet = MaskSet.load(path)
            headers: Mapping[str, Tensor] = source
            layers = {name: StoredLayer(name) for name in source}
        else:
            source = open_checkpoint(path)
            headers = source.headers
            layers = stored_layers(headers)
            if not layers:
                raise ValueError("expected a weight with two or four dimensions, found none")
        names = _chosen(layers, include, exclude)
        spectra: dict[str, LayerSpectrum] = {}
        patterns: dict[str, str] = {}
        sizes = _sizes({name: layers[name] for name in names}, headers)
        done, total = 0, sum(sizes.values())
        for batch in _batches(sizes):
            scored, named = _score_batch(
                {name: layers[name] for name in batch}, source, skip_dense, flavor, arguments
            )
            spectra |= scored
            patterns |= named
            _give_memory_back()
            done += sum(sizes[name] for name in batch)
            if advance is not None:
                advance(done, total)
        if not spectra:
            raise ValueError("every layer is dense, and dense ones are to be skipped")
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    return FileScore(FullSpectrum(spectra, flavor), patterns)


def _chosen(layers: Mapping[str, StoredLayer], include: Patterns, exclude: Patterns) -> list[str]:
    names = select_names(layers, include, exclude)
    if include is None:
        names = [name for name in names if not _is_embedding(name)]
    if not names:
        raise ValueError(
            "no layer is left to look at (embeddings and lm_head are looked at with --include only)"
        )
    return names


def _is_embedding(name: str) -> bool:
    module = name.split(".")[-2:][0]  # the layer's own name, without that of the parameter
    return any(fnmatchcase(module, pattern) for pattern in EMBEDDINGS)


def _sizes(layers: Mapping[str, StoredLayer], headers: Mapping[str, Tensor]) -> dict[str, int]:
    """Number of weights stored for each layer, in the order of the file."""
    sizes = {}
    for name, layer in layers.items():
        sizes[name] = stored_size(layer, headers)
        if sizes[name] == 0:
            shape = tuple(headers[layer.weight].shape)
            raise ValueError(f"{name}: expected weights, got shape {shape}")
    return sizes


def _batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Cut the layers into runs of at most a million weights, or as many as the largest has."""
    limit = max(_BATCH, *sizes.values())
    batch: list[str] = []
    held = 0
    for name, size in sizes.items():
        if batch and held + size > limit:
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += size
    yield batch


def _score_batch(
    layers: Mapping[str, StoredLayer],
    source: Mapping[str, Tensor],
    skip_dense: bool,
    flavor: Flavor,
    arguments: Mapping[str, Any],
) -> tuple[Mapping[str, LayerSpectrum], dict[str, str]]:
    """Return the spectra and the patterns of some layers."""
    graphs: dict[str, LayerGraph] = {}
    values: dict[str, Tensor] = {}
    patterns: dict[str, str] = {}
    for name, layer in layers.items():
        mask, weight = _read(name, layer, source)
        pattern = mask_pattern(mask)
        if skip_dense and pattern == "dense":
            continue
        patterns[name] = pattern
        graphs[name] = layer_graph(name, mask)
        if weight is not None:
            values[name] = edge_weights(name, mask, graphs[name], {name: weight})
        del mask, weight  # their memory is wanted for what follows
    if not graphs:
        return {}, {}
    _give_memory_back()
    return graph_spectrum(graphs, values or None, flavor=flavor, **arguments).layers, patterns


def _read(
    name: str, layer: StoredLayer, source: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Return a layer's mask, and its weight where there is one."""
    if isinstance(source, MaskSet):
        return source[name], None
    weight, mask = read_layer(name, layer, source)
    return mask, weight


def _give_memory_back() -> None:
    """Return freed memory to the system: glibc may keep as much as a layer took for each thread."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


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
        step = math.ceil(len(names) / 60)  # more names than that cannot be read
        rotation = 30 if len(names) < 8 else 90
        panel.set_xticks(list(places)[::step], names[::step], rotation=rotation, ha="right")
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
