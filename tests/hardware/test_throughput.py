"""Step times. Oracle: closed form (a clock that only the chosen costs advance), and laws."""

import itertools
import math

import pytest
import torch

from rightbatch.errors import TaskError
from rightbatch.hardware import measure_throughput
from rightbatch.hardware.stations import Station, Stopwatch
from rightbatch.hardware.throughput import _Aside, _default_sizes, _summarize
from rightbatch.results import LoopClocks, Status, ThroughputProfile
from rightbatch.task import Task
from rightbatch.testing import FakeClock
from tests.hardware.tasks import TimedExamples, failing_above, task_with, timed_task
from tests.laws import assert_world_unchanged
from tests.zoo import REFUSED, WORKING, Specimen

QUICK = 0.05  # seconds of real time, where only the shape of the answer matters


def sizes_of(profile: ThroughputProfile) -> list[int]:
    return [point.batch_size for point in profile.points]


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_every_working_task_is_timed_and_left_as_it_was(specimen: Specimen) -> None:
    task = specimen.make()
    sizes = [2, min(5, task.max_batch_size or 5)]
    profiles = []

    def measure() -> None:
        """Every look at the clock takes a millisecond, so that every run is the same."""
        looks = itertools.count()
        profiles.append(
            measure_throughput(
                task, sizes, time_budget_seconds=0.2, clock=lambda: next(looks) / 1000
            )
        )

    assert_world_unchanged(task, measure)
    assert sizes_of(profiles[0]) == sorted(set(sizes))
    for point in profiles[0].points:
        assert 0 < point.low <= point.step_seconds <= point.high
        assert point.load_seconds > 0
        assert point.total_seconds >= point.step_seconds


@pytest.mark.parametrize("specimen", REFUSED, ids=str)
def test_every_refused_task_is_refused_by_name(specimen: Specimen) -> None:
    assert specimen.error is not None
    with pytest.raises(specimen.error, match=specimen.match):
        measure_throughput(specimen.make(), time_budget_seconds=QUICK)


@pytest.mark.parametrize(("alpha", "beta"), [(0.01, 0.001), (0.02, 0.0001), (0.0, 0.002)])
def test_the_fixed_cost_and_the_cost_per_example_are_recovered(alpha: float, beta: float) -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=alpha, beta=beta, batch_size=48, examples=600)
    profile = measure_throughput(task, time_budget_seconds=60.0, clock=clock)
    assert profile.alpha_seconds == pytest.approx(alpha, rel=1e-6, abs=1e-9)
    assert profile.beta_seconds_per_example == pytest.approx(beta, rel=1e-6)
    assert profile.half_batch_size == pytest.approx(alpha / beta, rel=1e-6, abs=1e-6)
    assert 48 in sizes_of(profile)
    for point in profile.points:
        expected = pytest.approx(alpha + beta * point.batch_size, rel=1e-9)
        assert (point.step_seconds, point.low, point.high) == (expected, expected, expected)
        assert point.load_seconds == 0.0
        assert point.total_seconds == expected


def test_loading_is_timed_apart_and_paid_besides() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=0.01, beta=0.0001, load=0.003)
    profile = measure_throughput(task, [4, 16, 64], time_budget_seconds=60.0, clock=clock)
    for point in profile.points:
        assert point.load_seconds == pytest.approx(0.003 * point.batch_size, rel=1e-6)
        assert point.step_seconds == pytest.approx(0.01 + 0.0001 * point.batch_size, rel=1e-6)
        assert point.total_seconds == pytest.approx(point.step_seconds + point.load_seconds)
    assert profile.bottleneck == "loading"


def test_workers_overlap_with_the_step() -> None:
    dataset = torch.arange(64.0)
    task = task_with(lambda size: None, dataset=dataset, batch_size=8, num_workers=2)
    profile = measure_throughput(task, [4, 16], time_budget_seconds=QUICK)
    for point in profile.points:
        step, load = point.step_seconds, point.load_seconds
        assert load > 0
        assert max(step, load) <= point.total_seconds <= step + load
    assert profile.clocks is not None
    assert profile.clocks.num_workers == 2


