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
    total = sum(part.values * len(part.mean) for part in moments)
    means = [part.mean.sum(0) * (part.values / total) for part in moments]
    mean = torch.stack(means).sum(0)
    squares = [
        part.variance.sum(0) * (part.values - 1) + (part.mean - mean).square().sum(0) * part.values
        for part in moments
    ]
    return mean, torch.stack(squares).sum(0) / (total - 1)
