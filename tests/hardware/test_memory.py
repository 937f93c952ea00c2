"""Memory of real steps. Oracle: closed form (chosen limits, chosen sizes), and laws."""

import math
import weakref
from collections import Counter
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from rightbatch import hardware
from rightbatch.errors import TaskError
from rightbatch.results import Status
from rightbatch.task import Task
from rightbatch.testing import FakeClock, QuadraticTask
from tests.hardware.tasks import Hungry, failing_above, task_with, timed_task
from tests.laws import assert_world_unchanged
from tests.zoo import REFUSED, WORKING, Specimen

MIB = 2**20
measure_memory = partial(hardware.measure_memory, isolate=False)


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_every_working_task_is_measured_and_left_as_it_was(specimen: Specimen) -> None:
    task = specimen.make()
    task.max_batch_size = task.max_batch_size or 30  # a stream would go on for ever
    profiles = []
    assert_world_unchanged(task, lambda: profiles.append(measure_memory(task)))
    assert profiles[0].max_verified_batch_size == task.max_batch_size
    assert profiles[0].status is Status.CAPPED


@pytest.mark.parametrize("specimen", REFUSED, ids=str)
def test_every_refused_task_is_refused_by_name(specimen: Specimen) -> None:
    assert specimen.error is not None
    with pytest.raises(specimen.error, match=specimen.match):
        measure_memory(specimen.make())


def test_every_try_takes_three_steps_on_batches_of_exactly_its_size() -> None:
    delivered: list[int] = []
    profile = measure_memory(task_with(delivered.append, batch_size=5))
    tried = [point.batch_size for point in profile.points]
    assert tried == [5, 20, 64]
    assert delivered == [size for size in tried for _ in range(3)]
    assert (profile.max_verified_batch_size, profile.status) == (64, Status.CAPPED)
    assert {point.source for point in profile.points} == {"real"}


@pytest.mark.parametrize(("examples", "first"), [(2, 2), (11, 8), (3000, 8)])
def test_without_a_batch_size_the_first_try_is_eight_or_the_data_set(
    examples: int, first: int
) -> None:
    profile = measure_memory(task_with(lambda size: None, dataset=torch.arange(float(examples))))
    assert profile.points[0].batch_size == first
    assert profile.max_verified_batch_size == examples


def test_the_tasks_own_cap_is_kept() -> None:
    profile = measure_memory(task_with(lambda size: None, max_batch_size=37))
    assert max(point.batch_size for point in profile.points) == 37


@pytest.mark.parametrize("limit", [1, 3, 7, 40, 63])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=["torch", "python"]
)
def test_out_of_memory_is_data(limit: int, error: Exception) -> None:
    profile = measure_memory(failing_above(limit, error, batch_size=16))
    assert profile.max_verified_batch_size == limit
    assert profile.upper_bound is not None
    assert limit <= profile.upper_bound <= limit + 1
    failed = [point for point in profile.points if point.batch_size > limit]
    assert {(point.outcome, point.peak_bytes) for point in failed} == {("oom", None)}


def test_another_limit_is_named_as_such() -> None:
    error = RuntimeError("CUDA error: invalid configuration argument")
    profile = measure_memory(failing_above(40, error))
    assert {point.outcome for point in profile.points if point.batch_size > 40} == {"limit"}


def test_nothing_fits() -> None:
    profile = measure_memory(failing_above(0, MemoryError()))
    assert (profile.max_verified_batch_size, profile.status) == (0, Status.NOTHING_FITS)
    assert [point.batch_size for point in profile.points] == [8, 4, 2, 1]


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(inputs[:, None]).square()


def test_batch_norm_is_not_tried_with_one_example() -> None:
    profile = measure_memory(failing_above(0, MemoryError(), model=Normalized()))
    assert [point.batch_size for point in profile.points] == [8, 4, 2]
    assert profile.status is Status.NOTHING_FITS


def test_other_errors_surface_unchanged_with_the_batch_size() -> None:
    with pytest.raises(ZeroDivisionError, match="user's own") as caught:
        measure_memory(failing_above(20, ZeroDivisionError("user's own"), batch_size=16))
    assert caught.value.__notes__ == ["while trying batch size 64"]


def test_a_failed_step_gives_its_tensors_back_before_the_next() -> None:
    held: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def allocate(size: int) -> None:
        alive.append(sum(ref() is not None for ref in held))
        block = torch.ones(size)
        held.append(weakref.ref(block))
        if size > 20:
            raise MemoryError

    measure_memory(task_with(allocate, batch_size=16))
    assert len(alive) > 6
    assert set(alive) == {0}


