"""Follow the noise scale along a training run, then put the world back.

    weights:  theta_0 --train--> theta_1 --train--> ... --train--> theta_n   (restored: theta_0)
    probes:   |                  |                                 |
              frozen probe       frozen probe                      frozen probe

The run trains the user's own model with the user's own optimizer; what it was before is kept in
host memory, so the device never holds a second model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from rightbatch._stats import fieller_interval
from rightbatch._time import Clock, Deadline, Progress, no_progress, wall_clock
from rightbatch.noise.estimators import NoiseEstimate
from rightbatch.noise.geometry import fitting_geometry
from rightbatch.noise.probe import check_probe_options, check_task, run_probe
from rightbatch.noise.record import interval_status
from rightbatch.results import GeometryNoise, NoisePoint, NoiseTrack, Status
from rightbatch.task import Task

_DEFAULT_STEPS = 200
_DIVERGED = 1e6  # a loss so many times the first (or NaN) is beyond recovery
_TRAINING_SHARE = 0.5  # of a time budget; the rest goes to the probes
_LEAST_LOG_LOSS_RANGE = 0.05  # below it a slope against the loss is noise
_SPACING = 3.0  # each probe at so many times the steps of the one before: the start changes fast
_LEARNED = (
    0.05  # of the first loss: the last 5 % takes most of the steps, and would outweigh the rest
)
_TREND_POINTS = 3  # the fewest that tell a trend from a line through two points


@dataclass(frozen=True, slots=True)
class _Probe:
    """One probe along the run."""

    step: int
    loss: float
    estimates: dict[str, NoiseEstimate]  # one per metric

    @property
    def estimate(self) -> NoiseEstimate:
        """The Euclidean one."""
        return self.estimates["euclidean"]


def track_noise(
    task: Task,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    probes: int = 8,
    precision: float = 0.25,
    max_examples: int = 4096,
    micro_batch_size: int | None = None,
    time_budget_seconds: float | None = None,
    trust_loss: bool = False,
    seed: int = 0,
    progress: Progress = no_progress,
    clock: Clock = wall_clock,
) -> NoiseTrack:
    r"""Train for a budget of steps, probe along the way, and average over minimal steps.

    A run of batch size ``B`` covers, in one step, ``1 / (1 + B_noise/B)`` of the progress that a
    noiseless step makes. The critical batch size of a whole run is the mean of the noise scale
    over these *minimal steps*. It is computed from the two parts, never from ratios, so that a
    probe that could not resolve ``|G|^2`` takes part with the doubt it has.

    The run ends early once the loss is below 5 % of the first probe's.

    Trap: the average covers the steps that were run. The noise scale usually keeps growing as
    the loss falls (see ``trend``), so a much longer run has a larger critical batch size.

    Args:
        task: What to train; left bit for bit as it was.
        steps: Optimizer steps. Default: what ``time_budget_seconds`` allows, else 200.
        batch_size: Examples per step. Default: today's.
        probes: Probes, the first before the first step, then at geometrically growing steps.
        precision: Of each probe, see `measure_noise`.
        max_examples: Of each probe.
        micro_batch_size: Of each probe.
        time_budget_seconds: For training and probes together.
        trust_loss: See `measure_noise`.
        seed: Of the data order and the draws.
        progress: Called with (fraction done, what is being done).
        clock: Monotonic seconds.

    Returns:
        The probes, the run average with its interval, and the trend against the loss.

    Raises:
        ValueError: If an option is out of range.
        CoupledLoss: See `measure_noise`.
        TaskError: If a probe fails, see `measure_noise`. A run that diverges is a status.

    References:
        McCandlish et al. (2018), https://arxiv.org/abs/1812.06162, section 2.3 and appendix D
        (averages over minimal steps).
    """
    check_probe_options(precision, max_examples, micro_batch_size, time_budget_seconds)
    size = _checked(task, steps, batch_size, probes)
    check_task(task, trust_loss=trust_loss, seed=seed)
    limit = _limited(steps, time_budget_seconds, clock)
    taken: list[_Probe] = []
    healthy = True

    def probe() -> None:
        with task.preserved(weights=False):  # gradients, BatchNorm's averages, random states
            probed = run_probe(
                task,
                precision=precision,
                max_examples=max_examples,
                micro_batch_size=micro_batch_size,
                deadline=Deadline(limit.probe_seconds(probes - len(taken)), clock),
                seed=seed + 1 + limit.step,
            )
        taken.append(_Probe(limit.step, probed.record.loss, probed.estimates))

    with task.preserved():
        probe()
        batches = task.batches(size, seed=seed)
        for stop in (_SPACING ** (i - probes + 1) for i in range(1, probes)):
            healthy = _train_until(
                task, batches, stop, limit, taken[0].loss, clock=clock, progress=progress
            )
            # The step after the last loss may have been the one that ended it.
            healthy = healthy and all(bool(p.isfinite().all()) for p in task.parameters)
            if not healthy:
                break
            if limit.step > taken[-1].step:
                probe()
            if 0 < taken[-1].loss < _LEARNED * taken[0].loss:
                break
    return _summarize(task, taken, size, diverged=not healthy)


def _checked(task: Task, steps: int | None, batch_size: int | None, probes: int) -> int:
    """Refuse options that no run can be made with; return the run's batch size."""
    for name, value in (("steps", steps), ("batch_size", batch_size), ("probes", probes)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value!r}. Leave it out if unsure.")
    size = batch_size or task.default_batch_size
    if task.max_batch_size is not None and size > task.max_batch_size:
        raise ValueError(
            f"`batch_size` must not exceed the data set or `max_batch_size`, got {size} where "
            f"{task.max_batch_size} is the most. A larger batch would repeat examples."
        )
    return size


