r"""The formulas of a layer's graph: gaps, bounds and factors, on plain numbers.

A layer is a bipartite graph: input taps on the left, outputs on the right, an edge for every weight
that is kept. Its adjacency matrix has the eigenvalues :math:`\pm\sigma_i` of the layer's matrix:
:math:`\sigma_1` is the trivial, :math:`\sigma_2` the largest nontrivial one. Degrees are averages
over the taps and outputs that have an edge.
"""

import math


def ramanujan_bound(left_degree: float, right_degree: float) -> float:
    r"""Return :math:`\sqrt{d_L - 1} + \sqrt{d_R - 1}`, what a random biregular graph stays below.

    Args:
        left_degree: Mean degree of the taps, at least 1.
        right_degree: Mean degree of the outputs, at least 1.

    Returns:
        The bound.

    References:
        Feng, Li: Spectra of Hypergraphs and Applications, Journal of Number Theory 60, 1996.
    """
    return math.sqrt(left_degree - 1) + math.sqrt(right_degree - 1)


def delta_r(left_degree: float, right_degree: float, sigma2: float) -> float:
    r"""Return the Ramanujan gap :math:`\sqrt{d_L - 1} + \sqrt{d_R - 1} - \sigma_2`.

    It is not negative for a Ramanujan graph: one whose nontrivial eigenvalues are as small as those
    of a random biregular graph.

    Args:
        left_degree: Mean degree of the taps, at least 1.
        right_degree: Mean degree of the outputs, at least 1.
        sigma2: Second singular value of the 0/1 matrix.

    Returns:
        The gap.

    References:
        Hoang et al.: Revisiting Pruning at Initialization through the Lens of Ramanujan Graph,
        ICLR 2023, definition of :math:`\Delta_R`.

    Example:
        >>> round(delta_r(3, 3, 0), 4)  # the complete graph K_{3,3}
        2.8284
    """
    return ramanujan_bound(left_degree, right_degree) - sigma2


def delta_s(sigma1: float, sigma2: float) -> float:
    r"""Return the gap :math:`2\sqrt{\sigma_1 - 1} - \sigma_2`; nan where :math:`\sigma_1 < 1`.

    Args:
        sigma1: First singular value of the 0/1 matrix, which stands for the degree.
        sigma2: Second one.

    Returns:
        The gap.

    References:
        Hoang et al., ICLR 2023, definition of :math:`\Delta_S`.
    """
    return 2 * math.sqrt(sigma1 - 1) - sigma2 if sigma1 >= 1 else math.nan


def narc(
    sigma2: float,
    edges: int,
    live_taps: int,
    live_outputs: int,
    shape: tuple[int, int],
    *,
    directed: bool = True,
) -> float:
    r"""Return the normalised random coefficient of a layer.

    .. math::
        \frac{(\sigma_2^2 / 4 + 1) \sqrt{|L||R|} - |E - d_L |L||R| / n_{out}|}{n_{in} n_{out}}

    Args:
        sigma2: Second singular value of the 0/1 matrix.
        edges: Number of edges.
        live_taps: Taps with an edge, :math:`|L|`.
        live_outputs: Outputs with an edge, :math:`|R|`.
        shape: Outputs and taps of the layer, with and without edges.
        directed: Count every edge in both directions, :math:`E = 2e`, as the authors' code does.
            False is the form of the expander mixing lemma, :math:`E = e`.

    Returns:
        The coefficient; nan for a graph without edges.

    References:
        Hoang et al., ICLR 2023 (NaRC), and the code published with it.
    """
    if edges == 0:
        return math.nan
    rows, cols = shape
    pairs = live_taps * live_outputs
    counted = 2 * edges if directed else edges
    expected = edges / live_taps / rows * pairs
    return ((sigma2**2 / 4 + 1) * math.sqrt(pairs) - abs(counted - expected)) / (rows * cols)


def expander_mixing(sigma2: float, edges: int, live_taps: int, live_outputs: int) -> float:
    r"""Return by how much a layer's edge count stays within the expander mixing lemma's reach.

    .. math:: \frac{\sigma_2 \sqrt{|L||R|} - |2e - d_L |L||R| / N|}{N}, \quad N = |L| + |R|

    Args:
        sigma2: Second singular value of the 0/1 matrix.
        edges: Number of edges, :math:`e`.
        live_taps: Taps with an edge, :math:`|L|`.
        live_outputs: Outputs with an edge, :math:`|R|`.

    Returns:
        The quantity; nan for a graph without edges.

    References:
        Hoang et al., NeurIPS 2023, the authors' public research code, which logs it.
    """
    if edges == 0:
        return math.nan
    nodes = live_taps + live_outputs
    expected = edges * live_outputs / nodes  # d_L |L| = e
    return (sigma2 * math.sqrt(live_taps * live_outputs) - abs(2 * edges - expected)) / nodes


def cheeger_factor(taps: int, live_outputs: int) -> float:
    r"""Return :math:`\max(|L|, |R|) / (|L| + |R| - 1)`, which weighs a subgraph by its shape.

    Args:
        taps: Taps of the subgraph, :math:`|L|`.
        live_outputs: Outputs that it touches, :math:`|R|`.

    Returns:
        A number in (1/2, 1].
    """
    return max(taps, live_outputs) / (taps + live_outputs - 1)