def test_a_batch_of_another_size_than_asked_for_is_refused() -> None:
    def collate(examples: list[Tensor]) -> Tensor:
        return torch.stack(examples[:10])

    task = task_with(lambda size: None, collate_fn=collate)
    with pytest.raises(TaskError, match="got 10 rows for 32 examples"):
        measure_memory(task)


def test_rows_may_differ_from_examples_where_a_weight_says_what_counts() -> None:
    def collate(examples: list[Tensor]) -> Tensor:
        return torch.cat([torch.stack(examples)] * 2)

    task = task_with(lambda size: None, collate_fn=collate, weight=len)
    assert measure_memory(task).max_verified_batch_size == 64


def test_rates_are_turned_down_so_that_nothing_diverges() -> None:
    task = QuadraticTask(learning_rate=1e4).task
    losses: list[float] = []
    loss = task._loss

    def record(model: nn.Module, batch: Tensor) -> Tensor:
        value = loss(model, batch)
        losses.append(value.item())
        return value

    task._loss = record
    measure_memory(task)
    assert max(losses) < 100


def hungry(mib_per_example: float, **options: int) -> Task:
    return task_with(
        lambda size: None,
        model=Hungry(int(mib_per_example * MIB)),
        dataset=torch.arange(512.0),
        **options,
    )


def test_a_step_that_allocates_more_shows_a_higher_peak() -> None:
    """Closed form: 8 examples of 4 MiB more, each of them at least once in memory."""
    lean, fat = (
        measure_memory(hungry(mib, max_batch_size=8, batch_size=8)).points[-1].peak_bytes
        for mib in (1, 5)
    )
    assert lean is not None
    assert fat is not None
    assert fat - lean >= 8 * 4 * MIB


@pytest.mark.parametrize("budget_mib", [30, 90])
def test_sizes_over_the_budget_are_not_feasible(budget_mib: int) -> None:
    """At least 1 MiB an example in memory, so no batch above the budget's MiB can fit."""
    profile = measure_memory(hungry(1, batch_size=1), budget_bytes=budget_mib * MIB)
    assert profile.budget_bytes == budget_mib * MIB
    assert 1 <= profile.max_verified_batch_size <= budget_mib
    assert profile.upper_bound is not None
    assert profile.max_verified_batch_size <= profile.upper_bound <= budget_mib
    for point in profile.points:
        assert point.peak_bytes is not None
        assert (point.outcome == "ok") == (point.peak_bytes <= profile.budget_bytes)
    # In this process peaks hold what other tests leave to the heap, so count what an example takes.
    assert max(point.batch_size for point in profile.points) <= 2 * budget_mib


@pytest.mark.parametrize("budget_mib", [64, 999_999 * MIB])
def test_a_limit_beyond_what_is_free_is_lowered_and_told(
    monkeypatch: pytest.MonkeyPatch, budget_mib: int
) -> None:
    """999,999 TiB would let the tries take this process down: 100 MiB are free, 4 bytes held."""
    monkeypatch.setattr("rightbatch.hardware.memory.device_budget_bytes", lambda device: 100 * MIB)
    task = hungry(0.01)
    held = sum(p.nbytes for p in task.parameters)
    profile = measure_memory(task, budget_bytes=budget_mib * MIB)
    assert profile.budget_bytes == min(budget_mib * MIB, 100 * MIB + held)
    lowered = [note for note in profile.notes if "a safe share of what is free" in note]
    assert len(lowered) == (budget_mib > 100)


