"""Oracles: gradient descent on quadratic bowls, whose best rate is known; fake clock for time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.errors import TaskError
from rightbatch.lr import race
from rightbatch.results import LRRace, Status
from rightbatch.task import Task, supervised
from tests.laws import assert_world_unchanged
from tests.lr.doubles import Bowl, LoggingSGD, TickingClock, bowl, numbers
from tests.zoo import WORKING, Specimen, rows


def raced(
    *curvatures: float, seconds: float = 30.0, lr: float = 0.1, tick: float = 0.01, **options: Any
) -> LRRace:
    """Race on a bowl, a loss a hundredth of a second."""
    clock = TickingClock(tick)
    task = bowl(*curvatures, clock=clock, lr=lr)
    return race(task, time_budget_seconds=seconds, clock=clock, **options)


@pytest.mark.parametrize("curvature", [0.02, 1.0, 300.0])
@pytest.mark.parametrize("centre", [0.3, 1.0, 1.4, 2.0])
def test_the_inverse_curvature_wins(curvature: float, centre: float) -> None:
    """Newton's step: a rate of 1/curvature is at the bottom at once."""
    result = raced(curvature, centre=centre / curvature)
    assert result.suggestion is not None
    # The grid is a factor of two wide; rates added next to the winner halve that factor.
    assert 2**-0.25 - 1e-9 <= result.suggestion * curvature <= 2**0.25 + 1e-9
    assert result.status is Status.OK


def test_of_given_rates_the_best_wins_and_none_is_added() -> None:
    rates = [0.125, 0.25, 0.5, 1.0, 1.5]
    result = raced(1.0, rates=rates)
    assert [entry.learning_rate for entry in result.entries] == rates
    assert result.suggestion == 1.0
    assert result.status is Status.OK


def test_of_two_curvatures_the_balanced_rate_wins() -> None:
    """2 / (smallest + largest) shrinks both directions by the same factor, here a half."""
    result = raced(1.0, 3.0, rates=[0.125, 0.25, 0.5, 0.6, 0.7])
    assert result.suggestion == 0.5


@pytest.mark.parametrize("centre", [1 / 64, 15.2, 100.0])
def test_a_centre_that_is_far_off_is_left_by_adding_rates(centre: float) -> None:
    """With 15.2 only the lowest rate, 1.9, does not diverge; with 100 none."""
    result = raced(1.0, centre=centre, seconds=60.0)
    assert result.suggestion == pytest.approx(1.0, rel=0.2)
    assert len(result.entries) > 6


def test_an_upper_limit_bounds_the_first_rates_only() -> None:
    result = raced(1.0, centre=1.0, upper=0.25)
    rates = [entry.learning_rate for entry in result.entries]
    assert rates[0] == 0.25 / 32
    assert result.suggestion is not None
    assert result.suggestion > 0.25


def test_a_winner_at_the_end_of_given_rates_is_said_to_be() -> None:
    assert raced(1.0, rates=[0.25, 0.5, 1.0]).status is Status.AT_THE_END
    assert raced(1.0, rates=[0.9, 1.3, 1.6]).status is Status.AT_THE_END


def test_a_race_that_ends_while_the_loss_falls_suggests_half_the_winner() -> None:
    result = raced(1.0, rates=[0.002, 0.004, 0.008, 0.016], seconds=3.0)
    assert result.suggestion == 0.008
    assert result.status is Status.OUT_OF_TIME


def test_rates_that_are_equal_in_all_but_name_cannot_be_told_apart() -> None:
    """A loss that does not depend on the weights: whoever wins has won nothing."""
    clock = TickingClock()
    model = Bowl([1.0])

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        clock.tick()
        return batch.mean() + 1 + 0 * model.weight.sum()  # type: ignore[operator]

    task = Task(model, torch.optim.SGD(model.parameters(), lr=1.0), numbers(99), loss, batch_size=4)
    result = race(task, rates=[0.1, 0.2, 0.4, 0.8], time_budget_seconds=5.0, clock=clock)
    assert result.low is not None
    assert result.high is not None
    assert result.low <= 0.1
    assert result.high == 0.8


