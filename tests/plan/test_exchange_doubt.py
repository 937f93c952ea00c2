"""The doubt of measured communication, and what computing hides of it. Oracle: by hand (rung 1)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rightbatch.plan import plan
from rightbatch.plan.candidates import Way, draw_times
from rightbatch.plan.step_model import Exchange, measured_exchange
from rightbatch.results import Communication, FrontPoint, Plan, Status
from tests.plan.made_up import critical, facts, throughput

DRAWS = 20_000


def measured(**changes: Any) -> Communication:
    """50 ms alone, from 4 to 600: repetitions disagree."""
    plain = Communication(
        world_size=2,
        gradient_bytes=4,
        allreduce_seconds=0.05,
        low=0.004,
        high=0.6,
        no_sync_step_seconds=None,
        sync_step_seconds=None,
        gbps=1.0,
        status=Status.DISAGREE,
    )
    return replace(plain, **changes)


def made(devices: int = 2, **changes: Any) -> Plan:
    return plan(throughput(), critical(300.0), facts(), measured(**changes), devices=[1, devices])


OVERLAP: dict[str, Any] = {"no_sync_step_seconds": 0.026, "sync_step_seconds": 0.027}


@pytest.mark.parametrize(
    "exchange",
    [Exchange(0.05, 0.004, 0.6), Exchange(0.0, 0.0, 0.05), Exchange(0.05, 0.01, 0.05)],
)
def test_draws_spread_as_the_interval_says(exchange: Exchange) -> None:
    """A pass of 10 ms + 16 x 1 ms; what computing hides entirely may still cost something."""
    ways = (Way(32, 16, 1, True, 2, exchange), Way(64, 16, 1, True, 4, exchange))
    drawn = draw_times(ways, throughput(), np.zeros(DRAWS), np.random.default_rng(0)) - 0.026
    ends = np.quantile(drawn, [0.025, 0.5, 0.975], axis=0)
    expected = [exchange.low, exchange.seconds, exchange.high]
    assert ends[:, 0] == pytest.approx(expected, rel=0.05, abs=4e-4)
    assert drawn.min() >= -1e-12
    assert (drawn[:, 0] == drawn[:, 1]).all()  # one measurement, one error


def test_the_doubt_of_communication_reaches_the_run() -> None:
    def point(**changes: Any) -> FrontPoint:
        inputs = (throughput(), critical(300.0), facts(), measured(**changes))
        return plan(*inputs, devices=2, steps_today=1e4).front[0]

    exact, doubtful = point(low=0.05, high=0.05), point()
    assert exact.seconds_low == exact.seconds_high
    steps = 1e4 * (1 + 300 / doubtful.batch_size) / (1 + 300 / 16)
    one_pass = 0.01 + 0.001 * doubtful.batch_size / 2
    assert doubtful.seconds_low == pytest.approx(steps * (one_pass + 0.004), rel=0.05)
    assert doubtful.seconds == pytest.approx(steps * (one_pass + 0.05), rel=0.05)
    assert doubtful.seconds_high == pytest.approx(steps * (one_pass + 0.6), rel=0.05)


def test_what_computing_hides_is_not_counted() -> None:
    """A step takes 27 ms with averaging and 26 without: 1 ms of the 50 is left."""
    for world_size, ratio in ((2, 1.0), (4, 1.5)):
        found = measured_exchange(measured(**OVERLAP), world_size)
        assert found.seconds == pytest.approx(0.001 * ratio)
        assert (found.low, found.high) == (found.seconds, pytest.approx(0.05 * ratio))
    result = made(**OVERLAP)
    counted = [c.communication_seconds for c in result.candidates if c.devices == 2]
    assert counted == pytest.approx([0.001] * len(counted))
    assert result.devices == 2
    assert made().devices == 1


@pytest.mark.parametrize(
    ("with_sync", "seconds", "low", "high"), [(0.025, 0.0, 0.0, 0.05), (0.1, 0.074, 0.05, 0.074)]
)
def test_the_ends_are_in_order_whatever_was_timed(
    with_sync: float, seconds: float, low: float, high: float
) -> None:
    found = measured_exchange(measured(no_sync_step_seconds=0.026, sync_step_seconds=with_sync), 2)
    assert (found.seconds, found.low, found.high) == pytest.approx((seconds, low, high))


def test_repetitions_that_disagree_are_warned_of() -> None:
    (warning,) = made().warnings
    assert warning.startswith("Averaging gradients took 4 ms to 600 ms when it was measured")
    assert made(status=Status.OK).warnings == ()
    assert plan(throughput(), critical(300.0), facts(), measured()).warnings == ()


@pytest.mark.parametrize(
    ("devices", "changes", "words"),
    [
        (2, {}, "takes 50 ms (4 ms to 600 ms) of each step"),
        (2, {}, "measured, with no overlap with computing: at most 600 ms."),
        (4, {}, "carried over from 2 devices, with no overlap with computing."),
        (2, OVERLAP, "takes 1 ms (1 ms to 50 ms) of each step"),
        (2, OVERLAP, "measured beside computing; the other end is what it takes alone."),
        (8, {}, "as a ring scales and no overlap with computing: it was not measured."),
        (8, OVERLAP, "as a ring scales: it was not measured."),
    ],
)
def test_the_reason_says_what_its_numbers_are_of(
    devices: int, changes: dict[str, Any], words: str
) -> None:
    result = plan(throughput(), critical(300.0), facts(), measured(**changes), devices=devices)
    (reason,) = (r for r in result.reasons if r.startswith("Adding up the gradients"))
    assert words in reason
