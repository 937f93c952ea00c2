"""The controller's benchmark compares like with like, and its verdict is arithmetic."""

from typing import Any

import pytest
import torch

from benchmarks.controller import LIMIT, Loop, as_markdown, share
from rightbatch.tasks import BUILT_IN

pytestmark = pytest.mark.usefixtures("float32")


def test_both_ways_take_the_same_steps() -> None:
    plain, controlled = (Loop(BUILT_IN["digits"].factory(), 32) for _ in range(2))
    for _ in range(3):
        plain.plain()
        assert controlled.controlled() > 0
    pairs = zip(plain.task.parameters, controlled.task.parameters, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert controlled.controller.examples_seen == 3 * 32
    assert controlled.controller.moves == ()


def row(calls_seconds: float) -> dict[str, Any]:
    return {
        "task": "digits",
        "batch_size": 32,
        "pairs": 100,
        "step_seconds": 1e-3,
        "measured_share": 0.02,
        "result_seconds": 1e-4,
        "calls_seconds": calls_seconds,
        "ratio": 1.01,
        "quartiles_of_pairs": [0.99, 1.03],
        "move_seconds": 5e-4,
    }


def test_the_verdict_counts_the_calls_and_the_weighting() -> None:
    rows = [row(4e-6), row(7e-6)]
    assert [share(each, 4e-6) for each in rows] == pytest.approx([0.008, 0.011], rel=1e-12)
    result = {
        "environment": {},
        "load_average": 0.5,
        "limit": LIMIT,
        "weighting_seconds": 4e-6,
        "rows": rows,
    }
    first, second = as_markdown(result).splitlines()[4:6]
    assert "| 4.0 us | 4.0 us | 0.80% | yes |" in first
    assert "| 7.0 us | 4.0 us | 1.10% | **no** |" in second
    assert "0.50 ms, 0.5 steps" in first
