"""The running average. Oracle: every step kept, and the docstring's formulas on lists."""

import json
from typing import Any

import numpy as np
import pytest

from rightbatch.noise.running import RunningNoise

Step = tuple[list[float], list[float], float, float]  # trace_cov, grad_sq, weight, keep


def steps(count: int, cells: int = 1, seed: int = 0) -> list[Step]:
    draw = np.random.default_rng(seed)
    return [
        (
            (5 + draw.standard_normal(cells)).tolist(),
            (1 + draw.standard_normal(cells)).tolist(),
            float(draw.integers(1, 9)),
            float(draw.uniform(0.6, 1.0)),
        )
        for _ in range(count)
    ]


def run(todo: list[Step], cells: int = 1) -> RunningNoise:
    running = RunningNoise(cells)
    for trace_cov, grad_sq, weight, keep in todo:
        running.add(trace_cov, grad_sq, weight=weight, keep=keep)
    return running


def by_definition(todo: list[Step]) -> dict[str, Any]:
    """Weights decayed step by step, blocks of four, their scatter around the mean."""
    factors = np.array([step[3] for step in todo])
    decay = np.array([np.prod(factors[i + 1 :]) for i in range(len(todo))])
    weights = decay * [step[2] for step in todo]
    parts = np.array([[t[0], g[0]] for t, g, _, _ in todo])
    blocks = [slice(i, i + 4) for i in range(0, len(todo), 4)]
    w = np.array([weights[b].sum() for b in blocks])
    a = np.array([weights[b] @ parts[b] for b in blocks])
    mean = a.sum(0) / w.sum()
    count = w.sum() ** 2 / np.square(w).sum()
    away = a - w[:, None] * mean
    return {
        "mean": mean,
        "blocks": count,
        "covariance": count / (count - 1) * away.T @ away / w.sum() ** 2,
    }


@pytest.mark.parametrize("count", [24, 41, 42, 43])
@pytest.mark.parametrize("seed", range(3))
def test_three_sums_equal_the_list_of_blocks(count: int, seed: int) -> None:
    todo = [(t, g, w, 0.9 + 0.1 * k) for t, g, w, k in steps(count, seed=seed)]
    expected, found = by_definition(todo), run(todo).estimate()
    assert [found.trace_cov, found.grad_sq] == pytest.approx(expected["mean"].tolist(), rel=1e-12)
    assert found.var_trace_cov == pytest.approx(expected["covariance"][0, 0], rel=1e-9)
    assert found.var_grad_sq == pytest.approx(expected["covariance"][1, 1], rel=1e-9)
    assert found.covariance == pytest.approx(expected["covariance"][0, 1], rel=1e-8)
    assert found.degrees == pytest.approx(expected["blocks"] - 1, rel=1e-12)


def test_nothing_is_forgotten_unless_asked() -> None:
    todo = [(t, g, 1.0, 1.0) for t, g, _, _ in steps(20)]
    found = run(todo).estimate()
    assert found.trace_cov == pytest.approx(np.mean([t[0] for t, *_ in todo]))
    assert found.units == 20


def test_forgetting_everything_leaves_the_last_step() -> None:
    todo = [(t, g, w, 1e-30) for t, g, w, _ in steps(9)]
    found = run(todo).estimate()
    assert found.trace_cov == pytest.approx(todo[-1][0][0])
    assert found.grad_sq == pytest.approx(todo[-1][1][0])


@pytest.mark.parametrize("count", [1, 4, 8])
def test_too_few_blocks_give_no_interval(count: int) -> None:
    todo = [(t, g, 1.0, 1.0) for t, g, _, _ in steps(count)]
    assert run(todo).estimate().interval() == (0.0, None)


def test_three_blocks_give_one() -> None:
    todo = [([100.0 + i % 3], [10.0 + i % 2], 1.0, 1.0) for i in range(12)]
    low, high = run(todo).estimate().interval()
    assert 0 < low < 10
    assert high is not None
    assert high < 11


def test_further_cells_are_averaged_like_the_first() -> None:
    todo = steps(17, cells=3)
    trace_cov, grad_sq = run(todo, cells=3).means()
    for cell in range(3):
        alone = run([([t[cell]], [g[cell]], w, k) for t, g, w, k in todo]).estimate()
        assert trace_cov[cell] == pytest.approx(alone.trace_cov, rel=1e-12)
        assert grad_sq[cell] == pytest.approx(alone.grad_sq, rel=1e-12)


@pytest.mark.parametrize("cut", range(1, 13))
def test_resumed_equals_uninterrupted_bit_for_bit(cut: int) -> None:
    todo = steps(13, cells=2)
    whole = run(todo, cells=2)
    resumed = RunningNoise()
    saved = json.dumps(run(todo[:cut], cells=2).state_dict(), allow_nan=False)
    resumed.load_state_dict(json.loads(saved))
    for trace_cov, grad_sq, weight, keep in todo[cut:]:
        resumed.add(trace_cov, grad_sq, weight=weight, keep=keep)
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_changes_nothing(odd: float) -> None:
    running = run(steps(5))
    before = running.state_dict()
    with pytest.raises(ValueError, match=r"must be finite, got \[5.0, "):
        running.add([5.0], [odd], weight=1.0)
    assert running.state_dict() == before


def test_negative_parts_are_kept() -> None:
    found = run([([2.0], [-1.0], 1.0, 1.0), ([2.0], [3.0], 1.0, 1.0)]).estimate()
    assert (found.trace_cov, found.grad_sq) == (2.0, 1.0)
