"""Oracles: the quadratic task, whose weights after n steps are known; averages by hand."""

import math
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rightbatch import Task, supervised
from rightbatch._time import Deadline, no_progress
from rightbatch.noise import track_noise
from rightbatch.noise.estimators import NoiseEstimate
from rightbatch.noise.track import _Limit, _train_until, average_over_minimal_steps, fit_trend
from rightbatch.results import NoisePoint, Status
from rightbatch.testing import FakeClock, QuadraticTask


def estimate(grad_sq: float, trace_cov: float, doubt: float = 0.0) -> NoiseEstimate:
    return NoiseEstimate(
        grad_sq=grad_sq,
        trace_cov=trace_cov,
        var_grad_sq=doubt,
        var_trace_cov=0.0,
        covariance=0.0,
        quadratic_share=0.5,
        units=100.0,
        micro_batches=50,
    )


def test_the_probes_see_the_weights_of_the_run() -> None:
    """Full-batch descent on the quadratic: |G|^2 shrinks by (1 - lr)^2 a step, exactly."""
    quadratic = QuadraticTask(
        grad_sq=4.0, trace_cov=10.0, examples=32, batch_size=32, learning_rate=0.1
    )
    track = track_noise(quadratic.task, steps=16, micro_batch_size=1, precision=0.001)
    assert [p.step for p in track.points] == [0, 1, 2, 6, 16]
    assert [p.examples_seen for p in track.points] == [32 * p.step for p in track.points]
    for point in track.points:
        assert point.grad_sq == pytest.approx(4.0 * 0.9 ** (2 * point.step), rel=1e-6)
        assert point.trace_cov == pytest.approx(10.0 * 32 / 31, rel=1e-6)
    values = [p.noise_scale for p in track.points]
    assert values == sorted(values)  # type: ignore[type-var]
    assert track.learning_rate == 0.1
    assert track.batch_size == 32
    assert track.status is Status.OK


def test_the_trend_is_the_slope_against_the_loss() -> None:
    points = tuple(
        NoisePoint(
            step=i,
            examples_seen=i,
            loss=loss,
            noise_scale=100 * loss**-1.5,
            low=1.0,
            high=1e6,
            grad_sq=1.0,
            trace_cov=1.0,
        )
        for i, loss in enumerate([2.0, 1.0, 0.5, 0.25])
    )
    assert fit_trend(points) == pytest.approx(-1.5, rel=1e-9)
    assert fit_trend(points[:2]) is None


def test_a_run_average_weighs_each_step_by_its_progress() -> None:
    """B = 10. First half: B_noise 10, so half a minimal step a step; second: 90, a tenth."""
    steps = [0, 100]
    average, low, high = average_over_minimal_steps(
        steps, [estimate(1.0, 10.0), estimate(1.0, 90.0)], 10
    )
    assert average == pytest.approx((0.5 * 10 + 0.1 * 90) / (0.5 + 0.1), rel=1e-12)
    assert low == pytest.approx(average, rel=1e-9)
    assert high == pytest.approx(average, rel=1e-9)


def test_a_probe_that_resolved_nothing_takes_part_with_its_doubt() -> None:
    clear, hidden = estimate(1.0, 10.0, 1e-6), estimate(-0.1, 10.0, 0.04)
    average, low, high = average_over_minimal_steps([0, 10], [clear, hidden], 10)
    assert average is not None
    assert low < average
    assert high is None or high > 1.3 * average


def test_nothing_resolved_is_bounded_below_only() -> None:
    average, low, high = average_over_minimal_steps([0, 5], [estimate(-0.1, 10.0, 0.1)] * 2, 10)
    assert average is None
    assert high is None
    assert low > 0


def test_a_time_budget_is_kept_and_shared() -> None:
    quadratic = QuadraticTask(grad_sq=4.0, trace_cov=10.0, examples=512, batch_size=16)
    clock = FakeClock()
    step = quadratic.task.step

    def slow_step(batch: torch.Tensor) -> torch.Tensor:
        clock.advance(0.1)
        return step(batch)

    quadratic.task.step = slow_step  # type: ignore[method-assign]
    track = track_noise(quadratic.task, time_budget_seconds=10.0, clock=clock)
    # Half of the ten seconds is training, at a tenth of a second a step.
    assert track.points[-1].step == pytest.approx(50, abs=1)
    assert len(track.points) >= 5
    assert clock() <= 10.0


