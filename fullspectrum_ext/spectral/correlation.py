r"""Correlations, and what is left of them once other measures are accounted for.

Cunegatti et al. (TMLR 2024) found that Ramanujan measures predict a sparse network's accuracy about
as well as its layer-wise density does. Whether a coordinate says more than that in an experiment at
hand is a question for a partial correlation: that of what is left of both, accuracy and coordinate,
after density has been regressed out of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
_NEGLIGIBLE = 1e-10  # of its length before: what is left of a variable when the rest is rounding


@dataclass(frozen=True)
class Correlation:
    """A correlation and how likely one so strong would be by chance.

    Attributes:
        coefficient: In [-1, 1]; nan where a variable is constant, or is once the controls are
            regressed out.
        p_value: Two-sided; nan where the coefficient is, and where the observations are too few.
        observations: How many.
    """

    coefficient: float
    p_value: float
    observations: int


def pearson(
    x: ArrayLike, y: ArrayLike, *, permutations: int | None = None, seed: int = 0
) -> Correlation:
    r"""Correlate two variables linearly.

    Args:
        x: Observations, ``[n]``, at least 3.
        y: Observations, ``[n]``.
        permutations: None takes the p-value from Student's t with ``n - 2`` degrees of freedom,
            exact for normal variables. A number draws so many permutations of ``x`` and counts
            those at least as correlated, the observed order being one more of them.
        seed: Of the permutations.

    Returns:
        Coefficient and p-value.

    Raises:
        ValueError: If the variables are not ``[n]`` of one length, too few, or not finite.

    Example:
        >>> found = pearson([1, 2, 3, 4], [1, 3, 2, 4])
        >>> round(found.coefficient, 6), round(found.p_value, 6)
        (0.8, 0.2)
    """
    return _correlate(x, y, [], permutations, seed, ranks=False)


def spearman(
    x: ArrayLike, y: ArrayLike, *, permutations: int | None = None, seed: int = 0
) -> Correlation:
    """Correlate the ranks of two variables; equal values share their mean rank.

    Args:
        x: As in :func:`pearson`, as are the other arguments.
        y: Observations, ``[n]``.
        permutations: As in :func:`pearson`; Student's t is an approximation here.
        seed: Of the permutations.

    Returns:
        Coefficient and p-value.

    Raises:
        ValueError: As in :func:`pearson`.

    Example:
        >>> spearman([1, 2, 3, 4], [1, 10, 100, 1000]).coefficient
        1.0
    """
    return _correlate(x, y, [], permutations, seed, ranks=True)


def partial_correlation(
    x: ArrayLike,
    y: ArrayLike,
    controls: ArrayLike | Sequence[ArrayLike],
    *,
    ranks: bool = False,
    permutations: int | None = None,
    seed: int = 0,
) -> Correlation:
    r"""Correlate what is left of two variables after others have been regressed out of both.

    With residuals :math:`r_x, r_y` of least squares on the controls and a constant it is
    :math:`r_x \cdot r_y / (\|r_x\| \|r_y\|)`, tested with ``n - 2 - c`` degrees of freedom for
    ``c`` controls that are linearly independent of each other and the constant.

    Args:
        x: Observations, ``[n]``: a coordinate of ``n`` networks, say.
        y: Observations, ``[n]``: their accuracies.
        controls: One variable ``[n]`` (their densities), or several, ``[c, n]``.
        ranks: Whether to replace all variables by their ranks first (Spearman's).
        permutations: As in :func:`pearson`; it is the residuals of ``x`` that are permuted, which
            is approximate (Freedman, Lane 1983).
        seed: Of the permutations.

    Returns:
        Coefficient and p-value.

    Raises:
        ValueError: As in :func:`pearson`.

    Example:
        >>> density = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
        >>> coordinate = density + [0.01, -0.01, 0.01, -0.01, 0.01, -0.01]
        >>> accuracy = 0.5 + density + [0.01, 0.01, -0.01, -0.01, 0.01, 0.01]
        >>> round(pearson(coordinate, accuracy).coefficient, 3)  # nothing but their density
        0.997
        >>> abs(partial_correlation(coordinate, accuracy, density).coefficient) < 0.2
        True
    """
    table = np.atleast_2d(np.asarray(controls, dtype=np.float64))
    return _correlate(x, y, list(table), permutations, seed, ranks=ranks)


def _correlate(
    x: ArrayLike,
    y: ArrayLike,
    controls: Sequence[Array],
    permutations: int | None,
    seed: int,
    *,
    ranks: bool,
) -> Correlation:
    variables = [_variable(name, v) for name, v in (("x", x), ("y", y))]
    variables += [_variable("controls", v) for v in controls]
    count = len(variables[0])
    if count < 3:
        raise ValueError(f"x: expected at least 3 observations, got {count}")
    for name, variable in zip(["y", *["controls"] * len(controls)], variables[1:], strict=True):
        if len(variable) != count:
            raise ValueError(f"{name}: expected {count} observations as x has, got {len(variable)}")
    if permutations is not None and permutations < 1:
        raise ValueError(f"permutations: expected at least 1, got {permutations}")
    if ranks:
        variables = [_ranks(variable) for variable in variables]
    basis = _basis(variables[2:], count)
    left, right = (_residual(variable, basis) for variable in variables[:2])
    if not left.any() or not right.any():
        return Correlation(math.nan, math.nan, count)
    coefficient = float(np.clip(left @ right, -1, 1))
    if permutations is None:
        p_value = _student(coefficient, count - 1 - basis.shape[1])
    else:
        p_value = _permuted(left, right, coefficient, permutations, seed)
    return Correlation(coefficient, p_value, count)


def _variable(name: str, values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity; leave those out")
    return array


def _ranks(values: Array) -> Array:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def _basis(controls: Sequence[Array], count: int) -> Array:
    """An orthonormal basis of the constant and the controls, ``[n, 1 + c]``."""
    basis = np.full((count, 1), count**-0.5)
    for control in controls:
        left = _residual(control, basis)
        if left.any():
            basis = np.column_stack([basis, left])
    return basis


def _residual(values: Array, basis: Array) -> Array:
    """What is left of a variable, at length 1; zeros where that is but rounding."""
    largest = np.abs(values).max()
    scaled = values / largest if largest else values  # so that squares neither over- nor underflow
    left = scaled - basis @ (basis.T @ scaled)
    left -= basis @ (basis.T @ left)  # twice is enough (Kahan, Parlett)
    length = np.linalg.norm(left)
    if length <= _NEGLIGIBLE * np.linalg.norm(scaled):
        return np.zeros_like(left)
    return left / length


def _permuted(left: Array, right: Array, observed: float, permutations: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    strength = abs(observed) * (1 - 1e-12)  # so that the same sum in another order counts
    drawn = (abs(float(generator.permutation(left) @ right)) for _ in range(permutations))
    hits = sum(other >= strength for other in drawn)
    return (hits + 1) / (permutations + 1)


def _student(coefficient: float, freedom: int) -> float:
    r"""Two-sided p-value of a correlation: :math:`I_{1 - r^2}(\nu / 2, 1 / 2)`."""
    if freedom < 1:
        return math.nan
    return _incomplete_beta(1 - coefficient**2, freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast below
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = a * math.log(x) + b * math.log1p(-x) - math.log(a)
    log_front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(log_front) * fraction
