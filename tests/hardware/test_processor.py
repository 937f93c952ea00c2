"""Waiting, working, standing in line. Oracle: closed form, and a written record of threads."""

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rightbatch._time import wall_clock
from rightbatch.hardware import processor
from rightbatch.hardware.processor import Processor, Stretch, processor_beside, time_each
from rightbatch.hardware.stations import Station, Stopwatch
from rightbatch.testing import FakeClock
from tests.hardware.tasks import task_with

SECONDS = st.floats(0.0, 100.0)


@given(wall=SECONDS, ran=SECONDS, ready=SECONDS)
def test_shares_are_shares(wall: float, ran: float, ready: float) -> None:
    stretch = Stretch(wall, ran, ready)
    assert 0 <= stretch.idle_share <= 1
    assert 0 <= stretch.crowded_share <= 1
    assert Stretch(wall, ran, 0.0).crowded_share == 0.0


def test_another_clock_than_the_walls_has_no_processor_beside_it() -> None:
    with processor_beside(FakeClock()) as beside:
        assert beside is None


@given(
    waits=st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=8),
    limit=st.floats(0.0, 300.0),
)
def test_what_an_act_stood_in_line_is_taken_off_and_never_more(
    waits: list[tuple[float, float, float]], limit: float
) -> None:
    """Also where the thread stands in line between two looks: that makes it longer only."""
    clock, line, turn = FakeClock(), [0.0], iter(waits)

    def wait(seconds: float) -> None:
        clock.advance(seconds)
        line[0] += seconds

    def act() -> None:
        own, in_line, _ = now[0] = next(turn)
        clock.advance(own)
        wait(in_line)

    def look() -> float:
        seconds = clock()
        wait(now[0][2])  # just after the look at the clock
        return seconds

    def look_at_line() -> float:
        seconds = line[0]
        wait(now[0][2])
        return seconds

    now = [waits[0]]
    beside = Processor(lambda: (0.0, 0.0), look_at_line)
    seconds = time_each(act, len(waits), look, beside, limit_seconds=limit)
    assert len(seconds) >= 1
    for measured, (own, _, _) in zip(seconds, waits, strict=False):
        assert measured >= own - 1e-9 * clock()


def test_no_act_begins_past_the_limit() -> None:
    clock = FakeClock()
    for limit, count in ((0.0, 1), (2.5, 3), (3.0, 3), (99.0, 5)):
        seconds = time_each(lambda: clock.advance(1.0), 5, clock, limit_seconds=limit)
        assert seconds == [1.0] * count


def _compute() -> None:
    until = wall_clock() + 0.2
    while wall_clock() < until:
        sum(range(1000))


@pytest.mark.parametrize(
    ("act", "idle"), [(lambda: time.sleep(0.2), True), (_compute, False)], ids=["sleep", "work"]
)
def test_sleeping_is_idle_and_computing_is_not(act: Callable[[], None], idle: bool) -> None:
    with processor_beside(wall_clock) as beside:
        assert beside is not None
        ran, ready, wall = *beside.threads(), wall_clock()
        act()
        after = beside.threads()
    stretch = Stretch(wall_clock() - wall, after[0] - ran, after[1] - ready)
    assert (stretch.idle_share > 0.5) is idle