def _limited(steps: int | None, time_budget_seconds: float | None, clock: Clock) -> "_Limit":
    """Limit the run as asked; without any wish, to some steps."""
    if time_budget_seconds is None:
        return _Limit(_DEFAULT_STEPS if steps is None else steps, Deadline(math.inf, clock))
    return _Limit(steps, Deadline(time_budget_seconds, clock))


@dataclass(slots=True)
class _Limit:
    """How far the run has come, in steps or in seconds, whichever is limited."""

    steps: int | None
    deadline: Deadline
    step: int = 0
    trained_seconds: float = 0.0

    def position(self, segment_seconds: float) -> float:
        """Share of the training that is done."""
        by_steps = self.step / self.steps if self.steps else 0.0
        if math.isinf(self.deadline.seconds):
            return by_steps
        if self.deadline.passed():
            return math.inf
        allowed = _TRAINING_SHARE * self.deadline.seconds
        return max(by_steps, (self.trained_seconds + segment_seconds) / allowed)

    def probe_seconds(self, probes_left: int) -> float:
        """Time for the next probe: what the training that is still ahead leaves."""
        if math.isinf(self.deadline.seconds):
            return math.inf
        ahead = _TRAINING_SHARE * self.deadline.seconds - self.trained_seconds
        return max(0.0, self.deadline.remaining_seconds() - max(0.0, ahead)) / max(1, probes_left)

    def fraction(self) -> float:
        """Share done, for the progress bar."""
        by_steps = self.step / self.steps if self.steps else 0.0
        by_time = self.deadline.fraction() if math.isfinite(self.deadline.seconds) else 0.0
        return min(1.0, max(by_steps, by_time))


def _train_until(
    task: Task,
    batches: Iterator[Any],
    stop: float,
    limit: _Limit,
    first_loss: float,
    *,
    clock: Clock,
    progress: Progress,
) -> bool:
    """Train up to a position of the run; return whether it has not diverged."""
    begin = clock()
    loss: Tensor | None = None
    while limit.position(clock() - begin) < stop:
        loss = task.step(next(batches))
        limit.step += 1
        progress(limit.fraction(), "following the noise along training")
    # One look per stretch: each look waits for the device, and a run that diverged never heals.
    goes_on = loss is None or bool(abs(loss) <= _DIVERGED * max(abs(first_loss), 1e-30))
    limit.trained_seconds += clock() - begin  # with what the device still had to do
    return goes_on


def _summarize(task: Task, probes: list[_Probe], batch_size: int, *, diverged: bool) -> NoiseTrack:
    points = tuple(_point(probe, batch_size) for probe in probes)
    geometries = _run_averages(probes, batch_size, fitting_geometry(task.optimizer))
    euclidean = geometries[0]
    return NoiseTrack(
        points=points,
        batch_size=batch_size,
        learning_rate=float(task.optimizer.param_groups[0]["lr"]),
        run_average=euclidean.noise_scale,
        low=euclidean.low,
        high=euclidean.high,
        trend=fit_trend(points),
        status=Status.DIVERGED if diverged else euclidean.status,
        geometries=geometries,
    )


