"""The race: let a few learning rates train side by side, and drop the slower half again and again.

    steps        0 ---- h ---- 2h -------- 4h        every rung twice as far as the one before
    rate  e/32   |######
          e/16   |######
          e/8    |#############
          e/4    |#########################          <- least held-out loss along the way
          e/2    |#########################
          e      |###x                               diverged

Contenders take turns on the device; each goes on from where it stopped. All see the same batches
in the same order with the same dropout, and are judged by the same held-out batches.
"""

import math
from collections.abc import Sequence

from rightbatch._time import Clock, Deadline, Progress, no_progress, wall_clock
from rightbatch.lr.arena import Arena
from rightbatch.lr.contest import Contest, judge
from rightbatch.lr.course import lay_out
from rightbatch.lr.judging import affordable_steps, rate_grid, survivor_counts
from rightbatch.lr.stepping import Pace, checked_batch_size, measure_pace, seed_everything
from rightbatch.results import LRRace
from rightbatch.scaling import default_rule, scale_learning_rate
from rightbatch.task import Task
from rightbatch.task.data import to_device

_MOST_RATES = 6
# Rates at the start, and the steps that their first rung must have. Before some fifty steps
# losses are still on their first plateau, and the order of the contenders is chance.
_FIRST_RUNGS = ((6, 50), (5, 50), (4, 5), (3, 5))
_PLANNED_SHARE = 0.9  # of the time left; the rest absorbs slower steps
_MARKING_SHARE = 0.15  # of the time, for held-out losses


def race(
    task: Task,
    *,
    batch_size: int | None = None,
    rates: Sequence[float] | None = None,
    centre: float | None = None,
    upper: float | None = None,
    time_budget_seconds: float = 20.0,
    eta: int = 2,
    seed: int = 0,
    progress: Progress = no_progress,
    clock: Clock = wall_clock,
) -> LRRace:
    r"""Choose the learning rate that trains fastest at one batch size.

    Successive halving: about six rates, each twice the one before, train from the same weights;
    after every rung the better half goes on, ``eta`` times as far. The winner has the least
    mean log held-out loss along the way. If it lies at the end of the grid, further rates join.
    Once the loss has settled, the time that is left goes into rates between the winner and its
    neighbours, and into further laps with another order of the data.

    The trap: a race much shorter than the training favours rates that are too large: they fall
    fastest at first, and stall or diverge later. If the loss was still falling when the time
    ended, the suggestion is therefore *half* the winner, and the status OUT_OF_TIME. In trials
    on digits, winners of races 0.15 to 0.4 times as long as the training to 97 % accuracy needed
    1.7 to 3 times the fewest steps for it; with this rule 1.2 to 1.5 times, and after races 1.5
    to 4 times as long 1.1 times.

    Args:
        task: What is trained; left as it was.
        batch_size: Examples per step; today's by default.
        rates: At least two rates of the optimizer's first group; the other groups move in
            proportion. Nothing is added to them. By default a grid around ``centre``.
        centre: Where to look, such as `range_test`'s suggestion. By default today's rate, scaled
            to the batch size.
        upper: The grid's largest rate at first, such as `range_test`'s edge. A race that is won
            there goes on above it.
        time_budget_seconds: For everything; positive.
        eta: One contender in ``eta`` survives a rung; at least 2.
        seed: Of the data's order, of dropout, and of which examples are held out.
        progress: Called with the share of the time that is spent.
        clock: Seconds; tests replace it.

    Returns:
        Every rate with its held-out loss, the suggestion, and the range of rates that cannot be
        told from the winner (the suggestion included). ``status`` is AT_THE_END when the winner
        has no neighbour on one side, or when every rate diverged (then there is no suggestion).

    Raises:
        TaskError: If the batch size exceeds the data set.
        ValueError: If an argument is out of range.

    Example:
        On a loss of w^2 / 2 gradient descent with a rate of 1 is there in one step:

        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> task = Task(
        ...     model,
        ...     torch.optim.SGD(model.parameters(), lr=0.1),
        ...     [torch.ones(1)] * 2,
        ...     lambda model, batch: 0.5 * model.weight.square().sum() + 1e-9,
        ...     batch_size=2,
        ... )
        >>> race(task, rates=[0.25, 0.5, 1.0, 4.0], time_budget_seconds=0.5).suggestion
        1.0

    References:
        Jamieson and Talwalkar (2016), Non-stochastic Best Arm Identification,
        https://arxiv.org/abs/1502.07943.
        Wu et al. (2018), Understanding Short-Horizon Bias in Stochastic Meta-Optimization,
        https://arxiv.org/abs/1803.02021.
    """
    _check_arguments(rates, centre, upper, time_budget_seconds, eta)
    size = checked_batch_size(task, batch_size)
    deadline = Deadline(time_budget_seconds, clock)
    task.check()
    with task.preserved():
        progress(0.0, "learning rate: timing a step")
        centre = centre or _todays_rate(task, size)
        slowest = min(rates) if rates else centre / 8
        pace = measure_pace(task, size, learning_rate=slowest, seed=seed, deadline=deadline)
        seconds = _PLANNED_SHARE * deadline.remaining_seconds()
        grid = tuple(sorted({*rates})) if rates else _grid(centre, upper, pace, seconds, eta)
        chunks = _MARKING_SHARE * seconds / ((8 * len(grid) + 16) * max(pace.forward, 1e-9))
        seed_everything(seed)
        course = lay_out(task, size=size, affordable_chunks=math.floor(chunks), seed=seed)
        weights = tuple(task.weigh(to_device(batch, task.device)) for batch in course.held_out)
        arena = Arena(task, course, deadline, seed, weights)
        contest = Contest(arena, pace, eta, open_ended=rates is None, progress=progress)
        contest.halve(grid)
        contest.refine()
    return judge(contest.runs, weights, batch_size=size)


