"""Oracle: counters whose joules are a known line in the batch size (rung 1)."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rightbatch.hardware.energy import energy_counters, measure_energy
from rightbatch.results import Status
from rightbatch.task import Task
from rightbatch.testing import FakeClock
from tests.hardware.tasks import task_with
from tests.laws import assert_world_unchanged


class Counters:
    """Joules that a task's steps add up; windows as zeus has them."""

    def __init__(self, *, gpu: bool = False) -> None:
        self.joules, self.windows, self._gpu = 0.0, {}, gpu
        self.opened: list[str] = []

    def begin_window(self, key: str) -> None:
        self.opened.append(key)
        self.windows[key] = self.joules

    def end_window(self, key: str) -> Any:
        drawn = self.joules - self.windows.pop(key)
        if self._gpu:
            return SimpleNamespace(gpu_energy={0: drawn}, cpu_energy={0: 1e9}, dram_energy=None)
        half = {0: drawn / 4, 1: drawn / 4}
        return SimpleNamespace(gpu_energy={}, cpu_energy=half, dram_energy=half)


def drawing(counters: Counters, joules: Callable[[int], float], clock: FakeClock) -> Task:
    """A task whose steps take a second and draw so many joules."""

    def effect(size: int) -> None:
        clock.advance(1.0)
        counters.joules += joules(size)

    return task_with(effect)


@pytest.mark.parametrize("gpu", [False, True])
def test_a_line_of_joules_is_recovered(gpu: bool) -> None:
    clock, counters = FakeClock(), Counters(gpu=gpu)
    task = drawing(counters, lambda size: 8.0 + 0.5 * size, clock)
    found = measure_energy(task, [32, 4, 16], price_per_kwh=0.3, monitor=counters, clock=clock)
    assert found is not None
    assert [(p.batch_size, p.joules_per_step) for p in found.points] == [
        (4, pytest.approx(10.0)),
        (16, pytest.approx(16.0)),
        (32, pytest.approx(24.0)),
    ]
    assert all(p.low == pytest.approx(p.high) for p in found.points)
    assert found.joules == pytest.approx(8.0)
    assert found.joules_per_example == pytest.approx(0.5)
    assert (found.price_per_kwh, found.status) == (0.3, Status.OK)


def test_windows_are_long_enough_and_as_many_for_every_size() -> None:
    clock, counters = FakeClock(), Counters()
    lengths: list[float] = []

    class Timed(Counters):
        def begin_window(self, key: str) -> None:
            super().begin_window(key)
            lengths.append(-clock())

        def end_window(self, key: str) -> Any:
            lengths[-1] += clock()
            return super().end_window(key)

    counters = Timed()
    task = drawing(counters, lambda size: 1.0, clock)
    found = measure_energy(task, [4, 8], window_seconds=6.5, monitor=counters, clock=clock)
    assert found is not None
    assert lengths == [7.0] * 6  # whole steps of a second, three windows of two sizes
    assert len(set(counters.opened)) == 6
    assert found.window_seconds == 6.5


def test_a_disturbed_window_widens_the_interval_and_hardly_moves_the_value() -> None:
    clock, counters = FakeClock(), Counters()
    task = drawing(counters, lambda size: 3.0, clock)
    end = counters.end_window

    def disturbed(key: str) -> Any:
        if key.endswith("-1"):
            counters.joules += 60.0
        return end(key)

    counters.end_window = disturbed  # type: ignore[method-assign]
    found = measure_energy(task, [8], monitor=counters, clock=clock)
    assert found is not None
    (point,) = found.points
    assert point.joules_per_step == pytest.approx(3.0)
    assert point.high > 1.5 * point.joules_per_step
    assert (found.joules, found.joules_per_example) == (point.joules_per_step, 0.0)


def test_counters_that_do_not_move_are_no_measurement() -> None:
    clock, counters = FakeClock(), Counters()
    task = drawing(counters, lambda size: 0.0 if size < 16 else 2.0, clock)
    found = measure_energy(task, [8, 16], monitor=counters, clock=clock)
    assert found is not None
    assert [p.batch_size for p in found.points] == [16]
    assert measure_energy(task, [8], monitor=counters, clock=clock) is None


def test_the_world_stays_as_it_was() -> None:
    clock, counters = FakeClock(), Counters()
    task = drawing(counters, lambda size: 1.0, clock)
    assert_world_unchanged(
        task, lambda: measure_energy(task, [4, 8], monitor=Counters(), clock=clock)
    )


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ([], {}, r"`sizes` must be whole numbers from 1 to 64 .*got \[\]"),
        ([65], {}, r"`sizes` must be whole numbers from 1 to 64 .*got \[65\]"),
        ([8], {"window_seconds": 4.9}, r"`window_seconds` must be at least 5, got 4.9"),
        ([8], {"window_seconds": float("nan")}, r"`window_seconds` must be at least 5, got nan"),
        ([8], {"price_per_kwh": 0.0}, r"`price_per_kwh` must be positive and finite, got 0.0"),
    ],
)
def test_what_is_out_of_range_is_refused(
    sizes: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure_energy(task_with(lambda size: None), sizes, monitor=Counters(), **options)


def test_quick_steps_are_waited_for_in_groups() -> None:
    """Of 10 ms each, twenty between two looks at the clock: whole groups fill the window."""
    clock, counters, steps = FakeClock(), Counters(), []

    def effect(size: int) -> None:
        clock.advance(0.01)
        counters.joules += 0.25
        steps.append(size)

    found = measure_energy(
        task_with(effect), [8], window_seconds=5.1, monitor=counters, clock=clock
    )
    assert found is not None
    assert found.points[0].joules_per_step == pytest.approx(0.25)
    assert len(steps) in range(4 + 3 * 510, 4 + 3 * 541)


def install(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any] | None) -> None:
    """Put a made zeus in the place of the real one, or take it away."""
    found = None if make is None else SimpleNamespace(name="zeus")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    module = ModuleType("zeus.monitor")
    module.ZeusMonitor = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zeus.monitor", module)
    monkeypatch.setitem(sys.modules, "zeus", ModuleType("zeus"))


def test_without_zeus_there_is_a_reason_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    assert measure_energy(task_with(lambda size: None), [8]) is None
    reason = energy_counters()
    assert reason is not None
    assert "pip install 'rightbatch[energy]'" in reason


def test_a_processor_without_readable_counters_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda **options: SimpleNamespace(cpu_indices=[]))
    assert measure_energy(task_with(lambda size: None), [8]) is None
    assert "no counters of this processor" in (energy_counters() or "")


def test_what_zeus_raises_becomes_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**options: Any) -> Any:
        raise RuntimeError("the driver is asleep")

    install(monkeypatch, broken)
    assert "cannot read the counters of cuda:1 (the driver is asleep)" in (
        energy_counters(torch.device("cuda:1")) or ""
    )


def test_only_the_tasks_own_device_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def make(**options: Any) -> Any:
        asked.append(options)
        return SimpleNamespace(cpu_indices=[0])

    install(monkeypatch, make)
    assert energy_counters(torch.device("cuda:1")) is None
    assert energy_counters() is None
    assert asked == [
        {"gpu_indices": [1], "cpu_indices": []},
        {"gpu_indices": [], "cpu_indices": None},
    ]
