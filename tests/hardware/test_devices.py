"""Accelerators, on a machine without one. Oracle: what each function of torch takes and says.

Only what lies below torch's own functions is replaced, so that they check what they are given.
"""

import re
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rightbatch._time import synchronize
from rightbatch.hardware import child, measure_memory, memory
from rightbatch.hardware.budget import device_budget_bytes, room_beside_bytes
from rightbatch.hardware.child import Job, _Attempt
from rightbatch.hardware.fake import _swap_optimizer
from rightbatch.hardware.limits import CudaLimit
from rightbatch.hardware.live_bytes import LiveBytes
from rightbatch.task import Task
from rightbatch.testing import FakeClock, QuadraticTask

GIB = 2**30


@dataclass
class Gpu:
    """The second of two devices with 16 GiB each; it is the current one."""

    total: int = 16 * GIB
    others: int = 0  # bytes of other processes
    reserved: int = 0
    allocated: int = 0
    fraction: float = 1.0
    stats: dict[str, int] = field(default_factory=dict)

    def set_fraction(self, fraction: float, index: int) -> None:
        assert index == 1
        self.fraction = fraction


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    free: Any = lambda device: (gpu.total - gpu.others - gpu.reserved, gpu.total)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for module in (torch.cuda, torch.cuda.memory):
        monkeypatch.setattr(module, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", gpu.set_fraction, raising=False)
    monkeypatch.setattr(
        torch._C, "_cuda_getMemoryFraction", lambda index: gpu.fraction, raising=False
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: gpu.reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: gpu.allocated)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: gpu.stats)
    return gpu


def job(budget_bytes: int) -> Job:
    return Job(
        batch_size=1,
        steps=3,
        most_steps=3,
        long_steps=3,
        patience_seconds=1.0,
        accumulation_steps=1,
        budget_bytes=budget_bytes,
        loose_bytes=0,
        enforced=True,
        seconds=None,
        seed=0,
        threads=1,
        paths=(),
        settings={},
    )


@pytest.mark.parametrize("name", ["cuda:1", "cuda"])
def test_a_try_may_use_its_budget_above_what_the_task_holds(name: str, gpu: Gpu) -> None:
    gpu.reserved = 2 * GIB
    limit = CudaLimit(torch.device(name), 4 * GIB)
    assert gpu.fraction == 6 / 16
    limit.loosen(30 * GIB)
    assert gpu.fraction == 1.0
    limit.loosen(2 * GIB)
    limit.lift()
    assert gpu.fraction == 1.0


def test_an_allocator_that_had_to_start_over_has_thrashed(gpu: Gpu) -> None:
    limit = CudaLimit(torch.device("cuda:1"), GIB)  # no statistics at all is none
    assert not limit.thrashed()
    gpu.stats = {"num_alloc_retries": 1}
    assert limit.thrashed()
    limit.loosen(2 * GIB)
    assert not limit.thrashed()


@pytest.mark.parametrize(("at", "outcome"), [(1, "ok"), (2, "thrash"), (3, "thrash")])
def test_only_from_the_second_step_on_starting_over_counts(
    at: int, outcome: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first one libraries try out workspaces, and take the next smaller one."""
    calls = []

    def loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        if len(calls) == at:
            gpu.stats = {"num_alloc_retries": 1}
        return model(batch).mean()

    model = torch.nn.Linear(1, 1)
    task = Task(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(9, 1), loss)
    limit = CudaLimit(torch.device("cuda:1"), GIB)
    monkeypatch.setattr(child, "limit_for", lambda *_, **__: limit)
    assert _Attempt(task, None, job(GIB)).run().outcome == outcome
    assert len(calls) == 3


@pytest.mark.parametrize(("seconds", "steps"), [(None, 12), (100.0, 12), (10.0, 3)])
def test_a_heap_that_grows_is_watched_for_a_fifth_of_the_time(
    seconds: float | None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of one second, each with a new peak: other sizes want to be tried too."""
    clock, taken = FakeClock(), []

    def loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        taken.append(0)
        clock.advance(1.0)
        return model(batch).mean()

    model = torch.nn.Linear(1, 1)
    task = Task(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(9, 1), loss)
    meter = SimpleNamespace(reset=lambda: None, peak_bytes=lambda: len(taken))
    monkeypatch.setattr(child, "wall_clock", clock)
    monkeypatch.setattr(child, "meter_for", lambda device: meter)
    attempt = _Attempt(
        task, None, replace(job(GIB), enforced=False, most_steps=12, seconds=seconds)
    )
    assert attempt.run().outcome == "ok"
    assert len(taken) == steps


def failing(used_bytes: int, text: str) -> Task:
    """A task whose step takes so much and then fails, with words that do not say why."""

    def loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        used = torch.ones(used_bytes, dtype=torch.uint8)
        raise RuntimeError(f"{text} ({len(used)})")

    model = torch.nn.Linear(1, 1)
    return Task(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(9, 1), loss)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "FIND was unable to find an engine to execute this computation",
        "InductorError: RuntimeError: can't start new thread",
    ],
)
def test_a_library_that_fails_where_memory_is_full_has_none(text: str) -> None:
    not_enforced = replace(job(96 * 2**20), enforced=False)
    full, empty = (
        _Attempt(failing(used, text), None, not_enforced) for used in (96 * 2**20, 2**20)
    )
    assert full.run().outcome == "oom"
    with pytest.raises(RuntimeError, match=re.escape(text)):
        empty.run()