def test_the_record_of_this_thread_is_closed_again() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with processor_beside(wall_clock) as beside:
        assert beside is not None
        looks = [beside.own_line() for _ in range(3)]
    assert looks == sorted(looks)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two threads: one ran 3 s and stood in line 1 s, one 0.5 s and 0.25 s."""
    for name, record in (("11", "3000000000 1000000000 7"), ("12", "500000000 250000000 9")):
        (tmp_path / "task" / name).mkdir(parents=True)
        (tmp_path / "task" / name / "schedstat").write_text(record + "\n")
    (tmp_path / "task" / "13").mkdir()  # has ended
    monkeypatch.setattr(processor, "_THIS_THREAD", tmp_path / "task" / "12" / "schedstat")
    monkeypatch.setattr(processor, "_THREADS", tmp_path / "task")
    monkeypatch.setattr(processor, "_OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processor, "_CGROUPS", tmp_path / "groups")
    return tmp_path


def test_threads_are_added_up(threads: Path) -> None:
    with processor_beside(wall_clock) as beside:
        assert beside is not None
        assert beside.threads() == pytest.approx((3.5, 1.25))


def test_only_this_thread_counts_as_in_line(threads: Path) -> None:
    with processor_beside(wall_clock) as beside:
        assert beside is not None
        assert beside.own_line() == pytest.approx(0.25)
        (threads / "task" / "12" / "schedstat").write_text("500000000 1250000000 12\n")
        assert beside.own_line() == pytest.approx(1.25)


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
    with processor_beside(wall_clock) as beside:
        assert beside is not None
        assert beside.threads() == pytest.approx((4.75, 0.0) if limited else (3.5, 1.25))
        assert beside.own_line() == (0.0 if limited else 0.25)


@pytest.mark.parametrize("record", [None, "", "? ?"])
def test_without_a_record_of_threads_the_process_is_asked(
    threads: Path, record: str | None
) -> None:
    for thread in (threads / "task").iterdir():
        if record is None:
            (thread / "schedstat").unlink(missing_ok=True)
        else:
            (thread / "schedstat").write_text(record)
    with processor_beside(wall_clock) as beside:
        assert beside is not None
        before = beside.threads()
        _compute()
        after = beside.threads()
    assert after[0] > before[0]
    assert (after[1], beside.own_line()) == (0.0, 0.0)


@pytest.mark.parametrize("record", [None, "", "?"])
def test_without_a_record_of_this_thread_nothing_is_in_line(
    threads: Path, record: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = threads / "own"
    monkeypatch.setattr(processor, "_THIS_THREAD", own)
    if record is not None:
        own.write_text(record)
    with processor_beside(wall_clock) as beside:
        assert beside is not None
        assert beside.threads()[1] == beside.own_line() == 0.0


def watch(step: Callable[[int], None], clock: FakeClock, **readings: Callable[[], Any]) -> Station:
    """A size after two windows of two seconds on a fake clock."""
    stopwatch = Stopwatch(
        task_with(step), clock, processor=Processor(**readings), budget_seconds=60.0, seed=0
    )
    station = stopwatch.open(8)
    station.plan_window(2.0)
    stopwatch.window(station)
    stopwatch.window(station)
    return station


def test_time_in_line_is_taken_off_steps_that_were_all_disturbed() -> None:
    """Each step runs 10 ms and stands in line for 30."""
    clock = FakeClock()
    station = watch(
        lambda size: clock.advance(0.04),
        clock,
        threads=lambda: (clock() / 4, 0.75 * clock()),
        own_line=lambda: 0.75 * clock(),
    )
    assert station.step_seconds == pytest.approx(0.01)
    assert station.step_samples == pytest.approx([0.01, 0.01])
    assert station.crowded_share == pytest.approx(0.75)
    assert station.idle_share == pytest.approx(0.0)


def test_the_line_of_other_threads_is_told_and_not_taken_off() -> None:
    """They may do nothing for the step: one that waits for work spins, and stands in line too."""
    clock = FakeClock()
    station = watch(
        lambda size: clock.advance(0.04),
        clock,
        threads=lambda: (clock(), clock()),
        own_line=lambda: 0.0,
    )
    assert station.step_samples == pytest.approx([0.04, 0.04])
    assert station.crowded_share == pytest.approx(0.5)


def test_of_steps_on_one_batch_the_fastest_tells() -> None:
    """A neighbour fills the caches nine times of ten, which no one tells: 10 ms, not 14."""
    clock, steps = FakeClock(), itertools.count()
    station = watch(
        lambda size: clock.advance(0.014 if next(steps) % 10 else 0.01),
        clock,
        threads=lambda: (clock(), 0.0),
        own_line=lambda: 0.0,
    )
    assert station.step_samples == pytest.approx([0.01, 0.01])


def test_of_batches_that_differ_the_fastest_does_not_tell() -> None:
    """One batch in ten is empty; loading it tells nothing of the others."""
    clock, batches = FakeClock(), itertools.count()

    def collate(examples: list[torch.Tensor]) -> torch.Tensor:
        clock.advance(0.01 if next(batches) % 10 else 0.0)
        return torch.stack(examples)

    task = task_with(lambda size: clock.advance(0.01), collate_fn=collate)
    stopwatch = Stopwatch(task, clock, budget_seconds=60.0, seed=0)
    station = stopwatch.open(8)
    station.plan_window(2.0)
    stopwatch.window(station)
    assert station.load_samples == pytest.approx([0.01])


def test_waiting_is_seen_and_not_taken_off() -> None:
    clock = FakeClock()
    station = watch(
        lambda size: clock.advance(0.04),
        clock,
        threads=lambda: (clock() / 10, 0.0),
        own_line=lambda: 0.0,
    )
    assert station.step_samples == pytest.approx([0.04, 0.04])
    assert station.idle_share == pytest.approx(0.9)
