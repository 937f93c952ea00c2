"""Waiting, working, standing in line. Oracle: closed form, and a written record of threads."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch._time import wall_clock
from rightbatch.hardware import processor
from rightbatch.hardware.processor import Stretch, processor_beside
from rightbatch.hardware.stations import Stopwatch
from rightbatch.testing import FakeClock
from tests.hardware.tasks import task_with

SECONDS = st.floats(0.0, 100.0)


@given(wall=SECONDS, ran=SECONDS, ready=SECONDS)
def test_shares_are_shares_and_nothing_takes_longer_undisturbed(
    wall: float, ran: float, ready: float
) -> None:
    stretch = Stretch(wall, ran, ready)
    assert 0 <= stretch.idle_share <= 1
    assert 0 <= stretch.crowded_share <= 1
    assert 0 <= stretch.undisturbed_seconds <= wall * (1 + 1e-9)
    assert Stretch(wall, ran, 0.0).undisturbed_seconds == pytest.approx(wall)


def test_one_thread_in_line_a_third_of_the_time_would_take_two_thirds() -> None:
    assert Stretch(3.0, 2.0, 1.0).undisturbed_seconds == pytest.approx(2.0)
    assert Stretch(3.0, 4.0, 2.0).undisturbed_seconds == pytest.approx(2.0)  # so for two threads


def test_of_a_wait_nothing_is_taken_off() -> None:
    """Half a second of sleep, a quarter of work, a quarter in line."""
    assert Stretch(1.0, 0.25, 0.25).undisturbed_seconds == pytest.approx(0.75)


def test_another_clock_than_the_walls_has_no_processor_beside_it() -> None:
    assert processor_beside(FakeClock()) is None


def _compute() -> None:
    until = wall_clock() + 0.2
    while wall_clock() < until:
        sum(range(1000))


@pytest.mark.parametrize(
    ("act", "idle"), [(lambda: time.sleep(0.2), True), (_compute, False)], ids=["sleep", "work"]
)
def test_sleeping_is_idle_and_computing_is_not(act: Callable[[], None], idle: bool) -> None:
    read = processor_beside(wall_clock)
    assert read is not None
    ran, ready, wall = *read(), wall_clock()
    act()
    after = read()
    stretch = Stretch(wall_clock() - wall, after[0] - ran, after[1] - ready)
    assert (stretch.idle_share > 0.5) is idle


@pytest.fixture
def threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two threads: one ran 3 s and stood in line 1 s, one 0.5 s and 0.25 s."""
    for name, record in (("11", "3000000000 1000000000 7"), ("12", "500000000 250000000 9")):
        (tmp_path / "task" / name).mkdir(parents=True)
        (tmp_path / "task" / name / "schedstat").write_text(record + "\n")
    (tmp_path / "task" / "13").mkdir()  # has ended
    monkeypatch.setattr(processor, "_THREADS", tmp_path / "task")
    monkeypatch.setattr(processor, "_OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processor, "_CGROUPS", tmp_path / "groups")
    return tmp_path


def test_threads_are_added_up(threads: Path) -> None:
    read = processor_beside(wall_clock)
    assert read is not None
    assert read() == pytest.approx((3.5, 1.25))


QUOTAS = {
    "second version, own group": ("0::/a/b", "a/b/cpu.max", "50000 100000", True),
    "second version, group above": ("0::/a/b", "a/cpu.max", "50000 100000", True),
    "second version, none": ("0::/a/b", "a/b/cpu.max", "max 100000", False),
    "first version": ("3:cpu,cpuacct:/a", "cpu/a/cpu.cfs_quota_us", "150000", True),
    "first version, at the root": ("3:cpu:/", "cpu/cpu.cfs_quota_us", "150000", True),
    "first version, none": ("3:cpu:/a", "cpu/a/cpu.cfs_quota_us", "-1", False),
    "of memory": ("3:memory:/a", "memory/a/cpu.max", "50000 100000", False),
}


@pytest.mark.parametrize(("line", "file", "content", "limited"), QUOTAS.values(), ids=QUOTAS)
def test_what_a_quota_withholds_is_no_disturbance(
    threads: Path, line: str, file: str, content: str, limited: bool
) -> None:
    (threads / "cgroup").write_text(f"9:systemd:/elsewhere\n{line}\n")
    (threads / "groups" / file).parent.mkdir(parents=True, exist_ok=True)
    (threads / "groups" / file).write_text(f"{content}\n")
    read = processor_beside(wall_clock)
    assert read is not None
    assert read() == pytest.approx((4.75, 0.0) if limited else (3.5, 1.25))


@pytest.mark.parametrize("record", [None, "", "? ?"])
def test_without_a_record_of_threads_the_process_is_asked(
    threads: Path, record: str | None
) -> None:
    for thread in (threads / "task").iterdir():
        if record is None:
            (thread / "schedstat").unlink(missing_ok=True)
        else:
            (thread / "schedstat").write_text(record)
    read = processor_beside(wall_clock)
    assert read is not None
    before = read()
    _compute()
    assert read()[0] > before[0]
    assert read()[1] == 0.0


def test_time_in_line_is_taken_off_steps_that_were_all_disturbed() -> None:
    """Each step runs 10 ms and stands in line for 30."""
    clock = FakeClock()
    task = task_with(lambda size: clock.advance(0.04))
    watch = Stopwatch(
        task, clock, processor=lambda: (clock() / 4, 0.75 * clock()), budget_seconds=60.0, seed=0
    )
    station = watch.open(8)
    assert station.step_seconds == pytest.approx(0.01)
    watch.window(station)
    assert station.step_samples == pytest.approx([0.01])
    assert station.crowded_share == pytest.approx(0.75)
    assert station.idle_share == pytest.approx(0.0)


def test_where_some_steps_were_not_disturbed_they_tell() -> None:
    """Every other step stands in line for 90 ms: 10 ms, not half of 10."""
    clock, steps, line = FakeClock(), iter(range(10**6)), [0.0]

    def step(size: int) -> None:
        clock.advance(0.01)
        if next(steps) % 2:
            clock.advance(0.09)
            line[0] += 0.09

    watch = Stopwatch(
        task_with(step),
        clock,
        processor=lambda: (clock() - line[0], line[0]),
        budget_seconds=60.0,
        seed=0,
    )
    station = watch.open(8)
    station.plan_window(2.0)
    watch.window(station)
    assert station.step_samples == pytest.approx([0.01], rel=0.01)


def test_waiting_is_seen_and_not_taken_off() -> None:
    clock = FakeClock()
    task = task_with(lambda size: clock.advance(0.04))
    watch = Stopwatch(
        task, clock, processor=lambda: (clock() / 10, 0.0), budget_seconds=60.0, seed=0
    )
    station = watch.open(8)
    watch.window(station)
    assert station.step_samples == pytest.approx([0.04])
    assert station.idle_share == pytest.approx(0.9)