def test_a_spent_budget_still_gives_the_first_probe() -> None:
    quadratic = QuadraticTask(grad_sq=4.0, trace_cov=10.0, examples=512, batch_size=16)
    clock = FakeClock()

    def tick() -> float:
        clock.advance(1.0)
        return clock()

    track = track_noise(quadratic.task, time_budget_seconds=0.5, clock=tick)
    assert [p.step for p in track.points] == [0]


def test_a_diverging_run_keeps_the_probes_before() -> None:
    quadratic = QuadraticTask(
        grad_sq=4.0, trace_cov=1.0, examples=64, batch_size=64, learning_rate=1e6
    )
    track = track_noise(quadratic.task, steps=64, micro_batch_size=8)
    assert track.status is Status.DIVERGED
    assert 1 <= len(track.points) < 8
    assert all(math.isfinite(p.loss) for p in track.points)


def test_the_batch_size_of_the_run_can_be_chosen() -> None:
    quadratic = QuadraticTask(examples=64, batch_size=8)
    track = track_noise(quadratic.task, steps=4, batch_size=32, micro_batch_size=4)
    assert track.batch_size == 32
    assert track.points[-1].examples_seen == 4 * 32


def test_the_same_seed_gives_the_same_track() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 2))
    data = [(torch.randn(3), torch.randn(2)) for _ in range(53)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    task = Task(model, optimizer, data, supervised(F.mse_loss), batch_size=8)
    first = track_noise(task, steps=8, micro_batch_size=4)
    torch.randn(5)
    torch.manual_seed(1)
    again = track_noise(task, steps=8, micro_batch_size=4)
    torch.manual_seed(1)
    assert track_noise(task, steps=8, micro_batch_size=4) == again
    assert [p.step for p in first.points] == [p.step for p in again.points]


def test_weights_that_overflow_in_the_last_step_are_a_divergence() -> None:
    """The loss before the step is finite; the weights after it are not."""
    model = nn.Linear(1, 1, bias=False).to(torch.float32)
    data = [(torch.full((1,), 1e3, dtype=torch.float32), torch.zeros(1, dtype=torch.float32))] * 8
    task = Task(
        model,
        torch.optim.SGD(model.parameters(), lr=1e36),
        data,
        supervised(F.mse_loss),
        batch_size=2,
    )
    track = track_noise(task, steps=1, probes=2, micro_batch_size=1)
    assert track.status is Status.DIVERGED
    assert len(track.points) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"batch_size": -5}, "`batch_size` must be at least 1, got -5"),
        ({"batch_size": 65}, "got 65 where 64 is the most"),
        ({"probes": 0}, "`probes` must be at least 1, got 0"),
        ({"precision": 0.0}, r"`precision` must be positive, got 0\.0"),
        ({"time_budget_seconds": 0.0}, r"`time_budget_seconds` must be positive, got 0\.0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        track_noise(QuadraticTask(examples=64).task, **options)  # type: ignore[arg-type]


def test_the_run_ends_when_there_is_nothing_left_to_learn() -> None:
    """Full-batch descent: the loss falls to half of tr(Sigma) only, far below 5 % of the first."""
    quadratic = QuadraticTask(
        grad_sq=1e4, trace_cov=1.0, examples=16, batch_size=16, learning_rate=0.5
    )
    track = track_noise(quadratic.task, steps=64, micro_batch_size=2)
    assert track.points[-1].step < 64
    learned = 0.05 * track.points[0].loss
    assert track.points[-1].loss < learned <= track.points[-2].loss


def test_training_takes_as_long_as_the_device_needs() -> None:
    """Steps are begun at once; looking at their loss waits five seconds for it."""
    clock = FakeClock()

    class Late:
        def __abs__(self) -> float:
            clock.advance(5.0)
            return 1.0

    task: Any = SimpleNamespace(step=lambda batch: Late())
    limit = _Limit(10, Deadline(math.inf, clock))
    goes_on = _train_until(
        task, repeat(None), 1.0, limit, first_loss=1.0, clock=clock, progress=no_progress
    )
    assert goes_on
    assert limit.step == 10
    assert limit.trained_seconds == 5.0