def _todays_rate(task: Task, size: int) -> float:
    """Return the optimizer's rate, scaled from today's batch size."""
    rule = default_rule(type(task.optimizer).__name__)
    return scale_learning_rate(
        float(task.optimizer.param_groups[0]["lr"]),
        task.default_batch_size,
        size,
        rule="linear" if rule == "saturating" else rule,  # there is no noise scale here
    )


def _grid(
    centre: float, upper: float | None, pace: Pace, seconds: float, eta: int
) -> tuple[float, ...]:
    """Return the rates nearest to ``centre``, as many as can run a first rung worth the name."""
    top = 4 * centre if upper is None else min(4 * centre, upper)
    nearest = sorted(
        rate_grid(top, _MOST_RATES),
        key=lambda rate: (round(abs(math.log(rate / centre)), 6), rate),
    )
    for count, fewest_steps in _FIRST_RUNGS:
        steps = affordable_steps(
            seconds,
            survivor_counts(count, eta),
            first=True,
            eta=eta,
            load_seconds=pace.load,
            step_seconds=pace.step,
        )
        if steps >= fewest_steps:
            return tuple(sorted(nearest[:count]))
    return tuple(sorted(nearest[:2]))


def _check_arguments(
    rates: Sequence[float] | None,
    centre: float | None,
    upper: float | None,
    time_budget_seconds: float,
    eta: int,
) -> None:
    named = [("rates", rate) for rate in rates or ()] + [("centre", centre), ("upper", upper)]
    for name, rate in named:
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(
                f"`{name}` must be positive and finite, got {rate!r}. "
                "It is a learning rate of the optimizer's first group."
            )
    if rates is not None and len({*rates}) < 2:
        raise ValueError(
            f"`rates` must hold at least two different rates, got rates={list(rates)!r}. "
            "One rate alone wins every race: leave `rates` out for a grid around `centre`."
        )
    if not (math.isfinite(time_budget_seconds) and time_budget_seconds > 0):
        raise ValueError(
            "`time_budget_seconds` must be positive and finite, "
            f"got time_budget_seconds={time_budget_seconds!r}. The race fills it."
        )
    if eta < 2:
        raise ValueError(
            f"`eta` must be at least 2, got eta={eta!r}. One contender in `eta` survives a rung."
        )