def test_sizes_are_powers_of_two_up_to_the_cap_with_todays() -> None:
    assert _default_sizes(100, 48, 1) == [4, 8, 16, 32, 48, 64, 100]
    assert _default_sizes(64, None, 1) == [4, 8, 16, 32, 64]
    assert _default_sizes(66, 3, 1) == [3, 4, 8, 16, 32, 66]
    assert _default_sizes(16, 32, 1) == [4, 8, 16]


@pytest.mark.parametrize(
    ("cap", "floor", "sizes"),
    [(1, 1, [1]), (2, 1, [1, 2]), (2, 2, [2]), (5, 1, [1, 2, 4, 5]), (7, 2, [2, 4, 7])],
)
def test_small_data_sets_start_at_the_smallest_size(cap: int, floor: int, sizes: list[int]) -> None:
    assert _default_sizes(cap, None, floor) == sizes


def test_growth_ends_at_the_plateau() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=0.001, beta=0.001, batch_size=8)
    profile = measure_throughput(task, time_budget_seconds=600.0, clock=clock)
    # gains per doubling: 4->8 1.11, 8->16 1.06, 16->32 1.03, 32->64 1.02
    assert sizes_of(profile) == [4, 8, 16, 32, 64]
    assert profile.status is Status.PLATEAU
    assert profile.bottleneck == "compute"


def test_todays_size_is_measured_also_beyond_the_plateau() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=0.0, beta=0.001, batch_size=512)
    profile = measure_throughput(task, time_budget_seconds=600.0, clock=clock)
    assert sizes_of(profile) == [4, 8, 16, 512]
    assert profile.status is Status.PLATEAU


def test_without_a_plateau_growth_ends_at_the_cap() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=0.01, beta=1e-6)
    profile = measure_throughput(task, max_batch_size=200, time_budget_seconds=60.0, clock=clock)
    assert sizes_of(profile) == [4, 8, 16, 32, 64, 128, 200]
    assert (profile.status, profile.bottleneck) == (Status.OK, "overhead")


def test_sizes_that_are_slow_for_the_budget_are_left_out_but_two() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=0.5, beta=0.01)
    profile = measure_throughput(task, time_budget_seconds=20.0, clock=clock)
    # 3 % is 0.6 s: 8 would take 0.58, and 16 in proportion to 8 at most 1.2
    assert sizes_of(profile) == [4, 8]
    assert profile.status is Status.OUT_OF_TIME


@pytest.mark.parametrize("alpha", [0.005, 0.05, 0.6])
@pytest.mark.parametrize("beta", [0.0, 0.0005, 0.01])
@pytest.mark.parametrize("load", [0.0, 0.0005])
def test_the_time_budget_is_kept(alpha: float, beta: float, load: float) -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=alpha, beta=beta, load=load, batch_size=64, examples=256)
    start = clock()
    profile = measure_throughput(task, time_budget_seconds=12.0, clock=clock)
    assert clock() - start <= 12.0
    assert len(profile.points) >= 2
    assert 64 in sizes_of(profile)


def test_fewer_than_four_rounds_are_called_out_of_time() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=1.0, beta=0.0)
    profile = measure_throughput(task, [4, 8], time_budget_seconds=10.0, clock=clock)
    # calibrating takes 4 s, a round 2 s
    assert clock() <= 10.0
    assert profile.status is Status.OUT_OF_TIME
    assert [point.step_seconds for point in profile.points] == [1.0, 1.0]


def test_a_budget_for_no_round_still_gives_what_calibration_saw() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=10.0, beta=1.0)
    profile = measure_throughput(task, [2, 4], time_budget_seconds=1.0, clock=clock)
    assert [point.step_seconds for point in profile.points] == [12.0, 14.0]
    assert profile.status is Status.OUT_OF_TIME


def test_every_round_visits_every_size_once_in_an_order_of_its_own() -> None:
    clock, steps = FakeClock(), list[int]()

    def step(size: int) -> None:
        steps.append(size)
        clock.advance(0.05)

    sizes = [4, 8, 16, 32]
    measure_throughput(task_with(step), sizes, time_budget_seconds=20.0, clock=clock)
    visits = [size for size, _ in itertools.groupby(steps)]
    assert visits[:4] == sizes  # calibration goes upwards
    merged = visits[4:]  # a size at the end of one round and the start of the next shows once
    assert merged.count(4) >= 4
    orders, order = [], list[int]()
    for size in merged:
        if size in order:
            orders.append(order)
            order = []
        order.append(size)
    assert len({tuple(o) for o in orders}) >= 3
    assert any(o != sorted(o) for o in orders)
    counts = [merged.count(size) for size in sizes]
    assert max(counts) - min(counts) <= len(orders) // 2


