"""Oracle: the slow definition, which stores every step and forms the blocks at the end."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rightbatch.noise.running import RunningNoise

Floats = NDArray[np.float64]

EPSILON = 1e-12
STEPS = 41  # ten blocks, and one that is open

steps = st.lists(
    st.tuples(
        st.floats(0.5, 20.0),  # tr(Sigma)
        st.floats(-3.0, 3.0),  # |G|^2
        st.floats(0.1, 50.0),  # weight
        st.floats(0.5, 1.0),  # keep
    ),
    min_size=1,
    max_size=30,
)


def drawn(seed: int, count: int = STEPS) -> Floats:
    """Steps of random parts, weights and forgetting, [count, 4]."""
    draw = np.random.default_rng(seed)
    return np.column_stack(
        [
            draw.uniform(5, 15, count),
            draw.normal(1, 2, count),
            draw.uniform(3, 40, count),
            draw.uniform(0.9, 1, count),
        ]
    )


def added(rows: Floats, running: RunningNoise | None = None) -> RunningNoise:
    running = running or RunningNoise()
    for trace_cov, grad_sq, weight, keep in rows:
        running.add([trace_cov], [grad_sq], weight=weight, keep=keep)
    return running


def slowly(rows: Floats) -> tuple[Floats, Floats, float]:
    """Mean of both parts, their covariance [2, 2] and the number of blocks, from all steps."""
    parts, weights, keeps = rows[:, :2], rows[:, 2], rows[:, 3]
    # What a step counts in the end: its weight, times every later step's `keep`.
    counts = np.array([w * math.prod(keeps[i + 1 :]) for i, w in enumerate(weights)])
    mean = counts @ parts / counts.sum()
    blocks = [slice(i, i + 4) for i in range(0, len(rows), 4)]
    block_weights = np.array([counts[block].sum() for block in blocks])
    sums = np.array([counts[block] @ parts[block] for block in blocks])
    n = float(block_weights.sum() ** 2 / np.square(block_weights).sum())
    deviations = sums - block_weights[:, None] * mean
    if n < 3:
        return mean, np.full((2, 2), math.inf), n
    return mean, n / (n - 1) * deviations.T @ deviations / block_weights.sum() ** 2, n


def assert_equals_the_definition(rows: Floats) -> None:
    estimate = added(rows).estimate()
    mean, covariance, n = slowly(rows)
    # Rounding in the expanded square is relative to the squares, not to their difference.
    size = EPSILON * float(np.square(rows[:, :2]).max())
    assert [estimate.trace_cov, estimate.grad_sq] == pytest.approx(mean, rel=EPSILON, abs=size)
    assert estimate.var_trace_cov == pytest.approx(covariance[0, 0], rel=EPSILON, abs=size)
    assert estimate.var_grad_sq == pytest.approx(covariance[1, 1], rel=EPSILON, abs=size)
    assert estimate.degrees == pytest.approx(max(1.0, n - 1), rel=EPSILON)
    if n >= 3:
        assert estimate.covariance == pytest.approx(covariance[0, 1], rel=EPSILON, abs=size)


@given(steps)
def test_three_sums_equal_the_list_of_blocks(rows: list[tuple[float, ...]]) -> None:
    n = slowly(np.array(rows))[2]
    if abs(n - 3) > 1e-9:  # at 3 itself, rounding decides whether there is an interval
        assert_equals_the_definition(np.array(rows))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 12, 13, STEPS, 200])
def test_open_and_full_blocks_equal_the_list_of_blocks(count: int) -> None:
    assert_equals_the_definition(drawn(seed=count, count=count))


def test_blocks_by_hand() -> None:
    """Three blocks of weight 4, with means 1, 2, 3: variance of the mean 1/3, two degrees."""
    rows = np.array([[10.0, mean, 1.0, 1.0] for mean in (1, 2, 3) for _ in range(4)])
    estimate = added(rows).estimate()
    assert estimate.grad_sq == pytest.approx(2.0)
    assert estimate.var_grad_sq == pytest.approx(1 / 3)
    assert estimate.var_trace_cov == pytest.approx(0.0, abs=EPSILON)
    assert estimate.degrees == pytest.approx(2.0)
    assert estimate.units == 12.0


def test_steps_that_follow_each_other_need_not_be_independent() -> None:
    """Each value four times over tells no more than once: only blocks see that."""
    once = drawn(seed=1, count=20)[:, 1]
    fourfold = np.array([[10.0, value, 1.0, 1.0] for value in np.repeat(once, 4)])
    found = added(fourfold).estimate().var_grad_sq
    assert found == pytest.approx(np.var(once, ddof=1) / 20, rel=1e-10)


def test_a_weight_counts_examples() -> None:
    """Parts are weighted, not their ratios: (3 * 9 + 1 * 5) / (3 * 1 - 1 * 1)."""
    running = RunningNoise()
    running.add([9.0], [1.0], weight=3.0)
    running.add([5.0], [-1.0], weight=1.0)
    assert running.estimate().ratio == pytest.approx(32 / 2)


def test_forgetting_is_a_smaller_weight() -> None:
    """`keep` at the second step halves the first: as if it had weighed half from the start."""
    kept, light = RunningNoise(), RunningNoise()
    kept.add([9.0], [1.0], weight=2.0)
    kept.add([5.0], [4.0], weight=1.0, keep=0.5)
    light.add([9.0], [1.0], weight=1.0)
    light.add([5.0], [4.0], weight=1.0)
    assert kept.estimate() == light.estimate()


def test_forgetting_everything_leaves_the_last_step() -> None:
    rows = drawn(seed=3, count=9)
    rows[:, 3] = 1e-30
    found = added(rows).estimate()
    assert [found.trace_cov, found.grad_sq] == pytest.approx(rows[-1, :2], rel=EPSILON)


def test_negative_parts_are_kept() -> None:
    """Clamping them would bias the mean: (-1 + 3) / 2."""
    assert added(np.array([[2.0, -1.0, 1.0, 1.0], [2.0, 3.0, 1.0, 1.0]])).estimate().grad_sq == 1.0


def test_without_forgetting_no_step_is_worth_more_than_another() -> None:
    rows = drawn(seed=2)
    rows[:, 3] = 1.0
    whole = added(rows).means()
    turned = added(rows[::-1]).means()
    assert np.allclose(whole, turned, rtol=EPSILON, atol=0)
    rows[:, 3] = 0.9
    assert abs(added(rows).means()[1] - whole[1]) > 0.01
    assert added(rows).estimate().units == pytest.approx(
        sum(w * 0.9**age for age, w in enumerate(rows[::-1, 2]))
    )


@pytest.mark.parametrize("count", [1, 4, 8])
def test_fewer_than_three_blocks_give_no_interval(count: int) -> None:
    estimate = added(np.tile([10.0, 2.0, 1.0, 1.0], (count, 1))).estimate()
    assert estimate.ratio == pytest.approx(5.0)
    assert estimate.interval() == (0.0, None)
    assert math.isinf(estimate.var_grad_sq)
    assert estimate.covariance == 0.0


def test_three_blocks_give_an_interval() -> None:
    rows = np.array([[100.0 + i % 3, 10.0 + i % 2, 1.0, 1.0] for i in range(12)])
    low, high = added(rows).estimate().interval()
    assert high is not None
    assert 0 < low < 101 / 10.5 < high < 11


def test_strong_forgetting_leaves_too_few_blocks_however_long_the_run() -> None:
    rows = drawn(seed=5, count=200)
    rows[:, 3] = 0.5
    assert added(rows).estimate().interval() == (0.0, None)


def test_steps_without_scatter_have_variances_of_zero_and_not_below() -> None:
    """0.1 is not a binary number: the expanded square rounds to either side of zero."""
    estimate = added(np.tile([0.1, 0.3, 7.0, 0.97], (STEPS, 1))).estimate()
    assert 0 <= estimate.var_grad_sq < 1e-15
    assert 0 <= estimate.var_trace_cov < 1e-15


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", [0, 1])
def test_what_is_not_finite_is_refused_and_changes_nothing(bad: float, part: int) -> None:
    running = added(drawn(seed=6))
    before = running.state_dict()
    values = [2.0, 3.0]
    values[part] = bad
    with pytest.raises(ValueError, match=r"must be finite, got \[.*(nan|inf).*leave that step out"):
        running.add([values[0]], [values[1]], weight=1.0, keep=0.5)
    assert running.state_dict() == before


def test_what_is_not_finite_is_refused_in_further_cells_too() -> None:
    running = RunningNoise(cells=3)
    with pytest.raises(ValueError, match="must be finite"):
        running.add([1.0, 2.0, math.nan], [1.0, 1.0, 1.0], weight=1.0)


def test_further_cells_get_averages_of_their_own() -> None:
    draw = np.random.default_rng(7)
    running, alone = RunningNoise(cells=3), [RunningNoise() for _ in range(3)]
    for _ in range(STEPS):
        trace_cov, grad_sq = draw.uniform(1, 5, 3), draw.normal(1, 1, 3)
        weight, keep = float(draw.integers(1, 9)), float(draw.uniform(0.8, 1))
        running.add(trace_cov, grad_sq, weight=weight, keep=keep)
        for cell, one in enumerate(alone):
            one.add([trace_cov[cell]], [grad_sq[cell]], weight=weight, keep=keep)
    found = np.array(running.means())
    assert found.shape == (2, 3)
    wanted = np.array([one.means() for one in alone])[..., 0].T
    assert np.allclose(found, wanted, rtol=EPSILON, atol=0)
    assert running.estimate() == alone[0].estimate()  # of the whole, whatever else is carried


@pytest.mark.parametrize("cut", range(STEPS + 1))
def test_resumed_through_json_equals_uninterrupted_bit_for_bit(cut: int) -> None:
    rows = drawn(seed=8)
    saved = json.loads(json.dumps(added(rows[:cut]).state_dict(), allow_nan=False))
    resumed = RunningNoise()
    resumed.load_state_dict(saved)
    added(rows[cut:], resumed)
    uninterrupted = added(rows)
    assert resumed.state_dict() == uninterrupted.state_dict()
    assert resumed.estimate() == uninterrupted.estimate()


def test_resumed_cells_are_as_many_as_were_saved() -> None:
    saved = RunningNoise(cells=2)
    saved.add([1.0, 2.0], [3.0, 4.0], weight=5.0)
    resumed = RunningNoise()
    resumed.load_state_dict(saved.state_dict())
    assert [m.tolist() for m in resumed.means()] == [[1.0, 2.0], [3.0, 4.0]]


def test_a_saved_state_is_a_copy() -> None:
    running = added(drawn(seed=9, count=5))
    saved = running.state_dict()
    text = json.dumps(saved)
    added(drawn(seed=10, count=9), running)
    assert json.dumps(saved) == text
