"""Measure the noise scale at frozen weights, without storing a gradient.

    shuffle -> micro-batch 1 -> micro-batch 2 -> ... -> micro-batch K
               backward         backward
               hook: q_1        hook: q_2, <g_2, sum so far>
               .grad = g_1      .grad = g_1 + g_2    ->    M = |.grad / W|^2

A tensor hook sees each gradient just before PyTorch adds it to ``.grad``, which at that moment
is the sum of all gradients before. Everything the estimate needs is a scalar product of the two.
The probe is sequential: a pilot tells how many examples the asked precision needs.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from rightbatch._time import Clock, Deadline, Progress, no_progress, wall_clock
from rightbatch.errors import TaskError
from rightbatch.noise.estimators import NoiseEstimate, estimate_noise
from rightbatch.results import NoiseScale, Status
from rightbatch.task import Task
from rightbatch.task.data import examples_in
from rightbatch.task.preflight import mixes_examples

_MICRO_BATCHES = 128  # aimed at; more would sharpen the interval's own error only
_PILOT = 32  # micro-batches before the first look
_GROWTH = 1.5  # at most this factor more examples between two looks
_CHUNK = 1 << 16  # elements upcast at a time, so that no gradient-sized copy exists


def measure_noise(
    task: Task,
    *,
    precision: float | None = 0.2,
    max_examples: int = 8192,
    micro_batch_size: int | None = None,
    time_budget_seconds: float | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    clock: Clock = wall_clock,
) -> NoiseScale:
    r"""Measure the gradient noise scale ``tr(Sigma)/|G|^2`` at the present weights.

    Traps: near the start of training it is small and grows as the loss falls, so one
    number at initialisation under-states what a run needs: see `track_noise`. With BatchNorm in
    train mode the smallest unit is the micro-batch, and the answer is that of its size.

    Args:
        task: What to measure; left bit for bit as it was.
        precision: Stop when the 95 % interval's half-width falls below this share of the
            value. ``None``: use ``max_examples`` whatever they tell.
        max_examples: Draw at most so many (and at most one epoch of a finite data set).
        micro_batch_size: Examples per small gradient. Default: today's batch size, or smaller
            where that leaves fewer than 128 micro-batches.
        time_budget_seconds: Stop when it is spent.
        seed: Of the draw.
        progress: Called with (fraction done, what is being done).
        clock: Monotonic seconds.

    Returns:
        The noise scale in examples, its interval, both parts, and what they are worth.
        ``high`` is ``None`` where the squared gradient may be zero.

    Raises:
        ValueError: If an option is out of range.
        TaskError: If the data hold too few examples for three micro-batches, or a gradient
            is not finite.

    Example:
        >>> from rightbatch.testing import QuadraticTask
        >>> quadratic = QuadraticTask(grad_sq=2.0, trace_cov=50.0, examples=48)
        >>> noise = measure_noise(quadratic.task, precision=None)  # the whole data set: exact
        >>> round(noise.grad_sq, 4)
        2.0

    References:
        McCandlish et al. (2018), https://arxiv.org/abs/1812.06162, section 2.2.
    """
    check_probe_options(precision, max_examples, micro_batch_size, time_budget_seconds)
    task.check()
    deadline = Deadline(math.inf if time_budget_seconds is None else time_budget_seconds, clock)
    with task.preserved(weights=False):
        estimate, record = run_probe(
            task,
            precision=precision,
            max_examples=max_examples,
            micro_batch_size=micro_batch_size,
            deadline=deadline,
            seed=seed,
            progress=progress,
        )
    return _as_noise_scale(estimate, record, precision, out_of_time=deadline.passed())


def check_probe_options(
    precision: float | None,
    max_examples: int,
    micro_batch_size: int | None,
    time_budget_seconds: float | None,
) -> None:
    """Refuse options that no probe can be run with.

    Raises:
        ValueError: If one is out of range; the message names it.
    """
    for name, value, why in (
        ("precision", precision, "It is the interval's half-width over the value, such as 0.2."),
        ("max_examples", max_examples, "Thousands make a narrow interval."),
        ("micro_batch_size", micro_batch_size, "Leave it out for a good choice."),
        ("time_budget_seconds", time_budget_seconds, "Leave it out for no limit."),
    ):
        if value is not None and not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value!r}. {why}")


@final
@dataclass(slots=True)
class Record:
    """Three floats of every micro-batch, and its loss."""

    micro_batch_size: int
    squares: list[float] = field(default_factory=list)
    inner_products: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    examples: int = 0

    @property
    def loss(self) -> float:
        """Mean loss over all units seen."""
        return float(np.average(self.losses, weights=self.weights))

    @property
    def units_per_example(self) -> float:
        """Mean units per example: 1, or the tokens of a sequence."""
        return sum(self.weights) / self.examples


def run_probe(
    task: Task,
    *,
    precision: float | None,
    max_examples: int,
    micro_batch_size: int | None,
    deadline: Deadline,
    seed: int,
    progress: Progress = no_progress,
) -> tuple[NoiseEstimate, Record]:
    """Run the sequential probe; the caller preserves the world. See `measure_noise`.

    Returns:
        The estimate in *examples* (units are converted by their mean number per example),
        and the record.
    """
    available = min(max_examples, task.num_examples or max_examples)
    size = micro_batch_size or _default_micro_batch_size(task, available)
    record = Record(size)
    wanted = available if precision is None else min(available, _PILOT * size)
    batches = task.batches(size, seed=seed, epochs=1)
    estimate: NoiseEstimate | None = None
    for parameter in task.parameters:
        if parameter.grad is not None:  # in place: a second gradient-sized tensor is never made
            parameter.grad.zero_()
    ended = False
    with _taken_before_accumulation(task.parameters) as taken:
        while True:
            for batch in batches:
                _take(task, batch, record, taken, size)
                progress(min(1.0, record.examples / wanted), "measuring gradient noise")
                if record.examples >= wanted or (deadline.passed() and len(record.squares) >= 3):
                    break
            else:
                ended = True
            estimate = _estimate(task, record)
            needed = estimate.units_for(precision) if precision is not None else None
            done = precision is None or (needed is not None and needed <= record.examples)
            if done or ended or record.examples >= available or deadline.passed():
                return estimate, record
            # Never far beyond what is known: a pilot's forecast is itself uncertain.
            ceiling = math.ceil(record.examples * _GROWTH)
            wanted = min(available, ceiling if needed is None else min(ceiling, math.ceil(needed)))


def _default_micro_batch_size(task: Task, examples: int) -> int:
    if mixes_examples(task.model):
        return task.default_batch_size  # the statistics of another size are another loss
    return max(1, min(task.default_batch_size, examples // _MICRO_BATCHES))


@final
class _Taken:
    """What the hooks saw of the micro-batch that is being differentiated, as device scalars."""

    def __init__(self, device: torch.device) -> None:
        self.square = torch.zeros((), dtype=torch.float64, device=device)
        self.inner_product = torch.zeros((), dtype=torch.float64, device=device)

    def clear(self) -> None:
        """Forget the last micro-batch."""
        self.square.zero_()
        self.inner_product.zero_()


@contextmanager
def _taken_before_accumulation(parameters: list[nn.Parameter]) -> Iterator[_Taken]:
    """Hook each parameter's gradient before it is added to ``.grad``; remove the hooks at the end.

    A hook on a leaf fires once per backward pass, with the sum over all its uses: tied weights
    are one parameter and need no care.
    """
    taken = _Taken(parameters[0].device)

    def hook_for(parameter: nn.Parameter) -> None:
        def hook(gradient: Tensor) -> None:
            taken.square += _inner_product(gradient, gradient).to(taken.square.device)
            if parameter.grad is not None:
                inner = _inner_product(gradient, parameter.grad)
                taken.inner_product += inner.to(taken.square.device)

        handles.append(parameter.register_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for parameter in parameters:
            hook_for(parameter)
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _take(task: Task, batch: object, record: Record, taken: _Taken, size: int) -> None:
    """Differentiate one micro-batch and write down its three floats."""
    loss, weight = task.loss(batch)
    before = sum(record.weights)
    taken.clear()
    # Accumulate  sum w_k g_k,  scaled by the first weight so that its size stays a gradient's.
    scale = weight / (record.weights[0] if record.weights else weight)
    (loss * scale).backward()
    square = taken.square.item() / scale**2
    inner = taken.inner_product.item() / scale
    if record.weights:
        inner *= record.weights[0] / before  # the sum before becomes the mean before
    if not (math.isfinite(square) and math.isfinite(inner)):
        raise TaskError(
            f"gradients must be finite, got |g|^2 = {square!r} in micro-batch "
            f"{len(record.squares) + 1} at a loss of {loss.item()!r}. Look for an example with NaN "
            "or infinity in the data set, or for an overflow in low precision."
        )
    record.squares.append(square)
    record.inner_products.append(inner)
    record.weights.append(weight)
    record.losses.append(loss.item())
    if task.num_examples is None:
        record.examples += examples_in(batch) or size
    else:  # only the last batch of the epoch may be smaller
        record.examples += min(size, task.num_examples - record.examples)


def _estimate(task: Task, record: Record) -> NoiseEstimate:
    if len(record.squares) < 3:
        raise TaskError(
            f"the noise needs at least three micro-batches, got {len(record.squares)} of "
            f"{record.micro_batch_size} examples from {record.examples}. "
            "Pass a smaller `micro_batch_size`, or a larger data set."
        )
    total = sum(record.weights) / record.weights[0]
    with torch.no_grad():
        squares = [
            _inner_product(p.grad, p.grad).item() for p in task.parameters if p.grad is not None
        ]
    # Weights in examples, so that everything below is per example.
    weights = np.array(record.weights) / record.units_per_example
    fresh = task.num_examples is None or task.source.sampler is not None
    return estimate_noise(
        np.array(record.squares),
        np.array(record.inner_products),
        weights,
        math.fsum(squares) / total**2,
        population=None if fresh else float(task.num_examples or 0),
    )


def _inner_product(left: Tensor, right: Tensor) -> Tensor:
    """Inner product in at least float32 accumulation, without a copy of either operand."""
    if left.is_sparse or right.is_sparse:
        left, right = left.to_dense(), right.to_dense()
    # The same permutation of dimensions on both sides leaves the sum as it is; the one that makes
    # them contiguous (channels_last gradients) spares flatten() a copy.
    order = sorted(range(left.dim()), key=lambda d: -left.stride(d))
    left, right = left.permute(order), right.permute(order)
    left, right = left.detach().flatten(), right.detach().flatten()
    if left.dtype in (torch.float32, torch.float64):
        return torch.dot(left, right).double()
    total = torch.zeros((), dtype=torch.float64, device=left.device)
    for start in range(0, left.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        total += torch.dot(left[part].float(), right[part].float())
    return total


def _as_noise_scale(
    estimate: NoiseEstimate, record: Record, precision: float | None, *, out_of_time: bool
) -> NoiseScale:
    low, high = estimate.interval()
    value = estimate.ratio
    needed = None if precision is None else estimate.units_for(precision)
    missing = None if needed is None else max(0, math.ceil(needed) - record.examples)
    if high is None:
        status = Status.UNRESOLVED if low == 0 else Status.AT_LEAST
    elif missing:
        status = Status.OUT_OF_TIME if out_of_time else Status.TOO_FEW_EXAMPLES
    else:
        status = Status.OK
    return NoiseScale(
        noise_scale=value,
        low=low,
        high=high,
        grad_sq=estimate.grad_sq,
        trace_cov=estimate.trace_cov,
        examples_used=record.examples,
        geometry="euclidean",
        loss=record.loss,
        micro_batch_size=record.micro_batch_size,
        examples_needed=missing,
        status=status,
    )