def test_a_busy_spell_makes_no_size_wrong() -> None:
    """The machine is ten times slower for a quarter of the time."""
    clock = FakeClock()
    task = task_with(
        lambda size: clock.advance((0.01 + 0.001 * size) * (10 if 6 < clock() % 12 < 9 else 1)),
        dataset=TimedExamples(4096, clock, 0.0),
    )
    profile = measure_throughput(task, [4, 16, 64], time_budget_seconds=36.0, clock=clock)
    for point in profile.points:
        assert point.step_seconds == pytest.approx(0.01 + 0.001 * point.batch_size, rel=1e-6)
    assert profile.half_batch_size == pytest.approx(10.0, rel=1e-3)


def test_the_first_steps_at_a_size_do_not_count() -> None:
    clock, seen = FakeClock(), set[int]()

    def step(size: int) -> None:
        clock.advance(0.5 if size not in seen else 0.01)
        seen.add(size)

    profile = measure_throughput(task_with(step), [4, 8], time_budget_seconds=10.0, clock=clock)
    assert [point.high for point in profile.points] == [pytest.approx(0.01)] * 2


def test_steps_that_another_process_disturbs_do_not_count() -> None:
    """Every third step takes ten times as long."""
    clock, steps = FakeClock(), itertools.count()
    task = task_with(lambda size: clock.advance(0.01 * (10 if next(steps) % 3 == 0 else 1)))
    profile = measure_throughput(task, [4, 8], time_budget_seconds=20.0, clock=clock)
    assert [point.high for point in profile.points] == [pytest.approx(0.01)] * 2


def test_a_size_is_warmed_up_before_it_counts_and_the_first_of_all_longer() -> None:
    clock, steps = FakeClock(), list[int]()

    def step(size: int) -> None:
        steps.append(size)
        clock.advance(0.001)

    measure_throughput(task_with(step), [4, 8, 16], time_budget_seconds=20.0, clock=clock)
    visits = [(size, len(list(group))) for size, group in itertools.groupby(steps)]
    assert visits[0] == (4, 20 + 3)
    assert visits[1] == (8, 3 + 3)


def test_steps_that_become_slow_do_not_overrun_the_budget() -> None:
    clock = FakeClock()
    task = task_with(lambda size: clock.advance(0.001 if clock() < 1 else 0.5))
    measure_throughput(task, [4, 8], time_budget_seconds=10.0, clock=clock)
    assert clock() <= 12.5


def test_loading_that_becomes_slow_does_not_overrun_the_budget() -> None:
    clock = FakeClock()

    def collate(examples: list[torch.Tensor]) -> torch.Tensor:
        clock.advance(0.001 if clock() < 1 else 0.5)
        return torch.stack(examples)

    task = task_with(lambda size: clock.advance(0.01), collate_fn=collate)
    measure_throughput(task, [4, 8], time_budget_seconds=10.0, clock=clock)
    assert clock() <= 12.5


def test_calibration_leaves_time_for_the_rounds() -> None:
    clock, notes = FakeClock(), list[str]()
    task = timed_task(clock, alpha=0.119, beta=0.0)
    profile = measure_throughput(
        task,
        time_budget_seconds=12.0,
        clock=clock,
        progress=lambda fraction, note: notes.append(note),
    )
    assert "throughput: round 4" in notes
    assert len(profile.points) >= 5
    assert profile.status is Status.OUT_OF_TIME


def test_rounds_end_once_every_interval_is_narrow() -> None:
    clock, notes = FakeClock(), list[str]()
    measure_throughput(
        timed_task(clock, alpha=0.01, beta=0.0),
        [4, 8],
        time_budget_seconds=60.0,
        clock=clock,
        progress=lambda fraction, note: notes.append(note),
    )
    assert notes[-1] == "throughput: round 5"
    assert clock() < 6.0


