"""How a budget of weights is spread over layers: uniform, Erdős–Rényi, Erdős–Rényi kernel.

Every rule gives real numbers that add up to ``density * N``; :func:`layer_counts` makes them whole
so that their sum is ``round(density * N)`` exactly.
"""

import math
from collections.abc import Callable, Mapping, Sequence

Shape = Sequence[int]


def total_count(sizes: Sequence[int], density: float) -> int:
    """Return ``round(density * N)`` for ``N = sum(sizes)``; a half goes to the even neighbour."""
    return round(density * sum(sizes))


def layer_counts(shapes: Mapping[str, Shape], density: float, rule: str) -> dict[str, int]:
    """Say how many weights each layer keeps, ``round(density * N)`` in all.

    The rule's real numbers are rounded down, and the weights that are then missing go, one each, to
    the layers that lost the largest fractions (the earlier layer where these are equal). No layer
    gets more than it has.

    Args:
        shapes: Parameter name to the weight's shape, ``(out, in)`` or ``(out, in, kH, kW)``.
        density: Fraction to keep over all layers, in [0, 1].
        rule: ``"layer"``, ``"er"`` or ``"erk"``; see :data:`DENSITY_RULES`.

    Returns:
        Parameter name to number of weights to keep.

    Example:
        >>> layer_counts({"a": (4, 5), "b": (5, 7)}, 0.2, "layer")
        {'a': 4, 'b': 7}
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    densities = DENSITY_RULES[rule](list(shapes.values()), density)
    shares = [share * size for share, size in zip(densities, sizes, strict=True)]
    counts = whole_counts(shares, sizes, total_count(sizes, density))
    return dict(zip(shapes, counts, strict=True))


def uniform_densities(shapes: Sequence[Shape], density: float) -> list[float]:
    """Give every layer the same density."""
    return [density] * len(shapes)


def er_densities(shapes: Sequence[Shape], density: float) -> list[float]:
    r"""Give layer densities :math:`\varepsilon (n_{in} + n_{out}) / (n_{in} n_{out})`.

    Args:
        shapes: Shapes of the weights; a kernel's extent does not count.
        density: Fraction to keep over all layers.

    Returns:
        Density of each layer.

    References:
        Mocanu et al.: Scalable training of artificial neural networks with adaptive sparse
        connectivity inspired by network science, Nature Communications 2018, equation 3.
    """
    return _erdos_renyi(shapes, [shape[:2] for shape in shapes], density)


def erk_densities(shapes: Sequence[Shape], density: float) -> list[float]:
    r"""Give layer densities :math:`\varepsilon (C_o + C_i + k_h + k_w) / (C_o C_i k_h k_w)`.

    Args:
        shapes: Shapes of the weights.
        density: Fraction to keep over all layers.

    Returns:
        Density of each layer.

    References:
        Evci et al.: Rigging the Lottery, ICML 2020, section 3, "Erdős–Rényi-Kernel".
    """
    return _erdos_renyi(shapes, shapes, density)


DENSITY_RULES: dict[str, Callable[[Sequence[Shape], float], list[float]]] = {
    "layer": uniform_densities,
    "er": er_densities,
    "erk": erk_densities,
}


def _erdos_renyi(shapes: Sequence[Shape], counted: Sequence[Shape], density: float) -> list[float]:
    """Scale the raw densities to the budget; a layer that would exceed 1 becomes dense."""
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / math.prod(shape) for shape in counted]
    sparse = [i for i, size in enumerate(sizes) if size]
    dense: set[int] = set(range(len(sizes))) - set(sparse)
    while sparse:
        budget = density * sum(sizes) - sum(sizes[i] for i in dense)
        epsilon = budget / sum(raw[i] * sizes[i] for i in sparse)
        largest = max(sparse, key=lambda i: raw[i])
        if epsilon * raw[largest] <= 1:
            break
        sparse.remove(largest)
        dense.add(largest)
    return [1.0 if i in dense else epsilon * raw[i] for i in range(len(sizes))]


def whole_counts(shares: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Round shares to whole numbers that add up to ``total`` (largest remainder, capped).

    Args:
        shares: Real numbers.
        sizes: What each place can take.
        total: At most the sum of ``sizes``.

    Returns:
        The shares rounded down, and one more where the largest fractions were lost, the earlier of
        equal ones first.
    """
    counts = [min(math.floor(share), size) for share, size in zip(shares, sizes, strict=True)]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    missing = total - sum(counts)
    while missing > 0:
        for i in by_remainder:
            if missing > 0 and counts[i] < sizes[i]:
                counts[i] += 1
                missing -= 1
    return counts
