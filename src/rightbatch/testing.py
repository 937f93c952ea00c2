"""Doubles for tests of code that measures: a clock, a memory, and a task with known answers."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from rightbatch.hardware.search import ProbeOutcome
from rightbatch.task import Task


@final
class FakeClock:
    """A clock that stands still until it is told to go on.

    Example:
        >>> clock = FakeClock()
        >>> clock.advance(2.5)
        >>> clock()
        2.5
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def __call__(self) -> float:
        """Return the seconds that have passed."""
        return self._seconds

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Args:
            seconds: Not negative.

        Raises:
            ValueError: If time would run backwards.
        """
        if not seconds >= 0:
            raise ValueError(
                f"`seconds` must not be negative, got {seconds!r}. A clock never runs backwards."
            )
        self._seconds += seconds


@final
class FakeMemory:
    """A device whose peak memory is the largest of a few lines in the batch size.

    Call it as a probe of `rightbatch.hardware.search.search`.

    Args:
        pieces: ``(fixed_bytes, bytes_per_example)`` of each line; their maximum is the peak.
        limit_bytes: A larger peak is out of memory.

    Attributes:
        calls: The batch sizes that were tried, in order.

    Example:
        >>> memory = FakeMemory([(100, 1), (0, 4)], limit_bytes=400)
        >>> memory.peak_bytes(10), memory.peak_bytes(50)
        (110, 200)
        >>> memory(50).outcome, memory(101).outcome, memory.calls
        ('ok', 'oom', [50, 101])
        >>> memory.largest_batch_size(budget_bytes=300)
        75
    """

    def __init__(self, pieces: Sequence[tuple[int, int]], *, limit_bytes: int) -> None:
        self._pieces, self._limit_bytes = tuple(pieces), limit_bytes
        self.calls: list[int] = []

    def __call__(self, batch_size: int) -> ProbeOutcome:
        """Try a size: ``"ok"`` with its peak, or ``"oom"``."""
        self.calls.append(batch_size)
        peak = self.peak_bytes(batch_size)
        return ProbeOutcome("ok", peak) if peak <= self._limit_bytes else ProbeOutcome("oom", None)

    def peak_bytes(self, batch_size: int) -> int:
        """Return what a step at this size needs, also where that is more than there is."""
        return max(fixed + slope * batch_size for fixed, slope in self._pieces)

    def largest_batch_size(self, *, budget_bytes: int) -> int | None:
        """Return the true answer: the largest size within the budget and the limit, if bounded."""
        allowed = min(budget_bytes, self._limit_bytes)
        largest = [(allowed - fixed) // slope for fixed, slope in self._pieces if slope > 0]
        if any(fixed > allowed for fixed, _ in self._pieces):
            return 0
        return min(largest, default=None)


@final
class QuadraticTask:
    r"""A real task whose gradient noise is known in closed form.

    Example ``i`` has the loss ``0.5 |theta - x_i|^2``, so its gradient is ``theta - x_i``:
    ``|G|^2 = |theta - mean(x)|^2`` and ``tr(Sigma) = mean |x_i - mean(x)|^2``, whatever the
    batch size. Gradient descent at the rate ``r`` diverges at ``r > 2``.

    The data are shifted and scaled so that both hold exactly, up to rounding, at the start
    and for the finite data set, with ``1/examples`` in the mean. Drawing without replacement
    estimates the same with ``1/(examples - 1)``.

    Args:
        grad_sq: ``|G|^2`` at the start.
        trace_cov: ``tr(Sigma)``, per example.
        examples: In the data set, at least 2.
        dimension: Of the only parameter, ``task.model.theta``.
        batch_size: What the task is said to train with today.
        learning_rate: Of plain gradient descent.
        seed: Of the data.

    Attributes:
        task: The `Task`.
        points: The data set, ``[examples, dimension]``.
        grad_sq: As given.
        trace_cov: As given.

    Example:
        >>> quadratic = QuadraticTask(grad_sq=2.0, trace_cov=50.0)
        >>> quadratic.noise_scale
        25.0
        >>> gradients = quadratic.task.model.theta.detach() - quadratic.points
        >>> round(gradients.mean(0).square().sum().item(), 4)
        2.0
        >>> round(gradients.var(0, unbiased=False).sum().item(), 4)
        50.0
    """

    def __init__(
        self,
        *,
        grad_sq: float = 1.0,
        trace_cov: float = 16.0,
        examples: int = 256,
        dimension: int = 8,
        batch_size: int | None = None,
        learning_rate: float = 0.1,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        spread = torch.randn(examples, dimension, generator=generator)
        spread -= spread.mean(0)
        spread *= (trace_cov / spread.square().sum(1).mean()).sqrt()
        self.points: Tensor = spread + (grad_sq / dimension) ** 0.5
        self.grad_sq, self.trace_cov = grad_sq, trace_cov
        model = _Quadratic(dimension)
        self.task = Task(
            model,
            torch.optim.SGD(model.parameters(), lr=learning_rate),
            self.points,
            _mean_over_examples,
            batch_size=batch_size,
            name="quadratic",
        )

    @property
    def noise_scale(self) -> float:
        """``tr(Sigma) / |G|^2``, in examples."""
        return self.trace_cov / self.grad_sq


@final
class _Quadratic(nn.Module):
    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(dimension))

    def forward(self, points: Tensor) -> Tensor:
        return 0.5 * (self.theta - points).square().sum(1)


def _mean_over_examples(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).mean()
