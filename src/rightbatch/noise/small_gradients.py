"""Where a running loop's small gradients come from: whatever the set-up offers.

    micro_batches   at least two per step: a hook squares each gradient before it is accumulated
    ranks           at least two: the same hook, and the parts are summed over ranks
    examples        one micro-batch on one rank: norms of the first few examples' gradients
    extra_pass      as `examples`, for models that these rules cannot see through: the first
                    few examples once more, forward and backward, with everything put back

Each is armed for one step at a time and leaves the step bit for bit as it was.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch.errors import TaskError
from rightbatch.noise.local_gradients import hooked_gradients
from rightbatch.noise.per_example import example_squares
from rightbatch.noise.precision import widened
from rightbatch.noise.squares import Squares
from rightbatch.task.data import first_examples
from rightbatch.task.world import preserved

Loss = Callable[[nn.Module, Any], Tensor]
Units = float | Sequence[float] | Tensor


@final
@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one backward pass left behind; tensors stay on the device until they are summed."""

    units: float  # w_k
    factor: float  # f_k: the loss that was differentiated, over the mean loss
    examples: float
    small_count: int  # small gradients in it: 1, or the single examples that were looked at
    small_units: float  # units in these
    weighted_squares: Tensor  # sum of w |g|^2 over these, [parameters, metrics]


@final
class Reported:
    """What the loop says of one backward pass."""

    def __init__(self, units: Units, factor: float, examples: int | None, batch: Any) -> None:
        self.factor, self.batch = factor, batch
        if isinstance(units, int | float):
            self.units, self.each = float(units), None
            self.examples = float(units if examples is None else examples)
        else:
            self.each = [float(u) for u in units]
            self.units, self.examples = sum(self.each), float(len(self.each))
        if not (self.units > 0 and math.isfinite(self.units) and factor > 0 and factor < math.inf):
            raise ValueError(
                f"`units` and `factor` must be positive and finite, got units={self.units!r}, "
                f"factor={factor!r}. They say what the loss ran over and was multiplied by."
            )

    def units_of_first(self, count: int) -> list[float]:
        """Return the units of the first examples."""
        if self.each is not None:
            return self.each[:count]
        if self.units != self.examples:
            raise TaskError(
                f"`units` must be given for each example where single examples are measured, got "
                f"one number, {self.units!r}, for {self.examples:.0f} examples. Their gradients "
                "are weighed by their own tokens: pass a tensor of counts, one per example."
            )
        return [1.0] * count


class Source(Protocol):
    """One way to small gradients."""

    uncovered: Sequence[int]  # parameters whose small gradients could not be seen

    def armed(self) -> AbstractContextManager[None]:
        """Watch one step, in a ``with`` block."""
        ...

    def take(self, reported: Reported) -> MicroBatch:
        """Say what the backward pass that just ended left behind."""
        ...


@final
class WholeMicroBatches:
    """Squares each micro-batch's gradient before it is accumulated or reduced."""

    uncovered: Sequence[int] = ()

    def __init__(self, model: nn.Module, squares: Squares) -> None:
        self._model, self._squares = model, squares

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Hook every parameter."""

        def hook(index: int, gradient: Tensor) -> None:
            self._squares.take(index, gradient, None)

        with hooked_gradients(self._model, self._squares.parameters, hook):
            yield

    def take(self, reported: Reported) -> MicroBatch:
        """Weigh the whole micro-batch."""
        weighted = self._squares.squares * (reported.units / reported.factor**2)
        self._squares.clear()
        return MicroBatch(
            units=reported.units,
            factor=reported.factor,
            examples=reported.examples,
            small_count=1,
            small_units=reported.units,
            weighted_squares=weighted,
        )


@final
class SingleExamples:
    """Squares the gradients of the first examples of a batch by the rules of `per_example`."""

    def __init__(
        self, model: nn.Module, squares: Squares, *, examples: int, batch_size: int
    ) -> None:
        self._model, self._squares = model, squares
        self._examples, self._batch_size = min(examples, batch_size), batch_size
        self.uncovered: Sequence[int] = ()
        self._taken = False

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Watch forward and backward."""
        with example_squares(
            self._model,
            self._squares.parameters,
            examples=self._examples,
            batch_size=self._batch_size,
            metrics=self._squares.metrics,
        ) as self._watched:
            yield

    def take(self, reported: Reported) -> MicroBatch:
        """Scale contributions to the batch's loss up to gradients of mean losses."""
        # An epoch's last batch, or a step begun anew after one that was skipped: leave it out.
        if reported.examples != self._batch_size or self._taken:
            return self._weighed(reported, [1.0], torch.full_like(self._squares.squares, math.nan))
        self._taken = True
        self.uncovered = self._watched.uncovered()
        units = reported.units_of_first(self._examples)
        contributions = self._watched.squares()  # [metrics, examples, parameters]
        scale = reported.units / reported.factor
        wide = widened(contributions)
        each = wide.new_tensor([scale**2 / u for u in units])
        weighted = (wide * each[:, None]).sum(1).T
        weighted[self.uncovered] = 0.0
        return self._weighed(reported, units, weighted)

    def _weighed(self, reported: Reported, units: list[float], weighted: Tensor) -> MicroBatch:
        return MicroBatch(
            units=reported.units,
            factor=reported.factor,
            examples=reported.examples,
            small_count=len(units),
            small_units=sum(units),
            weighted_squares=weighted,
        )


@final
class ExtraPass:
    """Differentiates the first examples of the batch once more, on their own."""

    uncovered: Sequence[int] = ()

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, squares: Squares, loss: Loss, *, examples: int
    ) -> None:
        self._model, self._optimizer, self._squares = model, optimizer, squares
        self._loss, self._examples = loss, examples

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Nothing to watch: all is done after the backward pass."""
        yield

    def take(self, reported: Reported) -> MicroBatch:
        """Take the small gradient of a part of the batch."""
        if reported.batch is None:
            raise TaskError(
                "`observe` must be given `batch=` where the monitor was given `loss=`, got none. "
                "The first examples of the batch are differentiated once more: pass the batch."
            )
        units = sum(reported.units_of_first(self._examples))
        part = first_examples(reported.batch, self._examples)
        with preserved(self._model, self._optimizer, weights=False), torch.enable_grad():
            loss = self._loss(self._model, part)
            gradients = torch.autograd.grad(loss, self._squares.parameters, allow_unused=True)
            for index, gradient in enumerate(gradients):
                if gradient is not None:
                    self._squares.take(index, gradient, None)
        weighted = self._squares.squares * units
        self._squares.clear()
        return MicroBatch(
            units=reported.units,
            factor=reported.factor,
            examples=reported.examples,
            small_count=1,
            small_units=units,
            weighted_squares=weighted,
        )
