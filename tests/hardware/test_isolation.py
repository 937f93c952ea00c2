"""Tries in processes of their own. Every failure is made for real there, and harms nothing here."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rightbatch import hardware
from rightbatch.errors import TaskError
from rightbatch.hardware.child import Answer
from rightbatch.hardware.isolation import CannotIsolate, Isolated
from rightbatch.results import Status
from rightbatch.task import Task
from rightbatch.tasks import load_task
from tests.hardware.tasks import Hungry
from tests.laws import assert_world_unchanged

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are enforced on Linux")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float32")]


def hungry(mib_per_example: float = 1.0, effect=None, **options) -> Task:
    """A task that holds so much per example, and does something besides."""
    model = Hungry(int(mib_per_example * MIB))

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        if effect is not None and len(batch) > 8:  # not in the preflight
            effect()
        return model(batch).mean()

    data = torch.arange(4096.0)
    return Task(model, torch.optim.SGD(model.parameters(), lr=0.1), data, loss, **options)


def outcome_of(effect, *, size: int = 16, budget: int = 400 * MIB, **options):
    with Isolated(hungry(effect=effect)) as isolated:
        return isolated.try_size(size, budget_bytes=budget, **options)


def exit_for_good():
    os._exit(3)


def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_long():
    time.sleep(600)


KEPT = []


def leak():
    KEPT.append(torch.ones(10 * MIB // 4))


def leak_little():
    KEPT.append(torch.ones(MIB // 4))


def work_on_all_threads():
    torch.ones(2**21).add_(1)


class Odd(Exception):
    """An error of the task's own."""


def raise_oddly():
    raise Odd("no such batch")


def child_processes() -> list[str]:
    found = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in found.stdout.splitlines() if "rightbatch.hardware.child" in line]


def test_what_fits_gives_its_peak_and_its_time():
    answer = outcome_of(None, size=64)
    assert answer.outcome == "ok"
    assert 64 * MIB <= answer.peak_bytes <= 400 * MIB
    assert answer.seconds_per_example > 0


@linux
def test_memory_above_the_budget_is_refused_and_not_taken():
    answer = outcome_of(None, size=1000)
    assert (answer.outcome, answer.peak_bytes) == ("oom", None)
    assert "allocate memory" in answer.note


@linux
def test_what_was_refused_goes_on_under_a_looser_limit_to_learn_its_peak():
    """120 MiB at least, of 100 that are allowed."""
    answer = outcome_of(None, size=120, budget=100 * MIB, loose_bytes=900 * MIB)
    assert answer.outcome == "oom"
    assert 120 * MIB <= answer.peak_bytes <= 900 * MIB
    assert "allocate memory" in answer.note


@linux
def test_the_looser_limit_is_a_limit_too():
    answer = outcome_of(None, size=1000, budget=200 * MIB, loose_bytes=400 * MIB)
    assert (answer.outcome, answer.peak_bytes) == ("oom", None)


