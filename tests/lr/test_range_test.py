"""Oracles: gradient descent on a quadratic diverges at 2 / lambda; fake clock for time budgets."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.errors import TaskError
from rightbatch.lr import range_test
from rightbatch.lr.range_test import SweepPlan, plan_sweeps, stop_level
from rightbatch.results import LRCurve, Status
from rightbatch.task import Task, supervised
from tests.laws import assert_world_unchanged
from tests.lr.doubles import Bowl, LoggingSGD, TickingClock, bowl, numbers
from tests.zoo import WORKING, Specimen, rows


def grid_steps(rate: float, other: float, steps: int, decades: float) -> float:
    return abs(math.log10(rate / other)) * (steps - 1) / decades


@pytest.mark.parametrize("curvature", [0.01, 1.0, 3.7, 1000.0])
@pytest.mark.parametrize("steps", [30, 64, 100])
def test_the_edge_is_two_over_the_curvature_to_a_grid_step(curvature: float, steps: int) -> None:
    limit = 2 / curvature
    curve = range_test(bowl(curvature), low=limit / 1000, high=limit * 30, steps=steps)
    assert curve.edge is not None
    assert grid_steps(curve.edge, limit, steps, math.log10(30_000)) <= 1
    assert curve.suggestion == pytest.approx(curve.edge / 4)
    assert (curve.low, curve.high) == pytest.approx((curve.suggestion, curve.suggestion))
    assert curve.status is Status.OK


def test_of_several_curvatures_the_largest_sets_the_edge() -> None:
    """A direction that has died out must first grow back, so the edge comes a little late."""
    curve = range_test(bowl(1.0, 0.01), low=1e-3, high=100.0, steps=100)
    assert curve.edge is not None
    assert 2.0 <= curve.edge <= 8.0


def test_the_edge_moves_with_the_units_of_the_loss() -> None:
    curves = [range_test(bowl(k), low=1e-3 / k, high=30 / k, steps=50) for k in (1.0, 64.0)]
    assert curves[0].edge == pytest.approx(64 * curves[1].edge)  # type: ignore[operator]


def test_no_edge_where_no_rate_is_too_large() -> None:
    curve = range_test(bowl(1.0), low=1e-4, high=0.5)
    assert curve.edge is None
    assert curve.status is Status.AT_THE_END
    assert curve.suggestion is not None


def test_clipping_that_stops_the_explosion_does_not_hide_the_edge() -> None:
    curve = range_test(bowl(1.0, clip_grad_norm=0.5), low=1e-3, high=100.0)
    assert curve.edge is not None
    assert 1.0 < curve.edge < 10.0


def test_points_are_the_curve_that_was_swept() -> None:
    """One step at each rate from weight 1: the loss is half of the product of (1 - rate)^2."""
    curve = range_test(bowl(1.0), low=1e-3, high=1e-2, steps=10, repeats=1)
    weight, losses = 1.0, []
    for point in curve.points:
        weight *= 1 - point.learning_rate
        losses.append(0.5 * weight**2)
    middle = losses[3]  # weights of the centred window: 1/4, 1/2, 1, 1/2, 1/4
    smoothed = (losses[1] / 4 + losses[2] / 2 + middle + losses[4] / 2 + losses[5] / 4) / 2.5
    assert [p.learning_rate for p in curve.points][::9] == pytest.approx([1e-3, 1e-2])
    assert curve.points[3].loss == pytest.approx(smoothed)


def groups_task(rates: list[list[float]], *, tensor: bool = False) -> Task:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    first, second = (torch.tensor(lr) if tensor else lr for lr in (0.02, 0.1))
    optimizer = LoggingSGD(
        [
            {"params": model[0].parameters(), "lr": first},
            {"params": model[2].parameters(), "lr": second},
        ]
    )
    optimizer.on_step = rates.append
    return Task(model, optimizer, rows(), supervised(F.mse_loss), batch_size=4)


@pytest.mark.parametrize("tensor", [False, True], ids=["numbers", "tensors"])
def test_groups_keep_their_ratios(tensor: bool) -> None:
    rates: list[list[float]] = []
    task = groups_task(rates, tensor=tensor)
    before = [group["lr"] for group in task.optimizer.param_groups]
    range_test(task, low=1e-3, high=0.1, steps=20, repeats=1)
    assert [first for first, _ in rates] == pytest.approx(
        [1e-3 * 100 ** (i / 19) for i in range(20)]
    )
    assert [second / first for first, second in rates] == pytest.approx([5.0] * 20)
    after = [group["lr"] for group in task.optimizer.param_groups]
    assert all(a is b for a, b in zip(before, after, strict=True))


def data_order(seed: int, repeats: int) -> list[tuple[float, ...]]:
    seen: list[tuple[float, ...]] = []
    model, note = Bowl([1.0]), seen.append  # the list itself would be put back

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        note(tuple(batch.flatten().tolist()))
        return model.weight.square().sum()  # type: ignore[operator]

    task = Task(model, torch.optim.SGD(model.parameters(), lr=1.0), numbers(40), loss, batch_size=4)
    range_test(task, low=1e-3, high=0.1, steps=10, repeats=repeats, seed=seed)
    return seen


def test_every_repeat_sees_the_data_in_another_order_and_a_seed_repeats_it() -> None:
    first = data_order(seed=0, repeats=2)
    assert first[:11] != first[11:]  # ten steps, and the loss after the last one
    assert data_order(seed=0, repeats=2) == first
    assert data_order(seed=5, repeats=2) != first


def test_every_repeat_starts_from_the_same_weights_and_dropout() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters())
    one_batch = [rows()[0]] * 8
    task = Task(model, optimizer, one_batch, supervised(F.mse_loss), batch_size=4)
    curves = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed * 17)  # must not matter
        curves.append(range_test(task, steps=30, repeats=2, seed=seed))
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def test_repeats_that_meet_a_stiff_example_early_or_late_disagree() -> None:
    """One example in two hundred diverges a thousand times earlier than the others."""
    model = Bowl([1.0])

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        stiffness = torch.where(batch < 1, 1000.0, 1.0).mean()
        return 0.5 * stiffness * model.weight.square().sum()  # type: ignore[operator]

    data = numbers(200)
    task = Task(model, torch.optim.SGD(model.parameters(), lr=1.0), data, loss, batch_size=1)
    curve = range_test(task, low=1e-3, high=10.0, steps=100, repeats=7)
    assert curve.status is Status.DISAGREE
    assert curve.suggestion is None
    assert curve.low is not None
    assert curve.high is not None
    assert curve.high / curve.low >= 10


def breaking_task(break_at: float, error: Exception | None = None) -> Task:
    """Fail once the weight leaves [-10, 10]: with NaN, or with an error at NaN weights."""
    model = Bowl([1.0])

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        weight: Tensor = model.weight  # type: ignore[assignment]
        if not weight.detach().abs().max() <= break_at:
            if error is not None:
                raise error
            return weight.sum() * math.nan
        return 0.5 * weight.square().sum()

    return Task(model, torch.optim.SGD(model.parameters(), lr=1.0), numbers(8), loss, batch_size=2)


def test_a_loss_that_becomes_nan_ends_the_sweep() -> None:
    curve = range_test(breaking_task(1.5), low=1e-2, high=100.0, steps=50)
    assert curve.edge is not None
    assert curve.edge >= 2 / 10 ** (4 / 49)
    assert all(math.isfinite(p.loss) and math.isfinite(p.high) for p in curve.points)
    assert curve.status is Status.OK


def test_an_error_at_weights_that_are_not_finite_is_divergence() -> None:
    """A slope of 1e9 times a rate of 1e300 is infinite, and so is the weight after one step."""
    model = Bowl([1.0])

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        weight: Tensor = model.weight  # type: ignore[assignment]
        if not weight.isfinite().all():
            raise ValueError("a distribution refuses infinity")
        return 1e9 * weight.sum()

    task = Task(model, torch.optim.SGD(model.parameters(), lr=1.0), numbers(8), loss, batch_size=2)
    curve = range_test(task, low=1e300, high=1e301)
    assert (curve.points, curve.edge, curve.suggestion) == ((), None, None)


def test_an_error_at_finite_weights_is_the_users_to_see() -> None:
    with pytest.raises(ValueError, match="a bug at weight -"):
        range_test(breaking_task(1.5, ValueError("a bug at weight -2")), low=0.01, high=100.0)


def trained() -> Task:
    """A model whose loss is tiny but for a rare example."""
    model = Bowl([1.0])
    with torch.no_grad():
        model.weight.fill_(1e-3)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        rare = torch.where(batch < 1, 1.0, 0.0).mean()
        return 0.5 * model.weight.square().sum() + rare  # type: ignore[operator]

    return Task(model, torch.optim.SGD(model.parameters(), lr=1.0), numbers(20), loss, batch_size=1)


def test_a_trained_model_with_rare_large_losses_does_not_stop_the_sweep() -> None:
    curve = range_test(trained(), low=1e-3, high=1.0, steps=60)
    assert len(curve.points) == 60


def test_stop_level_is_four_times_the_best_for_a_steady_loss() -> None:
    assert stop_level(0.5, [0.5] * 10) == 2.0
    assert stop_level(-2.0, [-2.0] * 10) == 4.0  # three times its size above it
    assert stop_level(0.0, [3.0, 0.0]) == 9.0


@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
@pytest.mark.parametrize("steps", [10, 40, 100])
def test_what_is_planned_fits_and_is_no_less_than_it_need_be(repeats: int, steps: int) -> None:
    for affordable in range(520):
        plan = plan_sweeps(affordable, steps, repeats)
        assert plan.steps * plan.repeats <= affordable
        assert plan.steps <= steps
        assert plan.repeats <= repeats
        assert plan.in_time == (affordable >= min(2, repeats) * min(30, steps))
        if plan.in_time:
            assert plan.steps >= min(30, steps)
            assert plan.repeats >= min(2, repeats)
        if affordable >= steps * repeats:
            assert plan == SweepPlan(steps, repeats, in_time=True)


@pytest.mark.parametrize("tick_seconds", [1e-4, 0.003, 0.01, 0.02, 0.1, 1.0, 50.0])
def test_the_time_budget_is_kept(tick_seconds: float) -> None:
    clock = TickingClock(tick_seconds)
    task = bowl(1.0, clock=clock)
    task.check()  # two passes, once per task, whatever the budget
    start = clock.now
    curve = range_test(task, time_budget_seconds=1.0, clock=clock)
    assert clock.now - start <= 1.0 + 2 * tick_seconds  # a step and the forward pass that times it
    # Fewer than 60 steps, those that timed the first ones included, are not enough.
    assert (curve.status is Status.OUT_OF_TIME) == (tick_seconds > 0.01)


def test_steps_that_become_slower_than_planned_do_not_break_the_budget() -> None:
    clock = TickingClock(0.002)

    class Tiring(TickingClock):
        def tick(self) -> None:
            clock.tick_seconds = 0.002 if clock.calls < 50 else 0.02
            clock.tick()

    curve = range_test(bowl(1.0, clock=Tiring()), time_budget_seconds=1.0, clock=clock)
    assert clock.now <= 1.0 + 0.02
    assert curve.status is Status.OUT_OF_TIME


def test_progress_runs_from_nothing_to_nearly_all() -> None:
    fractions: list[float] = []
    range_test(bowl(1.0), steps=20, progress=lambda fraction, note: fractions.append(fraction))
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert 0.6 < fractions[-1] < 1.0


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_the_zoo_is_measured_and_left_as_it_was(specimen: Specimen) -> None:
    task = specimen.make()
    results: list[LRCurve] = []
    assert_world_unchanged(task, lambda: results.append(range_test(task, steps=12, repeats=2)))
    assert results[0].status in (Status.OK, Status.DISAGREE, Status.AT_THE_END)
    assert results[0].batch_size == task.default_batch_size
    for point in results[0].points:
        assert point.low <= point.loss <= point.high


def test_a_model_with_one_parameter_is_measured_at_a_batch_of_one() -> None:
    curve = range_test(bowl(1.0, batch_size=1, examples=2), low=1e-3, steps=60)
    assert curve.batch_size == 1
    assert curve.edge == pytest.approx(2.0, rel=0.2)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(TaskError, match=r"got batch_size=41 and a cap of 40"):
        range_test(bowl(1.0), batch_size=41)


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_a_batch_size_that_counts_nothing_is_refused(size: Any) -> None:
    with pytest.raises(TaskError, match=f"whole number of at least 1, got {size!r}"):
        range_test(bowl(1.0), batch_size=size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.0}, "got low=0.0, high=10.0"),
        ({"low": 2.0, "high": 1.0}, "got low=2.0, high=1.0"),
        ({"high": math.inf}, "high=inf"),
        ({"low": math.nan}, "low=nan"),
        ({"steps": 9}, "got steps=9"),
        ({"repeats": 0}, "got repeats=0"),
        ({"time_budget_seconds": 0.0}, "got time_budget_seconds=0.0"),
        ({"time_budget_seconds": math.nan}, "got time_budget_seconds=nan"),
    ],
    ids=lambda value: str(value),
)
def test_arguments_out_of_range_are_refused_with_their_value(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        range_test(bowl(1.0), **options)


def test_more_steps_and_repeats_find_the_same_edge() -> None:
    edges = [
        range_test(bowl(1.0), low=1e-3, steps=steps, repeats=repeats).edge
        for steps, repeats in itertools.product((40, 120), (1, 4))
    ]
    assert edges == pytest.approx([2.0] * 4, rel=0.25)