def test_a_clear_winner_is_told_from_the_others() -> None:
    result = raced(1.0, rates=[0.01, 0.1, 1.0, 1.99])
    assert (result.low, result.suggestion, result.high) == (1.0, 1.0, 1.0)


def test_everything_diverges_and_says_so() -> None:
    result = raced(1.0, rates=[3.0, 30.0, 1e200])
    assert result.suggestion is None
    assert (result.low, result.high) == (None, None)
    assert result.status is Status.AT_THE_END
    assert [entry.loss for entry in result.entries] == [None] * 3


def test_rates_that_diverge_to_nan_or_to_an_error_are_dropped() -> None:
    clock = TickingClock()
    model = Bowl([1.0])

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        clock.tick()
        weight: Tensor = model.weight  # type: ignore[assignment]
        if not weight.isfinite().all():
            raise ValueError("a distribution refuses infinity")
        return 5 * weight.square().sum() + 1e-9

    task = Task(model, torch.optim.SGD(model.parameters(), lr=1.0), numbers(99), loss, batch_size=4)
    result = race(task, rates=[0.05, 0.1, 1e308], time_budget_seconds=5.0, clock=clock)
    assert [entry.loss is None for entry in result.entries] == [False, False, True]
    assert result.suggestion == 0.1


def noisy_regression(clock: TickingClock, optimizer: str = "SGD", **options: Any) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        clock.tick()
        return F.mse_loss(model(batch[0]), batch[1])

    made = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05)
    return Task(model, made, rows(200), loss, batch_size=8, **options)


def race_again(seed: int) -> LRRace:
    clock = TickingClock()
    task = noisy_regression(clock)
    torch.manual_seed(seed + 100)  # must not matter
    return race(task, centre=0.05, time_budget_seconds=8.0, clock=clock, seed=seed)


def test_a_seed_repeats_a_race_bit_for_bit() -> None:
    first = race_again(1)
    assert race_again(1) == first
    assert race_again(2) != first


def test_without_a_centre_todays_rate_is_scaled_to_the_batch_size() -> None:
    """SGD: linear in the batch size. Adam: its root. The grid is centred there: 1/8 to 4."""
    for optimizer, factor in (("SGD", 4.0), ("Adam", 2.0)):
        clock = TickingClock()
        task = noisy_regression(clock, optimizer)
        result = race(task, batch_size=32, time_budget_seconds=8.0, clock=clock)
        rates = {round(entry.learning_rate / (0.05 * factor), 6) for entry in result.entries}
        assert rates >= {0.125, 0.25, 0.5, 1.0, 2.0, 4.0}
        assert result.batch_size == 32


def test_groups_keep_their_ratios() -> None:
    rates: list[list[float]] = []
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    clock = TickingClock()
    optimizer = LoggingSGD(
        [
            {"params": model[0].parameters(), "lr": 0.02},
            {"params": model[2].parameters(), "lr": torch.tensor(0.1)},
        ]
    )
    optimizer.on_step = rates.append

    def loss(model: nn.Module, batch: Any) -> Tensor:
        clock.tick()
        return supervised(F.mse_loss)(model, batch)

    task = Task(model, optimizer, rows(), loss, batch_size=4)
    race(task, rates=[0.01, 0.05], time_budget_seconds=2.0, clock=clock)
    assert {round(second / first, 9) for first, second in rates} == {5.0}
    assert {0.01, 0.05} <= {first for first, _ in rates}


@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.0, 10.0, 40.0])
@pytest.mark.parametrize("tick", [0.003, 0.01, 0.04])
def test_the_time_budget_is_kept_and_used(seconds: float, tick: float) -> None:
    clock = TickingClock(tick)
    task = bowl(1e-4, clock=clock)  # falls so slowly that the race never settles
    race(task, centre=0.01, time_budget_seconds=seconds, clock=clock)
    calls = seconds / tick
    assert clock.now <= 1.15 * seconds + 16 * tick
    assert calls < 200 or clock.now >= 0.7 * seconds