@linux
def test_state_that_was_half_made_when_memory_ran_out_is_made_anew():
    """A weight of 40 MiB, its gradient, and two averages, of which one does not fit."""
    model = nn.Linear(10 * MIB, 1, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    task = Task(model, optimizer, torch.zeros(8, 1), lambda m, x: m.weight.sum() * x.sum())
    with Isolated(task) as isolated:
        answer = isolated.try_size(2, budget_bytes=110 * MIB, loose_bytes=500 * MIB)
    assert answer.outcome == "oom"
    assert 110 * MIB <= answer.peak_bytes <= 500 * MIB


STEPS = []


def take_more_in_the_thirtieth_step():
    STEPS.append(torch.ones(200 * MIB // 4) if len(STEPS) == 29 else None)


@linux
@pytest.mark.parametrize(("patience", "sees_it"), [(600.0, True), (0.0, False)])
def test_quick_steps_are_taken_for_longer(monkeypatch, patience, sees_it):
    monkeypatch.setattr("rightbatch.hardware.isolation._PATIENCE_SECONDS", patience)
    answer = outcome_of(take_more_in_the_thirtieth_step)
    assert (answer.peak_bytes > 200 * MIB) == sees_it


@pytest.mark.parametrize(
    ("effect", "outcome"), [(kill_oneself, "killed"), (leak, "leak")], ids=["killed", "leak"]
)
def test_every_death_has_its_name(effect, outcome):
    assert outcome_of(effect, steps=5).outcome == outcome
    assert not child_processes()


@linux
def test_threads_are_not_charged_to_a_batch():
    """Their stacks take 8 MiB each: of 64 threads thrice the limit."""
    before = torch.get_num_threads()
    torch.set_num_threads(64)
    try:
        answer = outcome_of(work_on_all_threads, budget=150 * MIB)
    finally:
        torch.set_num_threads(before)
    assert answer.outcome == "ok"


LASTING = []


def make_lasting_things_in_the_first_three_steps():
    if len(LASTING) < 3:
        LASTING.append(torch.ones(10 * MIB // 4))


def test_lasting_things_that_are_made_late_are_no_leak():
    assert outcome_of(make_lasting_things_in_the_first_three_steps).outcome == "ok"


def test_a_leak_is_not_taken_for_a_model_too_large():
    """A MiB is kept in each step, under a limit of 80 of which a step takes little."""
    profile = hardware.measure_memory(hungry(effect=leak_little), budget_bytes=80 * MIB)
    real = [p.outcome for p in profile.points if p.source == "real"]
    assert (profile.status, real[-1], real.count("leak")) == (Status.LEAK, "leak", 1)
    assert profile.upper_bound > 0


def test_what_hangs_is_killed(monkeypatch):
    monkeypatch.setattr("rightbatch.hardware.isolation._START_SECONDS", 30.0)
    answer = outcome_of(sleep_long, seconds=0.5)
    assert answer.outcome == "hang"
    assert not child_processes()


def test_what_hangs_is_killed_where_no_time_was_given_too(monkeypatch):
    monkeypatch.setattr("rightbatch.hardware.isolation._START_SECONDS", 30.0)
    monkeypatch.setattr("rightbatch.hardware.isolation._MOST_SECONDS", 0.5)
    assert outcome_of(sleep_long).outcome == "hang"


def test_what_would_take_too_long_is_given_up():
    assert outcome_of(lambda: time.sleep(0.5), seconds=0.2, steps=3).outcome == "slow"


def test_an_exit_is_named():
    with pytest.raises(TaskError, match="exit status 3"):
        outcome_of(exit_for_good)


def test_an_error_of_the_tasks_own_arrives_as_it_was_raised():
    with pytest.raises(Odd, match="no such batch"):
        outcome_of(raise_oddly)


def test_an_open_file_cannot_be_sent(tmp_path):
    with open(tmp_path / "log", "w") as handle:
        task = hungry(effect=lambda: handle.write("step"))
        with pytest.raises(CannotIsolate, match="picklable"):
            Isolated(task)
        profile = hardware.measure_memory(task, budget_bytes=60 * MIB)
    assert 1 <= profile.max_verified_batch_size <= 60
    assert "Tried in this process" in profile.notes[0]


def run_out(*_):
    raise torch.OutOfMemoryError("no room for a second one")


class TooLargeThere:
    """What cannot be made again."""

    def __reduce__(self):
        return run_out, ()


def test_a_task_without_room_for_a_second_is_no_batch_too_large():
    task = hungry()
    task.model.rest = TooLargeThere()
    with (
        Isolated(task) as isolated,
        pytest.raises(CannotIsolate, match="OutOfMemoryError: no room for a second one"),
    ):
        isolated.try_size(4, budget_bytes=400 * MIB)


def test_what_is_cached_here_is_given_back_before_a_try(monkeypatch):
    happened = []
    monkeypatch.setattr(
        "rightbatch.hardware.isolation.reclaim", lambda device: happened.append(device.type)
    )

    def run(command, timeout):
        happened.append("try")
        Path(command[-1], "job.json").unlink()  # the task was there
        return -9, ""

    monkeypatch.setattr("rightbatch.hardware.isolation._run", run)
    assert outcome_of(None).outcome == "killed"
    assert happened == ["cpu", "try"]


def test_what_is_sent_is_small_and_holds_every_storage_once():
    rows = torch.zeros(2_000_000)  # 8 MB
    model = nn.Linear(1, 1)
    model.views = [rows[i:] for i in range(50)]
    task = Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.zeros(99, 1),
        lambda m, x: m(x).mean(),
    )
    with Isolated(task) as isolated:
        (path,) = Path(isolated._folder.name).glob("task.pickle")
        assert 8e6 < path.stat().st_size < 9e6


def test_ctrl_c_leaves_nothing_running(monkeypatch):
    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if self.poll() is None and not getattr(self, "seen", False):
                self.seen = True
                raise KeyboardInterrupt("now")
            return super().wait(timeout)

    monkeypatch.setattr("rightbatch.hardware.isolation.subprocess.Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt, match="now"):
        outcome_of(sleep_long)
    monkeypatch.undo()
    assert not child_processes()


@linux
def test_the_search_is_certified_and_leaves_the_parent_as_it_was():
    """At least 2 MiB an example, so at most 150 examples fit into 300 MiB."""
    task = hungry(2.0)
    profiles = []
    assert_world_unchanged(
        task,
        lambda: profiles.append(hardware.measure_memory(task, budget_bytes=300 * MIB)),
        interrupt=False,
    )
    (profile,) = profiles
    assert profile.status is Status.OK
    assert 1 <= profile.max_verified_batch_size <= profile.upper_bound <= 150
    real = [p for p in profile.points if p.source == "real"]
    assert profile.max_verified_batch_size in {p.batch_size for p in real if p.outcome == "ok"}
    assert len(real) <= 3


@linux
@pytest.mark.data
def test_what_was_verified_trains_on_and_twice_the_bound_does_not():
    task = load_task("shakespeare")
    limit = 300 * MIB
    profile = hardware.measure_memory(task, budget_bytes=limit)
    spare = limit - profile.held_bytes
    with Isolated(task) as isolated:
        trained = isolated.try_size(profile.max_verified_batch_size, budget_bytes=spare, steps=50)
        assert trained.outcome == "ok"
        assert isolated.try_size(2 * profile.upper_bound, budget_bytes=spare).outcome == "oom"


@pytest.mark.parametrize("free_mib", [50, 10_000])
def test_no_limit_is_looser_than_what_is_free(monkeypatch, free_mib):
    """Three times the budget of 60 MiB, less what is held, or all that is free."""
    given = []

    def try_size(self, size, *, loose_bytes, **options):
        given.append(loose_bytes)
        return Answer(outcome="ok", peak_bytes=size * MIB)

    monkeypatch.setattr(Isolated, "try_size", try_size)
    monkeypatch.setattr(
        "rightbatch.hardware.memory.device_budget_bytes", lambda device: free_mib * MIB
    )
    hardware.measure_memory(hungry(), budget_bytes=60 * MIB)
    assert set(given) == {min(free_mib * MIB, 180 * MIB - 4)}  # one weight of 4 bytes is held


def test_a_model_that_needs_more_than_the_limit_runs_nothing():
    profile = hardware.measure_memory(hungry(50.0), budget_bytes=40 * MIB)
    assert profile.status is Status.NOTHING_FITS
    assert [p.source for p in profile.points] == ["fake"]
    assert profile.points[0].peak_bytes > 40 * MIB


def test_a_file_outside_the_project_is_sent_too(tmp_path):
    path = Path(tmp_path, "mine.py")
    path.write_text(
        "import torch, rightbatch as rb\n"
        "class Net(torch.nn.Linear):\n    pass\n"
        "def task():\n"
        "    net = Net(1000, 1)\n"
        "    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "    return rb.Task(net, optimizer, torch.ones(90, 1000), lambda m, x: m(x).mean())\n"
    )
    profile = hardware.measure_memory(load_task(f"{path}:task"))
    assert profile.max_verified_batch_size == 90
    assert not any("Tried in this process" in note for note in profile.notes)