def test_what_workers_gain_at_one_size_holds_for_the_others() -> None:
    """A batch of 8 takes 1 s in this process and 0.25 s with workers: a quarter everywhere."""
    stations = [
        Station(size, iter(()), None, 0.1, 9.9, step_samples=[0.1], load_samples=[load])
        for size, load in [(4, 0.5), (8, 1.0), (16, 2.0)]
    ]
    clocks = LoopClocks(
        batch_size=8,
        num_workers=4,
        load_seconds=0.25,
        step_seconds=0.1,
        total_seconds=0.3,
        overlap=0.5,
    )
    profile = _summarize(stations, _Aside(clocks), today=None, seed=0, status=Status.OK)
    assert [point.load_seconds for point in profile.points] == [0.125, 0.25, 0.5]
    # what half the overlap leaves of the shorter time, 0.1 s, is paid at every size
    assert [point.total_seconds for point in profile.points] == pytest.approx([0.175, 0.3, 0.55])
    assert profile.bottleneck == "loading"


@pytest.mark.parametrize(("today", "name"), [(4, "overhead"), (256, "compute")])
def test_todays_size_is_clocked_and_judged(today: int, name: str) -> None:
    """Half a step at 32 is fixed cost."""
    clock = FakeClock()
    task = timed_task(clock, alpha=0.032, beta=0.001, batch_size=today)
    profile = measure_throughput(task, [4, 32, 256], time_budget_seconds=60.0, clock=clock)
    assert profile.clocks is not None
    assert profile.shares is not None
    assert (profile.clocks.batch_size, profile.shares.batch_size) == (today, today)
    assert profile.clocks.total_seconds == pytest.approx(0.032 + 0.001 * today)
    assert profile.bottleneck == name
    assert f"at {today} examples" in profile.evidence


def test_where_today_is_too_slow_the_largest_affordable_size_is_clocked() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=0.0, beta=0.01, batch_size=256)
    profile = measure_throughput(task, [4, 32, 256], time_budget_seconds=40.0, clock=clock)
    # 12 % is 4.8 s: two loops and four steps at 32 take 1.9, at 256 15.4
    assert profile.clocks is not None
    assert profile.clocks.batch_size == 32


def test_what_is_looked_at_aside_leaves_half_of_the_time_that_is_left() -> None:
    """Calibrating takes 9 of 10 seconds, then steps become a hundred times faster."""
    clock = FakeClock()
    task = task_with(lambda size: clock.advance(1.0 if clock() < 9 else 0.01))
    profile = measure_throughput(task, [4, 8, 16, 32, 64], time_budget_seconds=10.0, clock=clock)
    assert profile.clocks is not None
    assert clock() <= 10.0


