r"""Four published ways to measure the noise scale on one device, as they were described.

All see the gradient ``g_k`` of one training batch of ``B`` examples after the other, as one flat
tensor. With ``G`` the true gradient and ``Sigma`` the covariance of one example's gradient,
``E|g_k|^2 = |G|^2 + tr(Sigma)/B`` at fixed weights.

    (a) MovingAverages     EMA(g^2) - EMA(g)^2, summed, against |EMA(g)|^2
    (b) stored_gradients   the variance of N stored gradients, against |mean|^2
    (c) TwoRuns            |g|^2 at B in one run, at 2B in another, two equations
    (d) ConsecutiveBatches |last of n|^2 and |mean of n|^2 while training goes on, two equations

They are kept with their flaws; what those are is said where they are. A study compares them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Both parts of a noise scale, as a way estimates them: not always unbiased."""

    grad_sq: float  # |G|^2
    trace_cov: float  # tr(Sigma) of one example

    @property
    def noise_scale(self) -> float | None:
        """Their ratio in examples; ``None`` where a part is not positive: there is no answer.

        Example:
            >>> Parts(grad_sq=2.0, trace_cov=50.0).noise_scale
            25.0
            >>> Parts(grad_sq=-2.0, trace_cov=50.0).noise_scale is None
            True
        """
        if self.grad_sq > 0 and self.trace_cov > 0:
            return self.trace_cov / self.grad_sq
        return None


def mean_parts(found: Sequence[Parts]) -> Parts:
    """Average each part by itself; their ratio comes last.

    Example:
        >>> mean_parts([Parts(grad_sq=1.0, trace_cov=2.0), Parts(grad_sq=3.0, trace_cov=2.0)])
        Parts(grad_sq=2.0, trace_cov=2.0)
    """
    return Parts(
        grad_sq=fmean(parts.grad_sq for parts in found),
        trace_cov=fmean(parts.trace_cov for parts in found),
    )


def from_two_sizes(*, small_sq: float, big_sq: float, small: int, big: int) -> Parts:
    r"""Solve ``E|g_b|^2 = |G|^2 + tr(Sigma)/b`` at two batch sizes for its two unknowns.

    Args:
        small_sq: ``|g|^2`` at ``small`` examples.
        big_sq: ``|g|^2`` at ``big`` examples, more than ``small``.
        small: Examples.
        big: Examples.

    Example:
        ``|G|^2 = 1`` and ``tr(Sigma) = 2`` give squares of 3 at one example, 1.5 at four.

        >>> from_two_sizes(small_sq=3.0, big_sq=1.5, small=1, big=4)
        Parts(grad_sq=1.0, trace_cov=2.0)

    References:
        McCandlish et al. (2018), https://arxiv.org/abs/1812.06162, Appendix A.1.
    """
    return Parts(
        grad_sq=(big * big_sq - small * small_sq) / (big - small),
        trace_cov=(small_sq - big_sq) / (1 / small - 1 / big),
    )


@final
class MovingAverages:
    r"""Way (a): a moving average of squares, minus the square of a moving average.

    Coordinate by coordinate, ``EMA(g^2) - EMA(g)^2`` is taken for the variance of a batch
    gradient; its sum times ``B`` for ``tr(Sigma)``, and ``|EMA(g)|^2`` for ``|G|^2``. Both
    averages are divided by the sum of their weights.

    Flaws kept: the weights move inside the window, and the average's own noise counts as
    gradient. With one decay for both, the difference is a weighted variance and cannot be
    negative; with two, as Adam keeps them, it can.

    Args:
        batch_size: ``B``.
        mean_decay: Of the average of ``g``, in [0, 1).
        square_decay: Of the average of ``g^2``; the same by default.

    Example:
        Gradients 1 and 3 with decay 0.5 have weights 1/3 and 2/3: mean 7/3, mean square 19/3.

        >>> way = MovingAverages(9, mean_decay=0.5)
        >>> way.see(torch.tensor([1.0])), way.see(torch.tensor([3.0]))
        (None, None)
        >>> parts = way.parts()
        >>> round(parts.grad_sq, 4), round(parts.trace_cov, 4)  # 49/9 and 9 (19/3 - 49/9)
        (5.4444, 8.0)
    """

    def __init__(
        self, batch_size: int, *, mean_decay: float, square_decay: float | None = None
    ) -> None:
        self._batch_size = batch_size
        self._decays = (mean_decay, mean_decay if square_decay is None else square_decay)
        self._averages: tuple[Tensor, Tensor] | None = None
        self._weights = [0.0, 0.0]

    @property
    def tensors_kept(self) -> int:
        """Tensors of the size of all parameters, held between two steps."""
        return 2 if self._averages is not None else 0

    def see(self, gradient: Tensor) -> None:
        """Take in one batch's gradient, a flat tensor."""
        if self._averages is None:
            self._averages = (torch.zeros_like(gradient), torch.zeros_like(gradient))
        for i, value in enumerate((gradient, gradient.square())):
            self._averages[i].lerp_(value, 1 - self._decays[i])
            self._weights[i] += (1 - self._decays[i]) * (1 - self._weights[i])

    def parts(self) -> Parts | None:
        """Return the estimate, ``None`` before the first gradient."""
        if self._averages is None:
            return None
        mean, square = (a / w for a, w in zip(self._averages, self._weights, strict=True))
        variance = (square - mean.square()).sum().item()
        return Parts(grad_sq=mean.square().sum().item(), trace_cov=self._batch_size * variance)


