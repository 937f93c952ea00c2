"""Means and variances of parts, and of the whole that the parts make up."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean and variance of each of several parts of one size, per channel."""

    mean: Tensor  # [parts, channels]
    variance: Tensor  # [parts, channels], unbiased
    values: int  # per part and channel, at least 2


def pooled(moments: list[Moments]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of all values together, by the law of total variance.

    With ``n_j`` values in part ``j``, ``n`` in all: the mean is ``sum_j n_j mean_j / n``, and the
    variance ``sum_j ((n_j - 1) variance_j + n_j (mean_j - mean)^2) / (n - 1)``.

    Args:
        moments: Of parts, grouped by their number of values; at least one.

    Returns:
        Mean and variance, each of shape ``[channels]``.

    Example:
        >>> one = Moments(  # 1 and 3; 5 and 7
        ...     mean=torch.tensor([[2.0], [6.0]]), variance=torch.tensor([[2.0], [2.0]]), values=2
        ... )
        >>> mean, variance = pooled([one])  # of 1, 3, 5, 7: 20 / 3
        >>> mean.item(), round(variance.item(), 4)
        (4.0, 6.6667)
    """
    mean, variance, values = _of_one_group(moments[0])
    for part in moments[1:]:
        other_mean, other_variance, others = _of_one_group(part)
        total = values + others
        step = other_mean - mean
        squares = variance * (values - 1) + other_variance * (others - 1)
        variance = (squares + step.square() * (values * others / total)) / (total - 1)
        mean = mean + step * (others / total)
        values = total
    return mean, variance


def _of_one_group(part: Moments) -> tuple[Tensor, Tensor, int]:
    """Mean, unbiased variance and number of values of parts that are all of one size."""
    total = part.values * len(part.mean)
    mean = part.mean.sum(0) / len(part.mean)
    step = part.mean - mean
    # Few operations: on a small batch they cost more than the kernel does.
    each = torch.addcmul(part.variance, step, step, value=part.values / (part.values - 1))
    return mean, each.sum(0) * ((part.values - 1) / (total - 1)), total
