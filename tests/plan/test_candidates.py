"""Ways to train and the draws of what is in doubt. Oracle: by hand (rung 1), and quantiles."""

from dataclasses import replace

import numpy as np
import pytest

from rightbatch.plan.candidates import draw_critical, list_ways
from tests.plan.made_up import critical, throughput

DRAWS = 20_000


@pytest.mark.parametrize(
    ("low", "high", "bottom", "top"),
    [
        (50.0, 1000.0, 50.0, 1000.0),
        (90.0, 100.0, 90.0, 100.0),
        (50.0, None, 50.0, 1e5),  # open: a thousandfold doubt
        (0.0, 1000.0, 0.1, 1000.0),  # as good as open below
    ],
)
def test_the_interval_of_the_noise_is_that_of_its_draws(
    low: float, high: float | None, bottom: float, top: float
) -> None:
    drawn = draw_critical(critical(100.0, low, high), DRAWS, np.random.default_rng(0))
    least, middle, most = np.quantile(drawn, [0.025, 0.5, 0.975])
    assert middle == pytest.approx(100.0, rel=0.1)
    assert (least, most) == (pytest.approx(bottom, rel=0.15), pytest.approx(top, rel=0.15))


def test_without_a_value_anything_above_the_lower_end_may_be() -> None:
    noise = replace(critical(None, 20.0, None), value=None)
    drawn = draw_critical(noise, DRAWS, np.random.default_rng(0))
    assert drawn.min() >= 20.0
    assert np.quantile(drawn, [0.25, 0.75]) == pytest.approx([112.5, 3557.0], rel=0.1)


def test_of_equally_fast_micro_batches_the_larger_is_taken() -> None:
    """Without a fixed cost two passes of 16 take as long as one of 32."""
    ways = list_ways(
        throughput(alpha=0.0, beta=2.0**-10, sizes=(8, 16, 32)),
        None,
        devices=1,
        examples=None,
        current_batch_size=None,
    )
    micros = {way.batch_size: way.micro_batch_size for way in ways}
    assert micros[16] == 16
    assert {micros[size] for size in micros if size >= 32} == {32}


@pytest.mark.parametrize(("examples", "largest"), [(64, 64), (63, 32), (65, 64)])
def test_a_batch_may_be_the_whole_data_set_and_no_more(examples: int, largest: int) -> None:
    ways = list_ways(
        throughput(sizes=(8, 16, 32, 64)),
        None,
        devices=1,
        examples=examples,
        current_batch_size=None,
    )
    assert max(way.batch_size for way in ways) == largest
