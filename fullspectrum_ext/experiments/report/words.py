"""Numbers in words, the same all over a report."""

import math
import statistics
from collections.abc import Sequence

from fullspectrum_ext.experiments.report.content import Cell
from fullspectrum_ext.experiments.report.statistics import Association, spread

NOTHING = Cell("–")


def mean_cell(values: Sequence[float], digits: int = 2, *, usual: int = 0) -> Cell:
    """Mean and standard deviation, with the number of values where it is not the usual one."""
    if not values:
        return NOTHING
    found = spread(values)
    text = f"{found.mean:.{digits}f}"
    if found.n > 1:
        text += f" ± {found.deviation:.{digits}f}"
    return Cell(text, found.mean, "" if found.n == usual else f"n = {found.n}")


def median_cell(values: Sequence[float]) -> Cell:
    """Median, and the quartiles of four values and more, else the ends."""
    if not values:
        return NOTHING
    middle = statistics.median(values)
    low, high = min(values), max(values)
    if len(values) > 3:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    ends = short(low), short(high)
    note = "" if ends[0] == ends[1] else " to ".join(ends)
    return Cell(short(middle), middle, note)


def short(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def signed_cell(value: float, digits: int = 2) -> Cell:
    """A difference."""
    return NOTHING if math.isnan(value) else Cell(f"{signed(value, digits)}", value)


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, which zero has not."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def interval(low: float, high: float, digits: int = 2) -> str:
    """An interval; of none, nothing."""
    return "" if math.isnan(low) else f"[{signed(low, digits)}, {signed(high, digits)}]"


def p_cell(p_value: float) -> Cell:
    """A p-value."""
    return NOTHING if math.isnan(p_value) else Cell(p_words(p_value), p_value)


def p_words(p_value: float) -> str:
    """A p-value of three decimals."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def association_cell(found: Association) -> Cell:
    """A correlation with its interval."""
    if math.isnan(found.coefficient):
        return NOTHING
    return Cell(signed(found.coefficient), found.coefficient, interval(found.low, found.high))


def usual_count(counts: Sequence[int]) -> int:
    """The commonest count; the larger one of two as common, 0 of none."""
    return max(set(counts), key=lambda count: (counts.count(count), count), default=0)


def many(number: int, noun: str, plural: str = "") -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listed(items: Sequence[str], most: int = 12) -> str:
    """Items with commas between, the first ones of many."""
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
