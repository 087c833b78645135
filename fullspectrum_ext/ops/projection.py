"""Probabilities with a bounded sum: the projection that ProbMask makes after each step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fullspectrum_ext import _checks

_OPERATORS = torch.ops.fullspectrum


def project_scores_(scores: Sequence[Tensor], budget: float) -> Tensor:
    r"""Project the scores of several tensors on the probabilities with a bounded sum, in place.

    The nearest point of :math:`\{s : 0 \le s \le 1,\ \sum_i s_i \le K\}`, over all tensors
    together, is

    .. math:: s_i = \operatorname{clip}(z_i - v, 0, 1)

    with the least :math:`v \ge 0` for which the sum is at most :math:`K`. No tolerance is involved:
    the sum falls along straight lines between the kinks :math:`z_i` and :math:`z_i - 1`, and the
    kinks around :math:`v` are found by selection. Sums are kept in float64, so that :math:`v` is
    exact up to their rounding. On the CPU the scores are read once and written once, and the result
    is the same at any number of threads.

    Args:
        scores: Tensors of any shapes, float32 or float64, contiguous, all of one dtype and device.
            They are changed; derivatives are not recorded. Where one score is NaN or infinite,
            there is no projection, and all of them become NaN.
        budget: The largest sum, :math:`K \ge 0`.

    Returns:
        The threshold :math:`v`, float64, no dimensions, on the device of the scores.

    Raises:
        TypeError: If an argument has a wrong type or the scores differ in dtype.
        ValueError: If the scores are not contiguous, devices differ, or the budget is negative or
            not finite.

    References:
        Zhou, Zhang, Xu, Zhang: Effective Sparsification of Neural Networks with Global Sparsity
        Constraint, CVPR 2021, https://arxiv.org/abs/2105.01571.

    Example:
        >>> scores = [torch.tensor([1.5, 0.75]), torch.tensor([0.25, -1.0])]
        >>> project_scores_(scores, 1.5)
        tensor(0.2500, dtype=torch.float64)
        >>> scores
        [tensor([1.0000, 0.5000]), tensor([0., 0.])]
    """
    if isinstance(scores, Tensor):
        raise TypeError("scores: expected a list of tensors, got one tensor")
    tensors = list(scores)
    for tensor in tensors:
        _checks.check_tensor("scores", tensor)
        if tensor.dtype not in {torch.float32, torch.float64}:
            raise TypeError(f"scores: expected float32 or float64, got {tensor.dtype}")
        _checks.check_same("scores", tensor, "scores", tensors[0])
        if not tensor.is_contiguous():
            raise ValueError("scores: expected contiguous tensors")
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise TypeError(f"budget: expected a number, got {type(budget).__name__}")
    if not 0 <= budget < math.inf:
        raise ValueError(f"budget: expected a finite number of at least 0, got {budget}")
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    return _OPERATORS.project_scores_.default([tensor.detach() for tensor in tensors], budget)


@torch.library.register_fake("fullspectrum::project_scores_")
def _fake_project(scores: list[Tensor], budget: float) -> Tensor:
    return scores[0].new_empty((), dtype=torch.float64)