def test_steps_that_become_slower_than_planned_do_not_break_the_budget() -> None:
    clock = TickingClock(0.003)

    class Tiring(TickingClock):
        def tick(self) -> None:
            clock.tick_seconds = 0.003 if clock.calls < 200 else 0.02
            clock.tick()

    race(bowl(1e-4, clock=Tiring()), centre=0.01, time_budget_seconds=10.0, clock=clock)
    assert 7.0 <= clock.now <= 11.5


def test_a_race_that_settles_gives_its_time_back() -> None:
    clock = TickingClock(0.001)
    race(bowl(1.0, clock=clock), rates=[0.5, 1.0], time_budget_seconds=1000.0, clock=clock)
    assert clock.now < 5.0


@pytest.mark.parametrize("seconds", [0.001, 0.2])
def test_with_time_for_hardly_a_step_the_status_says_so(seconds: float) -> None:
    result = raced(1.0, seconds=seconds, tick=0.1, centre=0.5)
    assert result.status is Status.OUT_OF_TIME
    assert result.suggestion is None
    assert all(entry.steps == 0 for entry in result.entries)


def test_with_little_time_fewer_rates_start() -> None:
    counts = [len(raced(1e-4, seconds=s, centre=0.1).entries) for s in (0.3, 0.4, 1.0)]
    assert counts == [2, 3, 4]
    assert len(raced(1e-4, seconds=10.0, centre=0.1).entries) >= 6


def test_entries_say_how_far_each_rate_ran_and_how_well() -> None:
    result = raced(0.02, rates=[0.1, 1.0, 2.0, 10.0, 20.0], seconds=5.0)
    assert [e.learning_rate for e in result.entries] == [0.1, 1.0, 2.0, 10.0, 20.0]
    steps = [e.steps for e in result.entries]
    assert steps[0] < steps[-1]  # the slowest left first
    for entry in result.entries:
        exact = 0.01 * (1 - 0.02 * entry.learning_rate) ** (2 * entry.steps) + 1e-9
        assert entry.loss == pytest.approx(exact, rel=1e-9)
        assert entry.low == pytest.approx(entry.high)  # every held-out batch has the same loss


def test_progress_ends_near_one_and_never_goes_back() -> None:
    clock, fractions = TickingClock(), []
    race(
        bowl(1e-4, clock=clock),
        time_budget_seconds=5.0,
        clock=clock,
        progress=lambda fraction, note: fractions.append(fraction),
    )
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert 0.7 < fractions[-1] <= 1.0


class CallClock:
    """Every look at the clock takes a millisecond: races of any task, in bounded work."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_the_zoo_is_raced_and_left_as_it_was(specimen: Specimen) -> None:
    task = specimen.make()
    results: list[LRRace] = []

    def run() -> None:
        results.append(race(task, time_budget_seconds=0.1, clock=CallClock()))

    assert_world_unchanged(task, run)
    finished = [entry for entry in results[0].entries if entry.loss is not None]
    assert len(finished) >= 2
    for entry in finished:
        assert entry.low <= entry.loss <= entry.high  # type: ignore[operator]


def test_a_full_batch_is_raced_without_held_out_examples() -> None:
    clock = TickingClock()
    task = bowl(1.0, clock=clock, examples=8, batch_size=8)
    result = race(task, rates=[0.5, 1.0, 1.5], time_budget_seconds=5.0, clock=clock)
    assert result.suggestion == 1.0


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(TaskError, match=r"got batch_size=41 and a cap of 40"):
        race(bowl(1.0), batch_size=41)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": []}, r"got rates=\[\]"),
        ({"rates": [0.1, 0.1]}, r"got rates=\[0.1, 0.1\]"),
        ({"rates": [0.1, -0.2]}, "`rates` must be positive and finite, got -0.2"),
        ({"centre": 0.0}, "`centre` must be positive and finite, got 0.0"),
        ({"upper": math.nan}, "`upper` must be positive and finite, got nan"),
        ({"time_budget_seconds": 0.0}, "got time_budget_seconds=0.0"),
        ({"time_budget_seconds": math.inf}, "got time_budget_seconds=inf"),
        ({"eta": 1}, "got eta=1"),
    ],
    ids=lambda value: str(value),
)
def test_arguments_out_of_range_are_refused_with_their_value(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        race(bowl(1.0), **options)