class SteadyMeter:
    """Always the same peak, where the real one would vary with the allocator's mood."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def reset(self) -> None:
        self.calls.append("reset")

    def peak_bytes(self) -> int:
        self.calls.append("peak")
        return 1000


def test_every_try_has_a_peak_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = SteadyMeter()
    monkeypatch.setattr("rightbatch.hardware.memory.meter_for", lambda device: meter)
    profile = measure_memory(task_with(lambda size: None))
    assert meter.calls == ["reset", "peak"] * len(profile.points)


@pytest.mark.parametrize(("workers", "waiting"), [(0, 0), (2, 6)])
def test_batches_that_wait_in_workers_count(
    monkeypatch: pytest.MonkeyPatch, workers: int, waiting: int
) -> None:
    """Two workers with two prefetched batches each, and one in the making: six batches more."""
    monkeypatch.setattr("rightbatch.hardware.memory.meter_for", lambda device: SteadyMeter())
    dataset = torch.ones(16, 5, dtype=torch.float32)
    task = task_with(lambda size: None, dataset=dataset, batch_size=16, num_workers=workers)
    held = sum(p.nbytes for p in task.parameters)
    profile = measure_memory(task)
    assert profile.held_bytes == held
    assert profile.points[-1].peak_bytes == held + 1000 + waiting * 16 * 5 * 4


def test_no_try_begins_that_would_not_end_in_time() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=0.0, beta=0.01, batch_size=8)
    profile = measure_memory(task, time_budget_seconds=10.0, clock=clock)
    # 3 steps each: 0.24 s, 0.96 s, 3.84 s; then 512 would take 15 s, 256 7.7 s of the 4.96 left
    assert [point.batch_size for point in profile.points] == [8, 32, 128]
    assert (profile.max_verified_batch_size, profile.status) == (128, Status.OUT_OF_TIME)
    assert clock() == pytest.approx(5.04)


def test_loading_counts_as_time_too() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=0.0, beta=0.0, load=0.01, batch_size=8)
    start = clock()
    profile = measure_memory(task, time_budget_seconds=10.0, clock=clock)
    assert profile.max_verified_batch_size == 128
    looked_at = 64 * 0.01  # examples whose lengths were compared
    assert clock() - start == pytest.approx(5.04 + looked_at)


def test_the_first_try_runs_to_its_end() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=100.0, beta=0.0, batch_size=8)
    profile = measure_memory(task, time_budget_seconds=1.0, clock=clock)
    assert (profile.max_verified_batch_size, profile.status) == (8, Status.OUT_OF_TIME)


def test_a_try_that_is_far_slower_than_predicted_is_given_up() -> None:
    clock = FakeClock()
    task = task_with(lambda size: clock.advance(0.001 if size < 32 else 50.0), batch_size=8)
    profile = measure_memory(task, time_budget_seconds=10.0, clock=clock)
    assert [(p.batch_size, p.outcome) for p in profile.points] == [(8, "ok"), (32, "slow")]
    assert (profile.max_verified_batch_size, profile.status) == (8, Status.OUT_OF_TIME)
    assert clock() == pytest.approx(50.003)


def test_without_a_time_budget_every_size_is_tried() -> None:
    clock = FakeClock()
    task = timed_task(clock, alpha=1000.0, beta=10.0, examples=64)
    assert measure_memory(task, clock=clock).status is Status.CAPPED


def test_progress_tells_the_size_and_the_share_of_the_time() -> None:
    told: list[tuple[float, str]] = []
    clock = FakeClock()
    task = timed_task(clock, alpha=0.1, beta=0.0, examples=30)
    measure_memory(
        task,
        time_budget_seconds=10.0,
        clock=clock,
        progress=lambda fraction, note: told.append((round(fraction, 6), note)),
    )
    assert told == [
        (0.0, "memory: trying batch size 8"),
        (0.03, "memory: trying batch size 30"),
    ]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget_bytes": 0}, "`budget_bytes` must be positive, got 0"),
        ({"budget_bytes": -5}, "`budget_bytes` must be positive, got -5"),
        ({"time_budget_seconds": 0.0}, r"`time_budget_seconds` must be positive, got 0\.0"),
        ({"time_budget_seconds": math.nan}, "`time_budget_seconds` must be positive, got nan"),
    ],
)
def test_a_budget_that_is_not_positive_is_refused(options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        measure_memory(task_with(lambda size: None), **options)


def test_the_same_seed_draws_the_same_batches() -> None:
    def drawn(seed: int) -> list[float]:
        seen: list[float] = []
        task = task_with(lambda size: None, dataset=torch.arange(40.0))
        loss = task._loss

        def record(model: nn.Module, batch: Tensor) -> Tensor:
            seen.extend(batch.tolist())
            return loss(model, batch)

        task._loss = record
        measure_memory(task, seed=seed)
        return seen

    assert drawn(1) == drawn(1) != drawn(2)
    assert max(Counter(drawn(1)[:24]).values()) == 1  # three batches of 8, all different


@pytest.mark.gpu
@pytest.mark.usefixtures("float32")
def test_a_real_refusal_of_the_device_is_data(device: torch.device) -> None:
    model = Hungry(8 * 2**30).to(device)
    task = Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.arange(1024.0),
        lambda model, batch: model(batch),
        max_batch_size=1024,
    )
    profile = measure_memory(task)
    assert 1 <= profile.max_verified_batch_size < 1024
    assert profile.upper_bound is not None
