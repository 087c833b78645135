"""What the full-spectrum view says of a layer and of a network."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from fullspectrum_ext.spectral.graph import Flavor

COORDINATES = ("ramanujan_gap", "weighted_gap", "imdb", "imsg")

_COLUMNS = {  # of the table: header and attribute
    "density": "density",
    "eff.": "effective_density",
    "Δ_R": "ramanujan_gap",
    "Δ_R /\nbound": "normalized_gap",
    "λ": "weighted_gap",
    "IMDB": "imdb",
    "λ_imsg": "imsg",
    "norm": "norm",
}


_TRIVIAL = {"unstructured", "dense", "empty"}  # of patterns


@dataclass(frozen=True)
class SubgraphSpectrum:
    r"""One left-regular subgraph of a layer: the taps of one degree and the outputs they reach.

    Attributes:
        degree: Degree of each tap.
        taps: Number of taps.
        live_outputs: Number of outputs they reach.
        factor: What its gaps are multiplied by in the layer's means.
        sigma1: First singular value of its 0/1 matrix.
        sigma2: Second one.
        ramanujan_gap: :math:`\Delta_R` of the subgraph.
        ramanujan_gap_s: :math:`\Delta_S` of it.
        ramanujan_bound: :math:`\sqrt{d - 1} + \sqrt{d_R - 1}`.
        weighted_gap: :math:`\sigma_1 - \sigma_2` of its weights; nan without weights.
    """

    degree: int
    taps: int
    live_outputs: int
    factor: float
    sigma1: float
    sigma2: float
    ramanujan_gap: float
    ramanujan_gap_s: float
    ramanujan_bound: float
    weighted_gap: float

    @property
    def normalized_gap(self) -> float:
        """The Ramanujan gap over the bound, in (-∞, 1]; nan where the bound is 0."""
        return _ratio(self.ramanujan_gap, self.ramanujan_bound)


@dataclass(frozen=True)
class LayerSpectrum:
    r"""A layer's place in the full-spectrum view, and what it is computed from.

    What is undefined is nan: the gaps of a layer whose degrees are too small, the weighted ones
    where there are no weights, the means where no subgraph counts. It counts as 0 in
    :attr:`vector` and :attr:`norm`.

    Attributes:
        ramanujan_gap: :math:`\Delta_R = \sqrt{d_L - 1} + \sqrt{d_R - 1} - \sigma_2`.
        weighted_gap: :math:`\lambda = \sigma_1 - \sigma_2` of :math:`|w \odot m|`.
        imdb: Iterative mean difference of bound: the mean of :math:`\Delta_R` over the regular
            subgraphs.
        imsg: Iterative mean spectral gap: the same mean of the weighted gap.
        ramanujan_gap_s: :math:`\Delta_S = 2 \sqrt{\sigma_1 - 1} - \sigma_2`.
        imdb_s: The mean of :math:`\Delta_S` over the regular subgraphs.
        ramanujan_bound: :math:`\sqrt{d_L - 1} + \sqrt{d_R - 1}`.
        imdb_normalized: The mean over the regular subgraphs of :math:`\Delta_R` over its bound.
        narc: Normalised random coefficient, edges counted in both directions as published.
        narc_undirected: The same with each edge counted once.
        expander_mixing: What the authors' later code logs in the place of NaRC.
        density: Kept weights over all.
        live_density: Kept weights over those possible between live taps and live outputs.
        effective_density: Weights on a path from the network's input to its output, over all; nan
            where the layers are not known to form a chain.
        edges: Kept weights.
        live_taps: Input taps with a kept weight.
        live_outputs: Outputs with a kept weight.
        left_degree: Mean degree of the live taps.
        right_degree: Mean degree of the live outputs.
        sigma1: First singular value of the 0/1 matrix.
        sigma2: Second one.
        sigma_bounds: How far ``sigma1`` and ``sigma2`` can be off.
        weighted_sigma1: First singular value of :math:`|w \odot m|`.
        weighted_sigma2: Second one.
        weighted_sigma_bounds: How far these can be off.
        subgraphs: The regular subgraphs that count, by rising degree.
    """

    ramanujan_gap: float
    weighted_gap: float
    imdb: float
    imsg: float
    ramanujan_gap_s: float
    imdb_s: float
    ramanujan_bound: float
    imdb_normalized: float
    narc: float
    narc_undirected: float
    expander_mixing: float
    density: float
    live_density: float
    effective_density: float
    edges: int
    live_taps: int
    live_outputs: int
    left_degree: float
    right_degree: float
    sigma1: float
    sigma2: float
    sigma_bounds: tuple[float, float]
    weighted_sigma1: float
    weighted_sigma2: float
    weighted_sigma_bounds: tuple[float, float]
    subgraphs: tuple[SubgraphSpectrum, ...]

    @property
    def vector(self) -> np.ndarray:
        """The four coordinates in their order, undefined ones as 0; float64 ``[4]``."""
        return np.nan_to_num(np.array([getattr(self, name) for name in COORDINATES]))

    @property
    def norm(self) -> float:
        """Euclidean length of :attr:`vector`."""
        return math.hypot(*self.vector.tolist())

    @property
    def normalized_gap(self) -> float:
        """The Ramanujan gap over the bound, in (-∞, 1]: comparable between layers of any degree."""
        return _ratio(self.ramanujan_gap, self.ramanujan_bound)

    @property
    def is_ramanujan(self) -> bool:
        """Whether the Ramanujan gap is defined and not negative."""
        return self.ramanujan_gap >= 0


@dataclass(frozen=True)
class FullSpectrum:
    """The full-spectrum coordinate of a network, layer by layer.

    Attributes:
        layers: Parameter name to the layer's spectrum, in the network's order.
        flavor: Whose definition of the subgraph means was used.
    """

    layers: Mapping[str, LayerSpectrum]
    flavor: Flavor

    @property
    def vector(self) -> np.ndarray:
        """Mean over the layers of the four coordinates, undefined ones as 0; float64 ``[4]``."""
        return np.mean([layer.vector for layer in self.layers.values()], axis=0)

    def norm(self) -> float:
        """Return the mean over the layers of the vector's length: the distance from the origin."""
        return float(np.mean([layer.norm for layer in self.layers.values()]))

    def distance(self, other: "FullSpectrum") -> float:
        """Return the mean over the layers of the distance between two networks' vectors.

        ``other`` is a reference: the same masks over the initial weights (the "anchor"), or the
        dense network (:func:`dense_spectrum`). :meth:`norm` is the distance from the origin.

        Args:
            other: The spectrum of a network with the same layers.

        Returns:
            The distance.

        Raises:
            ValueError: If the layers or the flavors differ.

        Example:
            >>> import torch
            >>> from fullspectrum_ext.spectral import full_spectrum
            >>> masks = {"fc": torch.ones(3, 3)}
            >>> weights = {"fc": torch.full((3, 3), 0.5)}
            >>> now = full_spectrum(masks, {"fc": torch.full((3, 3), 0.7)})
            >>> round(now.distance(full_spectrum(masks, weights)), 4)  # 0.6 in λ, 0.36 in λ_imsg
            0.6997
        """
        return float(np.mean(list(self.distances(other).values())))

    def distances(self, other: "FullSpectrum") -> dict[str, float]:
        """Return the distance between two networks' vectors for each layer.

        Args:
            other: The spectrum of a network with the same layers.

        Returns:
            Layer to distance.

        Raises:
            ValueError: If the layers or the flavors differ.
        """
        if self.layers.keys() != other.layers.keys():
            differing = sorted(self.layers.keys() ^ other.layers.keys())
            raise ValueError(
                f"other: expected the same layers; only one of the two has {', '.join(differing)}"
            )
        if self.flavor != other.flavor:
            raise ValueError(f"other: expected flavor {self.flavor!r}, got {other.flavor!r}")
        return {
            name: math.dist(layer.vector.tolist(), other.layers[name].vector.tolist())
            for name, layer in self.layers.items()
        }

    @property
    def _is_chain(self) -> bool:
        return not any(math.isnan(layer.effective_density) for layer in self.layers.values())

    def table(self, patterns: Mapping[str, str] | None = None) -> Table:
        """Return a table for people, one line a layer: ``rich.print(spectrum.table())``.

        The effective density ("eff.") is there where the layers form a chain.

        Args:
            patterns: Layer to the name of its mask's pattern, which is then put under the layer's
                name where it says more than the density does.

        Returns:
            The table.
        """
        table = Table(
            title=f"Full spectrum ({self.flavor})",
            show_footer=True,
            box=box.SIMPLE,  # narrow enough for the names of deep layers
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column("layer", footer="mean", overflow="fold", min_width=12)
        columns = _COLUMNS if self._is_chain else {k: v for k, v in _COLUMNS.items() if k != "eff."}
        for header, name in columns.items():
            values = np.nan_to_num([getattr(layer, name) for layer in self.layers.values()])
            table.add_column(header, justify="right", footer=f"{values.mean():.4f}", no_wrap=True)
        table.add_column("Rama-\nnujan", no_wrap=True)
        for title, layer in self.layers.items():
            numbers = [getattr(layer, name) for name in columns.values()]
            cells = ["–" if math.isnan(number) else f"{number:.4f}" for number in numbers]
            cells.append("yes" if layer.is_ramanujan else "no")
            pattern = "unstructured" if patterns is None else patterns[title]
            below = "" if pattern in _TRIVIAL else f"\n  {pattern}"
            table.add_row(escape(title) + below, *cells)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold; what is undefined is None."""
        layers = {
            name: {
                **asdict(layer),
                "subgraphs": [
                    {**asdict(part), "normalized_gap": part.normalized_gap}
                    for part in layer.subgraphs
                ],
                "norm": layer.norm,
                "normalized_gap": layer.normalized_gap,
                "is_ramanujan": layer.is_ramanujan,
            }
            for name, layer in self.layers.items()
        }
        vector = dict(zip(COORDINATES, self.vector.tolist(), strict=True))
        return _json_ready({
            "flavor": self.flavor,
            "vector": vector,
            "norm": self.norm(),
            "layers": layers,
        })


def _ratio(gap: float, bound: float) -> float:
    return gap / bound if bound else math.nan


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_ready(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
