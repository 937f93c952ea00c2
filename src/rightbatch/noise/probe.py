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
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from rightbatch._time import Clock, Deadline, Progress, no_progress, wall_clock
from rightbatch.errors import TaskError
from rightbatch.noise.couplings import check_coupling
from rightbatch.noise.estimators import NoiseEstimate
from rightbatch.noise.geometry import fitting_geometry, preconditioners
from rightbatch.noise.local_gradients import hooked_gradients
from rightbatch.noise.precision import on_host
from rightbatch.noise.record import Floats, Record, by_geometry, interval_status
from rightbatch.noise.signs import Signs
from rightbatch.noise.squares import Squares, named_parameters
from rightbatch.results import GeometryNoise, NoiseScale, Status
from rightbatch.task import Task
from rightbatch.task.data import examples_in
from rightbatch.task.preflight import mixes_examples

_MICRO_BATCHES = 128  # aimed at; more would sharpen the interval's own error only
_PILOT = 32  # micro-batches before the first look
_GROWTH = 1.5  # at most this factor more examples between two looks


def measure_noise(
    task: Task,
    *,
    precision: float | None = 0.2,
    max_examples: int = 8192,
    micro_batch_size: int | None = None,
    time_budget_seconds: float | None = None,
    trust_loss: bool = False,
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
        trust_loss: Do not look whether the loss couples examples, which takes a few passes over
            64 of them.
        seed: Of the draw.
        progress: Called with (fraction done, what is being done).
        clock: Monotonic seconds.

    Returns:
        The noise scale in examples, its interval, both parts, and what they are worth.
        ``high`` is ``None`` where the squared gradient may be zero.

    Raises:
        ValueError: If an option is out of range.
        CoupledLoss: If the gradient of a batch is not made of its parts' gradients.
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
    check_task(task, trust_loss=trust_loss, seed=seed)
    deadline = Deadline(math.inf if time_budget_seconds is None else time_budget_seconds, clock)
    with task.preserved(weights=False):
        probed = run_probe(
            task,
            precision=precision,
            max_examples=max_examples,
            micro_batch_size=micro_batch_size,
            deadline=deadline,
            seed=seed,
            progress=progress,
        )
        return _as_noise_scale(task, probed, precision, out_of_time=deadline.passed())


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


def check_task(task: Task, *, trust_loss: bool, seed: int) -> None:
    """Refuse a task whose noise is not defined; see `measure_noise`."""
    task.check()
    if not trust_loss:
        warning = check_coupling(task, seed=seed).warning
        if warning is not None:
            task.warn(warning)


@final
@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe found, per example."""

    record: Record
    estimates: dict[str, NoiseEstimate]  # one per metric, the Euclidean one first
    mean_squares: Floats  # M of each parameter, [parameters, metrics]
    population: float | None
    signs: GeometryNoise

    @property
    def euclidean(self) -> NoiseEstimate:
        """The estimate that results lead with."""
        return self.estimates["euclidean"]


def run_probe(
    task: Task,
    *,
    precision: float | None,
    max_examples: int,
    micro_batch_size: int | None,
    deadline: Deadline,
    seed: int,
    progress: Progress = no_progress,
) -> Probed:
    """Run the sequential probe; the caller preserves the world. See `measure_noise`."""
    available = min(max_examples, task.num_examples or max_examples)
    size = micro_batch_size or _default_micro_batch_size(task, available)
    taking = _Taking(task, size)
    record = taking.record
    wanted = available if precision is None else min(available, _PILOT * size)
    batches = task.batches(size, seed=seed, epochs=1)
    ended = False
    with taking.hooked():
        while True:
            for batch in batches:
                taking.take(batch)
                progress(min(1.0, record.examples / wanted), "measuring gradient noise")
                if record.examples >= wanted or (deadline.passed() and len(record.weights) >= 3):
                    break
            else:
                ended = True
            probed = taking.evaluate()
            needed = probed.euclidean.units_for(precision) if precision is not None else None
            done = precision is None or (needed is not None and needed <= record.examples)
            if done or ended or record.examples >= available or deadline.passed():
                return probed
            # Never far beyond what is known: a pilot's forecast is itself uncertain.
            ceiling = math.ceil(record.examples * _GROWTH)
            wanted = min(available, ceiling if needed is None else min(ceiling, math.ceil(needed)))


def _default_micro_batch_size(task: Task, examples: int) -> int:
    if mixes_examples(task.model):
        return task.default_batch_size  # the statistics of another size are another loss
    return max(1, min(task.default_batch_size, examples // _MICRO_BATCHES))


@final
class _Taking:
    """Differentiates micro-batches into ``.grad``, and writes down what the hooks see."""

    def __init__(self, task: Task, size: int) -> None:
        self._task, self._parameters = task, task.parameters
        self._squares = Squares(self._parameters, preconditioners(task.optimizer, task.parameters))
        self._signs = Signs(self._parameters)
        self.record = Record(size, self._squares.names)
        for parameter in self._parameters:
            if parameter.grad is not None:  # in place: a second gradient-sized tensor never exists
                parameter.grad.zero_()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hook each parameter's gradient before it is added to ``.grad``; unhook at the end."""

        def hook(index: int, gradient: Tensor) -> None:
            before = self._parameters[index].grad if self.record.weights else None
            self._squares.take(index, gradient, before)
            self._signs.take(index, gradient, before)

        with hooked_gradients(self._task.model, self._parameters, hook):
            yield

    def take(self, batch: Any) -> None:
        """Differentiate one micro-batch and write down its floats."""
        record, task = self.record, self._task
        loss, weight = task.loss(batch)
        # Accumulate  sum w_k g_k,  scaled by the first weight so that its size stays a gradient's.
        scale = weight / (record.weights[0] if record.weights else weight)
        self._squares.clear()
        self._signs.begin(scale)
        (loss * scale).backward()
        squares = on_host(self._squares.squares) / scale**2
        inner = on_host(self._squares.inner) / scale
        if record.weights:
            inner *= record.weights[0] / sum(record.weights)  # of the sum before: its mean
        if not (np.isfinite(squares).all() and np.isfinite(inner).all()):
            raise TaskError(
                f"gradients must be finite, got |g|^2 = {float(squares[:, 0].sum())!r} in "
                f"micro-batch {len(record.weights) + 1} at a loss of {loss.item()!r}. Look for an "
                "example with NaN or infinity in the data set, or for an overflow in low precision."
            )
        record.add(squares, inner.tolist(), weight, loss.item())
        if task.num_examples is None:
            record.examples += examples_in(batch) or record.micro_batch_size
        else:  # only the last batch of the epoch may be smaller
            record.examples += min(record.micro_batch_size, task.num_examples - record.examples)

    def evaluate(self) -> Probed:
        """Estimate from all that was taken so far."""
        record, task = self.record, self._task
        if len(record.weights) < 3:
            raise TaskError(
                f"the noise needs at least three micro-batches, got {len(record.weights)} of "
                f"{record.micro_batch_size} examples from {record.examples}. "
                "Pass a smaller `micro_batch_size`, or a larger data set."
            )
        total = sum(record.weights) / record.weights[0]
        with torch.no_grad():
            mean_squares = on_host(self._squares.of_accumulated()) / total**2
            signs = self._signs.noise(
                record.weights[0] / record.units_per_example,
                fits=fitting_geometry(task.optimizer) == "sign",
            )
        fresh = task.num_examples is None or task.source.sampler is not None
        population = None if fresh else float(task.num_examples or 0)
        estimates = record.estimates(mean_squares, population=population)
        return Probed(record, estimates, mean_squares, population, signs)


def _as_noise_scale(
    task: Task, probed: Probed, precision: float | None, *, out_of_time: bool
) -> NoiseScale:
    """Lay out what a probe found; ``.grad`` still tells which parameters got a gradient."""
    record, estimate = probed.record, probed.euclidean
    interval = estimate.interval()
    needed = None if precision is None else estimate.units_for(precision)
    missing = None if needed is None else max(0, math.ceil(needed) - record.examples)
    status = interval_status(interval)
    if status is Status.OK and missing:
        status = Status.OUT_OF_TIME if out_of_time else Status.TOO_FEW_EXAMPLES
    named = named_parameters(task.model, task.parameters)
    covered = [parameter.grad is not None for _, parameter in named]
    sizes = np.array([parameter.numel() for _, parameter in named])
    fitting = fitting_geometry(task.optimizer)
    return NoiseScale(
        noise_scale=estimate.ratio,
        low=interval[0],
        high=interval[1],
        grad_sq=estimate.grad_sq,
        trace_cov=estimate.trace_cov,
        examples_used=record.examples,
        geometry="euclidean",
        loss=record.loss,
        micro_batch_size=record.micro_batch_size,
        examples_needed=missing,
        status=status,
        ghost_batch_size=record.micro_batch_size if mixes_examples(task.model) else None,
        coverage=float(sizes[covered].sum() / sizes.sum()),
        uncovered=tuple(name for (name, _), seen in zip(named, covered, strict=True) if not seen),
        geometries=(
            *by_geometry(probed.estimates, fitting, adaptive=fitting == "adam"),
            probed.signs,
        ),
        layers=record.layers(named, probed.mean_squares, estimate, population=probed.population),
    )