# What is predicted.


def predicted_bytes(options: dict[str, Any], swap: bool) -> int:
    """Peak of a step of Adam on six weights of 4 MB each, on a GPU that there is not."""
    with FakeTensorMode():
        weights = [torch.nn.Parameter(torch.empty(1000, 1000, device="cuda")) for _ in range(6)]
        optimizer = torch.optim.Adam(weights, lr=1e-3, **options)
        undo = _swap_optimizer(optimizer, lambda thing: thing) if swap else None
        gradients = [torch.empty_like(weight) for weight in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        with LiveBytes([*weights, *gradients]) as alive:
            optimizer.step()
            optimizer.step()
    if undo is not None:
        undo()
        assert optimizer.param_groups[0]["foreach"] is options.get("foreach")
    return alive.peak_bytes


@pytest.mark.usefixtures("float32")
def test_a_step_on_all_tensors_at_once_is_predicted_where_a_device_takes_it() -> None:
    """One temporary for each of the weights; one weight after the other has three for itself."""
    listed, single = (predicted_bytes({"foreach": way}, swap=False) for way in (True, False))
    assert listed - single == (6 - 3) * 4_000_000
    assert predicted_bytes({}, swap=True) == listed
    assert predicted_bytes({"foreach": False}, swap=True) == single
    assert predicted_bytes({"fused": True}, swap=True) < single


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_other_devices_step_on_one_tensor_after_another(kind: str) -> None:
    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.empty(3, device=kind))
        optimizer = torch.optim.Adam([weight])
    undo = _swap_optimizer(optimizer, lambda thing: thing)
    assert optimizer.param_groups[0]["foreach"] is None
    undo()


# What is free.


def test_cached_memory_is_free_and_that_of_others_is_not(gpu: Gpu) -> None:
    gpu.others, gpu.reserved, gpu.allocated = 3 * GIB, 6 * GIB, 2 * GIB
    assert device_budget_bytes(torch.device("cuda:1")) == int(0.9 * 11 * GIB)


@pytest.mark.parametrize("name", ["cuda:1", "cuda"])
def test_a_share_that_a_process_allows_itself_is_all_it_has(name: str, gpu: Gpu) -> None:
    gpu.fraction, gpu.allocated, gpu.reserved = 0.5, GIB, GIB
    assert device_budget_bytes(torch.device(name)) == int(0.9 * 7 * GIB)


def test_a_device_that_does_not_tell_what_is_free_counts_as_one_s_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(device: torch.device) -> tuple[int, int]:
        raise RuntimeError("The device doesn't support querying the available free memory.")

    monkeypatch.setattr(torch.xpu, "mem_get_info", refuse)
    monkeypatch.setattr(
        torch.xpu, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * GIB)
    )
    monkeypatch.setattr(torch.xpu, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.xpu, "memory_allocated", lambda device: GIB)
    monkeypatch.delattr(torch.xpu, "get_per_process_memory_fraction", raising=False)
    assert device_budget_bytes(torch.device("xpu:0")) == int(0.9 * 7 * GIB)


def test_a_second_copy_needs_room_beside_the_first(gpu: Gpu) -> None:
    """16 GiB, of which 6 are held here: 10 are left, and not even all of those for tensors."""
    gpu.allocated = gpu.reserved = 6 * GIB
    device = torch.device("cuda:1")
    assert 9 * GIB < room_beside_bytes(device) < 10 * GIB
    gpu.reserved = 9 * GIB  # what is cached will be given back
    assert 9 * GIB < room_beside_bytes(device) < 10 * GIB


def test_where_two_copies_have_no_room_the_first_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the first, a second one would be refused sizes that training has room for."""
    monkeypatch.setattr(memory, "room_beside_bytes", lambda device: 2**29 - 1)
    profile = measure_memory(QuadraticTask(examples=32).task, budget_bytes=2**29)
    assert profile.max_verified_batch_size == 32
    assert "Tried in this process" in profile.notes[0]


# Waiting.


@pytest.mark.parametrize(
    ("name", "waited"),
    [("cpu", []), ("mps:0", ["mps"]), ("cuda:1", ["cuda:1"]), ("xpu:0", ["xpu:0"])],
)
def test_each_device_is_waited_for_in_its_own_way(
    name: str, waited: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: seen.append("mps"))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: seen.append(str(device)))
    synchronize(torch.device(name))
    assert seen == waited