def stored_gradients(gradients: Tensor, *, batch_size: int, corrected: bool = False) -> Parts:
    r"""Way (b): keep the gradients of N batches and take their mean and variance.

    Flaw kept: the squared mean still holds ``tr(Sigma)/(N B)`` of noise, so that the noise scale
    comes out near ``N B`` at most, however large it is. ``corrected`` takes that off.

    Args:
        gradients: ``[N, parameters]``, N at least 2, all at the same weights.
        batch_size: Examples behind each.
        corrected: Whether to take the mean's own noise off its square.

    Example:
        Gradients 1 and 3 of 9 examples each: mean 2, variance 2.

        >>> stored_gradients(torch.tensor([[1.0], [3.0]]), batch_size=9)
        Parts(grad_sq=4.0, trace_cov=18.0)
        >>> stored_gradients(torch.tensor([[1.0], [3.0]]), batch_size=9, corrected=True).grad_sq
        3.0
    """
    trace_cov = batch_size * gradients.var(0).sum().item()
    grad_sq = gradients.mean(0).square().sum().item()
    if corrected:
        grad_sq -= trace_cov / (len(gradients) * batch_size)
    return Parts(grad_sq=grad_sq, trace_cov=trace_cov)


@final
class MovingSquare:
    """A moving average of ``|g|^2`` alone: what each of the two runs of way (c) keeps.

    Args:
        decay: In [0, 1).

    Example:
        >>> average = MovingSquare(0.5)
        >>> average.see(torch.tensor([1.0])), average.see(torch.tensor([2.0]))
        (None, None)
        >>> average.value  # weights 1/3 and 2/3 of the squares 1 and 4
        3.0
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._average, self._weight = 0.0, 0.0

    def see(self, gradient: Tensor) -> None:
        """Take in one batch's gradient, a flat tensor."""
        fresh = 1 - self._decay
        self._average += fresh * (gradient.square().sum().item() - self._average)
        self._weight += fresh * (1 - self._weight)

    @property
    def value(self) -> float | None:
        """The average over the sum of its weights, ``None`` before the first gradient."""
        return self._average / self._weight if self._weight > 0 else None


@final
class ConsecutiveBatches:
    r"""Way (d): every n batches, the last one's gradient is the small one, their mean the big one.

    Two equations for the squares at ``B`` and ``n B`` give both parts; each goes into a moving
    average that is divided by the sum of its weights, and the ratio comes last.

    Flaws kept: the optimizer steps between the n gradients, so that they belong to different
    weights (the mean of n is then not a gradient at any one of them), and of the n small
    gradients only one is used. What cancels in the ratio is left out: the first public version
    divided by ``1 - decay^batches`` where ``1 - decay^groups`` was right.

    Args:
        batch_size: ``B``.
        group: n, at least 2.
        decay: Of both moving averages, from group to group.

    Example:
        Gradients 1 and 3, ``B = 1``, n = 2: the small square is 9, the big one 4.

        >>> way = ConsecutiveBatches(1, group=2, decay=0.99)
        >>> way.see(torch.tensor([1.0])), way.see(torch.tensor([3.0]))
        (None, None)
        >>> parts = way.parts()
        >>> round(parts.grad_sq, 6), round(parts.trace_cov, 6)
        (-1.0, 10.0)
    """

    def __init__(self, batch_size: int, *, group: int, decay: float) -> None:
        self._batch_size, self._group, self._decay = batch_size, group, decay
        self._stored: list[Tensor] = []
        self._grad_sq, self._trace_cov, self._weight = 0.0, 0.0, 0.0

    @property
    def tensors_kept(self) -> int:
        """Tensors of the size of all parameters, held when a group is complete."""
        return self._group

    def see(self, gradient: Tensor) -> None:
        """Take in one batch's gradient, a flat tensor that must not change afterwards."""
        self._stored.append(gradient)
        if len(self._stored) < self._group:
            return
        found = group_parts(torch.stack(self._stored), batch_size=self._batch_size)
        self._stored = []
        fresh = 1 - self._decay
        self._grad_sq += fresh * (found.grad_sq - self._grad_sq)
        self._trace_cov += fresh * (found.trace_cov - self._trace_cov)
        self._weight += fresh * (1 - self._weight)

    def parts(self) -> Parts | None:
        """Return the estimate, ``None`` before the first group is complete."""
        if self._weight == 0:
            return None
        return Parts(grad_sq=self._grad_sq / self._weight, trace_cov=self._trace_cov / self._weight)


def group_parts(gradients: Tensor, *, batch_size: int) -> Parts:
    """Return what one group of way (d) tells: its last gradient against the mean of all.

    Args:
        gradients: ``[n, parameters]``, n at least 2.
        batch_size: Examples behind each.
    """
    return from_two_sizes(
        small_sq=gradients[-1].square().sum().item(),
        big_sq=gradients.mean(0).square().sum().item(),
        small=batch_size,
        big=len(gradients) * batch_size,
    )