def _run_averages(probes: list[_Probe], batch_size: int, fitting: str) -> tuple[GeometryNoise, ...]:
    """Average in each metric over the probes that had it: second moments need a few steps."""
    averages = []
    for name in dict.fromkeys(name for probe in probes for name in probe.estimates):
        having = [probe for probe in probes if name in probe.estimates]
        average, low, high = average_over_minimal_steps(
            [probe.step for probe in having],
            [probe.estimates[name] for probe in having],
            batch_size,
        )
        averages.append(
            GeometryNoise(
                geometry=name,
                noise_scale=average,
                low=low,
                high=high,
                fits=name == fitting,
                status=interval_status((low, high)),
            )
        )
    return tuple(averages)


def _point(probe: _Probe, batch_size: int) -> NoisePoint:
    low, high = probe.estimate.interval()
    return NoisePoint(
        step=probe.step,
        examples_seen=probe.step * batch_size,
        loss=probe.loss,
        noise_scale=probe.estimate.ratio,
        low=low,
        high=high,
        grad_sq=probe.estimate.grad_sq,
        trace_cov=probe.estimate.trace_cov,
    )


def average_over_minimal_steps(
    steps: list[int], estimates: list[NoiseEstimate], batch_size: int
) -> tuple[float | None, float, float | None]:
    r"""Average the noise scale over a run, each step weighted by its share of minimal steps.

    With ``E|g_B|^2 = |G|^2 + tr(Sigma)/B``, a step covers ``|G|^2 / E|g_B|^2`` minimal steps, so

        B_c = sum_i d_i tr(Sigma_i)/E|g_B|^2_i  /  sum_i d_i |G_i|^2/E|g_B|^2_i

    with ``d_i`` the steps that probe ``i`` stands for (trapezoidal rule). ``E|g_B|^2`` is positive
    also where ``|G|^2`` is not resolved, so nothing is divided by a number near zero but once.

    Args:
        steps: Step of each probe, ascending.
        estimates: Of each probe, in examples.
        batch_size: Examples per step of the run.

    Returns:
        The average in examples (``None`` where not resolved) and its 95 % Fieller interval.

    Example:
        One probe, tr(Sigma) = 60 and |G|^2 = 2: the average is its own noise scale.

        >>> e = NoiseEstimate(grad_sq=2.0, trace_cov=60.0, var_grad_sq=0.0, var_trace_cov=0.0,
        ...     covariance=0.0, quadratic_share=0.0, units=100.0, micro_batches=10)
        >>> average, low, high = average_over_minimal_steps([0], [e], 32)
        >>> round(average, 9), round(low, 9), round(high, 9)
        (30.0, 30.0, 30.0)
    """
    spans = np.zeros(len(steps))
    for i, (left, right) in enumerate(pairwise(steps)):
        spans[i] += (right - left) / 2
        spans[i + 1] += (right - left) / 2
    if not spans.any():
        spans[:] = 1.0
    small_sq = np.array([e.grad_sq + e.trace_cov / batch_size for e in estimates])
    # Unbiased, so it may come out negative at a probe with few examples; it is |g|^2 all the same.
    small_sq = np.maximum(small_sq, [e.trace_cov / batch_size / 2 for e in estimates])
    shares = np.divide(spans, small_sq, out=np.zeros_like(spans), where=small_sq > 0)
    numerator = float(sum(w * e.trace_cov for w, e in zip(shares, estimates, strict=True)))
    denominator = float(sum(w * e.grad_sq for w, e in zip(shares, estimates, strict=True)))
    squared = shares**2
    low, high = fieller_interval(
        numerator,
        denominator,
        var_numerator=float(squared @ [e.var_trace_cov for e in estimates]),
        var_denominator=float(squared @ [e.var_grad_sq for e in estimates]),
        covariance=float(squared @ [e.covariance for e in estimates]),
        degrees=sum(e.micro_batches for e in estimates) / 2,
    )
    return (numerator / denominator if denominator > 0 else None), low, high


def fit_trend(points: tuple[NoisePoint, ...]) -> float | None:
    """Fit ``d log(noise scale) / d log(loss)`` over the probes that resolved both.

    Args:
        points: The probes of a track.

    Returns:
        The slope (negative: the noise scale grows as the loss falls), or ``None`` where fewer
        than three probes resolved it or the loss hardly moved.
    """
    pairs = [
        (math.log(p.loss), math.log(p.noise_scale))
        for p in points
        if p.noise_scale and p.high is not None and p.loss > 0
    ]
    if len(pairs) < _TREND_POINTS:
        return None
    log_loss, log_noise = np.array(pairs).T
    if np.ptp(log_loss) < _LEAST_LOG_LOSS_RANGE:
        return None
    return float(np.polyfit(log_loss, log_noise, 1)[0])
