"""A try must not take what is not free, its own copy of the task among it. Oracle: arithmetic."""

import pytest
import torch
from torch import nn

from rightbatch import hardware
from rightbatch.hardware.child import Answer
from rightbatch.hardware.isolation import Isolated
from rightbatch.task import Task
from tests.hardware.tasks import task_with

MIB = 2**20
START = 300 * MIB  # of a process
TABLE = 100 * MIB


def holding_a_table() -> Task:
    model = nn.Linear(10, 1)
    model.register_buffer("table", torch.zeros(TABLE // 8))  # float64
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Task(model, optimizer, torch.ones(4000, 10), lambda model, x: model(x).mean())


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What tries were given, strictly and loosely, beyond their own copy of the task."""
    seen: list[tuple[int, int]] = []

    def try_size(self: Isolated, size: int, *, budget_bytes: int, loose_bytes: int, **_: object):
        seen.append((budget_bytes, loose_bytes))
        return Answer(outcome="ok", peak_bytes=size * 1000)

    monkeypatch.setattr(Isolated, "try_size", try_size)
    return seen


def pretend_free(monkeypatch: pytest.MonkeyPatch, free_mib: int) -> None:
    where = "rightbatch.hardware.budget"
    monkeypatch.setattr(f"{where}.host_free_bytes", lambda **_: free_mib * MIB)
    monkeypatch.setattr(f"{where}._resource_headrooms", lambda own: [])


@pytest.mark.parametrize("free_mib", [1610, 2000, 9000])
def test_with_room_for_both_the_whole_share_is_tried(
    monkeypatch: pytest.MonkeyPatch, given: list[tuple[int, int]], free_mib: int
) -> None:
    """Of 1,600 MiB 1,200 may be taken; with a copy of 100 and 300 to start they are just full."""
    pretend_free(monkeypatch, free_mib)
    profile = hardware.measure_memory(holding_a_table())
    assert profile.budget_bytes == int(0.75 * free_mib * MIB) + profile.held_bytes
    assert not profile.notes
    strict, loose = given[-1]
    assert loose == int(0.75 * free_mib * MIB)
    assert strict <= loose
    assert START + profile.held_bytes + loose <= free_mib * MIB


@pytest.mark.parametrize("free_mib", [400, 1590])
def test_without_room_for_both_it_is_tried_here_and_told(
    monkeypatch: pytest.MonkeyPatch, given: list[tuple[int, int]], free_mib: int
) -> None:
    pretend_free(monkeypatch, free_mib)
    profile = hardware.measure_memory(holding_a_table())
    assert not given
    assert profile.budget_bytes == int(0.75 * free_mib * MIB) + profile.held_bytes
    assert profile.max_verified_batch_size > 0
    assert "Tried in this process, not in one of its own: there must be room" in profile.notes[0]


def test_a_looser_try_takes_no_more_than_is_free_either(
    monkeypatch: pytest.MonkeyPatch, given: list[tuple[int, int]]
) -> None:
    """1,125 MiB may be taken beside the 100 held; a second process has 1,200 for everything."""
    pretend_free(monkeypatch, 1500)
    profile = hardware.measure_memory(holding_a_table(), budget_bytes=500 * MIB)
    assert given[-1][1] == 1200 * MIB - profile.held_bytes


@pytest.mark.parametrize(("free_mib", "most_mib"), [(9000, 1250), (1200, 1000), (1400, 1100)])
def test_in_this_process_no_try_goes_beyond_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free_mib: int, most_mib: int
) -> None:
    """A quarter above the limit of 1,000 MiB, unless less than that is free."""
    pretend_free(monkeypatch, free_mib)
    sizes: list[int] = []

    class Meter:
        """Reads a MiB an example."""

        def reset(self) -> None:
            pass

        def peak_bytes(self) -> int:
            return sizes[-1] * MIB

    monkeypatch.setattr("rightbatch.hardware.memory.meter_for", lambda device: Meter())
    monkeypatch.setattr("rightbatch.hardware.memory.device_budget_bytes", lambda device: 1000 * MIB)
    task = task_with(sizes.append, dataset=torch.ones(4000), batch_size=500)
    hardware.measure_memory(task, budget_bytes=1000 * MIB, isolate=False)
    assert max(sizes) == pytest.approx(most_mib, abs=2)
