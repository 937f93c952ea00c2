"""The range test: sweep the learning rate over decades, a step at each, several times over."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rightbatch._time import Clock, Deadline, Progress, no_progress, wall_clock
from rightbatch.lr.curve import Sweep, combine, log_spaced, read
from rightbatch.lr.stepping import (
    checked_batch_size,
    evaluate_loss,
    measure_pace,
    rate_setter,
    seed_everything,
    take_step,
)
from rightbatch.results import LRCurve
from rightbatch.task import Task

_FEWEST_STEPS = 30  # below, a decade has four points and an edge is a guess
_HARDLY_ANY_STEPS = 10  # below, not even one sweep is worth its time
_RUN = 5  # losses whose median decides whether a sweep has blown up: one may be an odd example
_PLANNED_SHARE = 0.9  # share of the time that is planned; the rest absorbs slower steps


def range_test(
    task: Task,
    *,
    batch_size: int | None = None,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    repeats: int = 3,
    time_budget_seconds: float | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    clock: Clock = wall_clock,
) -> LRCurve:
    r"""Find where training becomes unstable, by raising the learning rate step by step.

    Every repeat starts from the same weights, takes one optimizer step at each of ``steps``
    log-spaced rates and sees the data in an order of its own. Rates are those of the
    optimizer's first group; the other groups move in proportion. On a quadratic loss without
    momentum the edge is the rate ``2 / lambda_max`` at which gradient descent diverges.

    The trap: one step per rate measures curvature, not noise. The edge hardly moves with the
    batch size while the best rate moves a lot, so the suggestion only says where to look; race
    a few rates around it (`rightbatch.race`). Nor is the edge an upper limit: a run that has
    warmed up through the sweep's small rates can hold more or less than one that starts there.

    Args:
        task: What is trained; left as it was.
        batch_size: Examples per step; today's by default.
        low: First rate, positive.
        high: Last rate, above ``low``.
        steps: Rates per sweep, at least 10.
        repeats: Sweeps, at least 1. With one there is no interval.
        time_budget_seconds: Fewer steps, then fewer repeats are made where these do not fit.
        seed: Of the data's order and of dropout; the same seed gives the same answer.
        progress: Called with the share done.
        clock: Seconds; tests replace it.

    Returns:
        The median curve with its spread, the edge and a suggestion. ``status`` is DISAGREE, and
        the suggestion ``None``, when repeats differ by a decade; AT_THE_END when the loss never
        rose; OUT_OF_TIME when not even two sweeps of 30 steps fitted.

    Raises:
        TaskError: If the batch size exceeds the data set.
        ValueError: If an argument is out of range.

    Example:
        On a loss of (3/2) w^2 gradient descent diverges above 2/3:

        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> task = Task(
        ...     model,
        ...     torch.optim.SGD(model.parameters(), lr=0.1),
        ...     [torch.ones(1)] * 2,
        ...     lambda model, batch: 1.5 * model.weight.square().sum(),
        ...     batch_size=2,
        ... )
        >>> curve = range_test(task, low=1e-3, steps=80)
        >>> round(curve.edge, 1)
        0.7

    References:
        Smith (2017), Cyclical Learning Rates for Training Neural Networks,
        https://arxiv.org/abs/1506.01186, section 3.3.
    """
    _check_arguments(low, high, steps, repeats, time_budget_seconds)
    size = checked_batch_size(task, batch_size)
    deadline = Deadline(math.inf if time_budget_seconds is None else time_budget_seconds, clock)
    task.check()
    plan = SweepPlan(steps, repeats, in_time=True)
    with task.preserved():
        if time_budget_seconds is not None:
            progress(0.0, "learning rate: timing a step")
            pace = measure_pace(task, size, learning_rate=low, seed=seed, deadline=deadline)
            left = _PLANNED_SHARE * deadline.remaining_seconds() - repeats * pace.start
            plan = plan_sweeps(math.floor(left / pace.loaded_step), steps, repeats)
        rates = log_spaced(low, high, plan.steps) if plan.repeats else ()
        sweeps = _sweeps(task, size, rates, plan.repeats, seed, deadline, progress)
    readings = [read(sweep, half_width=max(1.0, len(rates) / 50)) for sweep in sweeps]
    enough = len(readings) >= min(2, repeats)
    return combine(readings, batch_size=size, in_time=plan.in_time and enough, rates=rates)


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """How many steps and repeats fit the time."""

    steps: int
    repeats: int
    in_time: bool  # whether that is enough for an answer


def plan_sweeps(affordable_steps: int, steps: int, repeats: int) -> SweepPlan:
    """Take steps, then repeats away until they fit.

    Args:
        affordable_steps: Steps that fit the time, over all repeats.
        steps: Wanted per sweep.
        repeats: Wanted sweeps.

    Example:
        >>> plan_sweeps(1000, 100, 3)
        SweepPlan(steps=100, repeats=3, in_time=True)
        >>> plan_sweeps(120, 100, 3)
        SweepPlan(steps=40, repeats=3, in_time=True)
        >>> plan_sweeps(70, 100, 3)
        SweepPlan(steps=35, repeats=2, in_time=True)
        >>> plan_sweeps(40, 100, 3)
        SweepPlan(steps=40, repeats=1, in_time=False)
    """
    fewest = min(_FEWEST_STEPS, steps)
    for fewer in range(repeats, min(2, repeats) - 1, -1):
        if affordable_steps >= fewer * fewest:
            return SweepPlan(min(steps, affordable_steps // fewer), fewer, in_time=True)
    if affordable_steps >= _HARDLY_ANY_STEPS:
        return SweepPlan(min(steps, affordable_steps), 1, in_time=False)
    return SweepPlan(0, 0, in_time=False)


def _sweeps(
    task: Task,
    size: int,
    rates: Sequence[float],
    repeats: int,
    seed: int,
    deadline: Deadline,
    progress: Progress,
) -> list[Sweep]:
    """Sweep ``repeats`` times, or as often as the time allows; a sweep cut short is dropped."""
    sweeps: list[Sweep] = []
    slowest_seconds = 0.0
    for repeat in range(repeats):
        before = deadline.elapsed_seconds()
        if deadline.remaining_seconds() < slowest_seconds:
            break

        def report(share: float, repeat: int = repeat) -> None:
            progress((repeat + share) / repeats, f"learning rate: sweep {repeat + 1} of {repeats}")

        with task.preserved():
            sweep = _sweep(task, size, rates, seed + repeat, deadline, report)
        if sweep is None:
            break
        sweeps.append(sweep)
        slowest_seconds = max(slowest_seconds, deadline.elapsed_seconds() - before)
    return sweeps


def _sweep(
    task: Task,
    size: int,
    rates: Sequence[float],
    seed: int,
    deadline: Deadline,
    report: Callable[[float], None],
) -> Sweep | None:
    """Step once at each rate; ``None`` if the time ends first.

    The loss that a step reports was computed before it, so it belongs to the rate before.
    """
    seed_everything(seed)
    set_rate = rate_setter(task.optimizer)
    batches = task.batches(size, seed=seed)
    losses: list[float] = []
    best = math.inf
    for index, rate in enumerate(rates):
        if deadline.passed():
            return None
        set_rate(rate)
        losses.append(take_step(task, next(batches)))
        middle = median(losses[-_RUN:])
        best = min(best, middle)
        if not math.isfinite(losses[-1]) or middle > stop_level(best, losses[:10]):
            break
        report(index / len(rates))
    else:
        losses.append(evaluate_loss(task, next(batches)))
    return Sweep(start=losses[0], rates=tuple(rates[: len(losses) - 1]), losses=tuple(losses[1:]))


def stop_level(best: float, early_losses: Sequence[float]) -> float:
    """Return the median loss above which a sweep will not come back: four times the best, at least.

    Four times means three distances above. A distance is at least the gap from the best to the
    worst early loss, for a sweep from trained weights has a tiny loss with rare large ones, and
    those say nothing about its rate.

    Args:
        best: Lowest median of a few losses so far.
        early_losses: The first ones, at rates that hardly change anything.

    Example:
        >>> stop_level(2.0, [2.0, 2.0, 2.0])
        8.0
        >>> stop_level(0.0, [0.0, 0.0, 2.0])
        6.0
    """
    return best + 3 * max(abs(best), max(early_losses) - best)


def _check_arguments(
    low: float, high: float, steps: int, repeats: int, time_budget_seconds: float | None
) -> None:
    if not (0 < low < high < math.inf):
        raise ValueError(
            f"`low` must be positive and below a finite `high`, got low={low!r}, high={high!r}. "
            "The sweep multiplies its way from one to the other."
        )
    if steps < 10:
        raise ValueError(
            f"`steps` must be at least 10, got steps={steps!r}. "
            "With fewer rates the edge is off by more than a factor of 5: 100 is usual."
        )
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got repeats={repeats!r}.")
    if time_budget_seconds is not None and not time_budget_seconds > 0:
        raise ValueError(
            "`time_budget_seconds` must be positive, "
            f"got time_budget_seconds={time_budget_seconds!r}. Pass None for no limit."
        )
