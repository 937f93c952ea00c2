"""How the benchmark of finders tells the truth. Oracle: a size that is known to be the largest."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import memory


class Device:
    """Trains sizes up to one; some runs of some sizes fail by chance."""

    def __init__(self, most: int, fails: Callable[[int, int], bool] = lambda size, run: False):
        self._most, self._fails = most, fails
        self.runs: list[int] = []

    def try_size(self, size: int, **options: Any) -> Any:
        self.runs.append(size)
        failed = size > self._most or self._fails(size, self.runs.count(size))
        return SimpleNamespace(outcome="oom" if failed else "ok")


@pytest.mark.parametrize("found", [700, 950, 1000])
def test_the_truth_is_reached_from_below_within_its_precision(found: int) -> None:
    device: Any = Device(1000)
    truth = memory.largest(device, found, 5000, 0)
    assert (1 - memory.PRECISION) * 1000 <= truth <= 1000
    assert device.runs.count(truth) >= memory.TRUTH_RUNS


def test_nothing_that_must_be_too_large_is_run() -> None:
    device: Any = Device(10_000)
    assert memory.largest(device, 100, 120, 0) < 120
    assert max(device.runs) < 120


def test_a_size_that_trains_now_and_then_is_no_truth() -> None:
    """From 900 on every second run fails."""
    device: Any = Device(1000, lambda size, run: size >= 900 and run % 2 == 0)
    assert 850 <= memory.largest(device, 800, 5000, 0) < 900


def test_an_answer_that_does_not_train_has_a_truth_below_it() -> None:
    device: Any = Device(500)
    assert 480 <= memory.largest(device, 520, 5000, 0) <= 500
    assert memory.largest(Device(0), 3, 9, 0) == 0  # type: ignore[arg-type]


def test_every_case_is_kept_when_it_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(memory, "RESULTS", tmp_path)
    kept: list[int] = []

    def case(name: str, budget_mib: int, say: Any) -> dict[str, Any]:
        if budget_mib == memory.BUDGETS[name][2]:
            raise KeyboardInterrupt
        return {"model": name, "budget_mib": budget_mib}

    monkeypatch.setattr(memory, "_case", case)
    with pytest.raises(KeyboardInterrupt):
        memory.memory(lambda line: None, ["MLP"], lambda result: kept.append(len(result["cases"])))
    assert kept == [1, 2]