def test_steps_are_taken_on_a_batch_of_typical_length() -> None:
    """Of any five in a row the one in the middle is 4 wide."""
    clock, widths = FakeClock(), itertools.cycle([9, 3, 5, 4, 2])

    def collate(examples: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(examples)[:, None].expand(-1, next(widths))

    task = task_with(lambda size: None, collate_fn=collate)
    station = Stopwatch(task, clock, budget_seconds=60.0, seed=0).open(8)
    assert station.batch.shape == (8, 4)


def test_units_and_elements_are_those_of_a_mean_batch() -> None:
    clock, widths = FakeClock(), itertools.cycle([2, 4])

    def collate(examples: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(examples)[:, None].expand(-1, next(widths))

    task = task_with(
        lambda size: clock.advance(0.01), collate_fn=collate, weight=lambda batch: 2 * len(batch)
    )
    profile = measure_throughput(task, [4, 8], time_budget_seconds=20.0, clock=clock)
    for point in profile.points:
        assert point.units == 2 * point.batch_size
        assert point.elements is not None
        assert 2 <= point.elements / point.batch_size <= 4


def test_memory_ends_the_growth() -> None:
    task = failing_above(20, MemoryError())
    profile = measure_throughput(task, time_budget_seconds=QUICK)
    assert sizes_of(profile)[:1] == [4]
    assert max(sizes_of(profile)) <= 16


def test_named_sizes_that_do_not_fit_are_left_out() -> None:
    task = failing_above(20, torch.OutOfMemoryError("CUDA out of memory."))
    profile = measure_throughput(task, [32, 8, 64, 16], time_budget_seconds=QUICK)
    assert sizes_of(profile) == [8, 16]


def test_no_size_that_fits_is_an_error() -> None:
    with pytest.raises(TaskError, match="got out of memory at the smallest"):
        measure_throughput(failing_above(0, MemoryError()), time_budget_seconds=QUICK)


def test_other_errors_surface_unchanged_with_the_batch_size() -> None:
    task = failing_above(10, ZeroDivisionError("user's own"))
    with pytest.raises(ZeroDivisionError, match="user's own") as caught:
        measure_throughput(task, [8, 16], time_budget_seconds=QUICK)
    assert caught.value.__notes__ == ["while timing batch size 16"]


def test_no_size_is_tried_that_could_exceed_the_memory_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no one measured memory before: 1 MB now could mean 2 MB at twice the size."""
    clock = FakeClock()

    class MegabyteAtSixteen:
        def reset(self) -> None: ...

        def peak_bytes(self) -> int:
            return 10**6 if tried[-1] >= 16 else 10

    tried: list[int] = [0]

    def step(size: int) -> None:
        tried.append(size)
        clock.advance(0.01)

    where = "rightbatch.hardware.throughput"
    monkeypatch.setattr(f"{where}.meter_for", lambda device: MegabyteAtSixteen())
    monkeypatch.setattr(f"{where}.device_budget_bytes", lambda device: 1_900_000)
    profile = measure_throughput(task_with(step), time_budget_seconds=60.0, clock=clock)
    assert max(tried) == 16
    assert sizes_of(profile) == [4, 8, 16]


def test_a_data_set_of_two_is_timed() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=0.01, beta=0.01, examples=2)
    profile = measure_throughput(task, time_budget_seconds=10.0, clock=clock)
    assert sizes_of(profile) == [1, 2]
    assert profile.half_batch_size == pytest.approx(1.0)


def test_rates_are_turned_down_so_that_nothing_diverges() -> None:
    losses = []
    note = losses.append  # the list itself would be put back
    task = task_with(lambda size: None)
    task.optimizer.param_groups[0]["lr"] = 1e4
    loss = task._loss

    def record(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        value = loss(model, batch)
        note(value.item())
        return value

    task._loss = record
    measure_throughput(task, [4, 8], time_budget_seconds=QUICK)
    assert all(math.isfinite(value) for value in losses)
    assert max(losses) < 64**2


def test_progress_never_falls_and_names_what_is_done() -> None:
    told: list[tuple[float, str]] = []
    clock = FakeClock()
    task = timed_task(clock, alpha=0.1, beta=0.0)
    measure_throughput(
        task,
        [4, 8],
        time_budget_seconds=20.0,
        clock=clock,
        progress=lambda fraction, note: told.append((fraction, note)),
    )
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] <= 1
    notes = [note for _, note in told]
    assert notes[:2] == [f"throughput: calibrating batch size {size}" for size in (4, 8)]
    assert notes[2] == "throughput: the training loop at 8"
    assert notes[3:5] == ["throughput: round 1", "throughput: round 2"]


@pytest.mark.parametrize(
    ("sizes", "options", "match"),
    [
        ([], {}, r"from 1 to 64 .* got \[\]"),
        ([4, 0], {}, r"got \[4, 0\]"),
        ([65], {}, r"from 1 to 64 .* got \[65\]"),
        ([1.5], {}, r"got \[1\.5\]"),
        (None, {"max_batch_size": 0}, "`max_batch_size` must be at least 1, got 0"),
        (None, {"time_budget_seconds": 0.0}, r"positive and finite, got 0\.0"),
        (None, {"time_budget_seconds": math.inf}, "positive and finite, got inf"),
        (None, {"time_budget_seconds": math.nan}, "positive and finite, got nan"),
    ],
)
def test_arguments_out_of_range_are_refused(
    sizes: list[int] | None, options: dict[str, float], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        measure_throughput(task_with(lambda size: None), sizes, **options)


# Interpolation.


@pytest.mark.gpu
def test_steps_on_the_accelerator_are_waited_for(device: torch.device) -> None:
    """A law: sixteen times the work takes longer, although launching it does not."""
    model = torch.nn.Linear(4096, 4096, device=device, dtype=torch.float32)
    task = Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.randn(16384, 4096, dtype=torch.float32),
        lambda model, batch: model(batch).square().mean(),
    )
    small, large = measure_throughput(task, [1024, 16384], time_budget_seconds=10.0).points
    assert large.step_seconds > 4 * small.step_seconds
