"""What is in doubt, and what is not. Oracle: quantiles of the draws by hand (rung 1)."""

from dataclasses import replace

import numpy as np
import pytest

from rightbatch.plan.candidates import Way, draw_times
from rightbatch.results import ThroughputProfile
from tests.plan.made_up import throughput


def loading(each: float) -> ThroughputProfile:
    """A step takes 1 ms, from 0.5 to 2 ms; loading comes on top of it."""
    plain = throughput()
    points = tuple(
        replace(
            p,
            step_seconds=0.001,
            low=0.0005,
            high=0.002,
            load_seconds=each * p.batch_size,
            total_seconds=0.001 + each * p.batch_size,
        )
        for p in plain.points
    )
    return replace(plain, points=points)


@pytest.mark.parametrize(("each", "low", "high"), [(0.0, 0.0005, 0.002), (0.01, 0.6405, 0.642)])
def test_the_doubt_of_computing_is_not_that_of_loading(
    each: float, low: float, high: float
) -> None:
    """640 ms of loading 64 examples are as certain as ever."""
    ways = (Way(64, 64, 1, True),)
    drawn = draw_times(ways, loading(each), np.zeros(20_000), np.random.default_rng(0))
    ends = np.quantile(drawn, [0.025, 0.975])
    assert np.log(ends[1] / ends[0]) == pytest.approx(np.log(high / low), rel=0.05)
