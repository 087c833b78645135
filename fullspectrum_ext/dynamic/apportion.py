"""How a number of weights is spread over layers."""

import math
from collections.abc import Sequence

from fullspectrum_ext.pruning.densities import whole_counts


def apportion(total: int, shares: Sequence[float], most: Sequence[int]) -> list[int]:
    """Spread a number over places in proportion to shares, exactly, and no place above its most.

    What a full place cannot take goes to the others, in proportion again. Fractions are rounded
    down, and what is then missing goes, one each, to those that lost the largest (the earlier of
    equal ones).

    Args:
        total: What to spread; at most the sum of ``most``.
        shares: Not negative; where those of all free places are 0, these count alike.
        most: What each place can take.

    Returns:
        Numbers that add up to ``total``.

    Raises:
        ValueError: If there is not so much room.

    Example:
        >>> apportion(10, [1.0, 1.0, 2.0], [9, 1, 9])
        [3, 1, 6]
    """
    if total > sum(most):
        raise ValueError(f"total: expected at most {sum(most)}, got {total}")
    counts = [0] * len(shares)
    free = [i for i in range(len(shares)) if most[i]]
    while True:
        left = total - sum(counts[i] for i in range(len(counts)) if i not in free)
        sum_free = math.fsum(shares[i] for i in free)
        exact = {i: left * (shares[i] / sum_free if sum_free > 0 else 1 / len(free)) for i in free}
        full = [i for i in free if exact[i] >= most[i]]
        if not full:
            break
        for i in full:
            counts[i] = most[i]
            free.remove(i)
    whole = whole_counts([exact[i] for i in free], [most[i] for i in free], total - sum(counts))
    for i, count in zip(free, whole, strict=True):
        counts[i] = count
    return counts
