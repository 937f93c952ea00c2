"""``rightbatch throughput`` where ranks were launched, and where joules are asked for."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import rightbatch as rb
from rightbatch._time import Deadline, no_progress
from rightbatch.cli import throughput as command
from rightbatch.cli.commands import app
from rightbatch.cli.session import Session
from rightbatch.cli.throughput import affordable_sizes, joined, measure_steps
from rightbatch.hardware.cache import MeasurementCache
from rightbatch.results import EnergyPoint
from rightbatch.testing import FakeClock, QuadraticTask
from tests.plan.made_up import throughput
from tests.results_samples import full, least

pytestmark = pytest.mark.usefixtures("float32")

TASK = """
import torch
from torch import nn
import rightbatch as rb

def make_task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 30), nn.BatchNorm1d(30), nn.Linear(30, 2))
    if torch.distributed.is_initialized():
        model = nn.parallel.DistributedDataParallel(model)
    data = [(torch.randn(4), torch.randn(2)) for _ in range(96)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return rb.Task(model, optimizer, data, rb.supervised(nn.functional.mse_loss), batch_size=8)
"""
ARGUMENTS = ("throughput", "lab_task.py:make_task", "--time-budget", "1", "--fresh")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task file, and the current folder."""
    (tmp_path / "lab_task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def run(*arguments: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.slow
def test_two_ranks_measure_together_and_one_delivers(lab: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("-m", "rightbatch", *ARGUMENTS, "--energy", "--json", "--output", "out"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)  # of one rank only, or it would be no JSON
    assert done.stderr.count("other ranks draw too") == 1
    saved = rb.load("out/results.json")
    assert printed == json.loads(Path("out/results.json").read_text())
    assert saved.communication is not None
    assert saved.communication.world_size == 2
    assert saved.communication.gradient_bytes == 4 * (4 * 30 + 30 + 60 + 30 * 2 + 2)
    assert saved.communication.sync_step_seconds is not None
    assert saved.throughput is not None
    assert saved.energy is None
    assert list(saved.seconds) == ["communication", "throughput"]


def test_alone_there_is_no_communication_and_no_reason_for_energy_that_nobody_wants(
    lab: Path,
) -> None:
    done = run(*ARGUMENTS, "--output", "out")
    assert done.exit_code == 0, done.stderr
    assert "Energy" not in done.stderr
    saved = json.loads(Path("out/results.json").read_text())
    assert not {"communication", "energy"} & saved.keys()


def test_without_counters_one_line_says_why(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "energy_counters", lambda device: "Energy was not measured: dark.")
    done = run(*ARGUMENTS, "--energy")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("Energy was not measured: dark.") == 1
    assert "examples/s" in done.stdout


def test_joules_are_kept_and_planned_with(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def made(task: rb.Task, sizes: list[int], **options: Any) -> rb.EnergyProfile | None:
        asked.append(sizes)
        points = tuple(
            EnergyPoint(batch_size=b, joules_per_step=j, low=j, high=j)
            for b in sizes
            for j in [10.0 + b]
        )
        return rb.EnergyProfile(
            points=points, joules=10.0, joules_per_example=1.0, window_seconds=5.0,
            price_per_kwh=None, status=rb.Status.OK,
        )  # fmt: skip

    monkeypatch.setattr(command, "energy_counters", lambda device: None)
    monkeypatch.setattr(command, "measure_energy", made)
    monkeypatch.setattr(command, "affordable_sizes", lambda points, seconds: [4, 32])
    done = run(*ARGUMENTS, "--energy", "--output", "out")
    assert done.exit_code == 0, done.stderr
    assert "Energy of one optimizer step" in done.stdout
    saved = rb.load("out/results.json")
    assert saved.throughput is not None
    assert asked == [[4, 32]]
    critical = rb.CriticalBatchSize(
        value=40.0, low=40.0, high=40.0, source="sweep", status=rb.Status.OK
    )
    found = rb.Findings(
        task=saved.task, environment={}, throughput=saved.throughput, critical_batch_size=critical
    )
    found.save("found.json")
    dark = run("plan", "found.json", "--objective", "energy")
    assert "needs measured joules" in dark.stderr
    planned = run("plan", "found.json", "--add", "out/results.json", "--objective", "energy")
    assert planned.exit_code == 0, planned.stderr
    assert "Chosen for the least energy." in " ".join(planned.stdout.split())
    replace(found, task=replace(found.task, parameters=7)).save("other.json")
    refused = run("plan", "other.json", "--add", "out/results.json")
    assert refused.exit_code == 2
    assert "must be of one model to be joined, got 7 and" in refused.stderr


def test_too_little_time_for_joules_is_told(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes with three windows of 5 s each do not fit in a second."""

    def nobody(*args: Any, **options: Any) -> None:
        raise AssertionError("measured without the time for it")

    monkeypatch.setattr(command, "energy_counters", lambda device: None)
    monkeypatch.setattr(command, "measure_energy", nobody)
    done = run(*ARGUMENTS, "--energy")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("Energy was not measured: its windows need 3") == 1
    assert "examples/s" in done.stdout


class Made:
    """Instruments that take chosen times of a made clock, and remember what they were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
        self.clock, self.seconds = FakeClock(), seconds
        self.given: dict[str, Any] = {}
        monkeypatch.setattr(command, "Deadline", lambda budget: Deadline(budget, self.clock))
        monkeypatch.setattr(command, "energy_counters", lambda device: None)
        for name in ("communication", "throughput", "energy"):
            monkeypatch.setattr(command, f"measure_{name}", partial(self._measure, name))

    def _measure(self, name: str, task: rb.Task, *sizes: list[int], **options: Any) -> Any:
        self.given[name] = sizes[0] if sizes else options["time_budget_seconds"]
        self.clock.advance(self.seconds.get(name, 0.0))
        if name == "throughput":
            return throughput(sizes=(4, 8, 16, 32, 64), alpha=0.01, beta=1e-9)
        return getattr(full(), name)

    def run(
        self, folder: Path, *, ranks: int = 1, fresh: bool = True, **options: Any
    ) -> dict[str, Any]:
        session = Session(None, as_json=False, traceback=False)
        task = QuadraticTask().task
        session.keep(rb.Findings(task=task.facts(), environment={}))
        measure_steps(
            session,
            task,
            SimpleNamespace(rank=0, world_size=ranks),  # type: ignore[arg-type]
            MeasurementCache(folder, fresh=fresh),
            **{"time_budget_seconds": 100.0, "seed": 0, "energy": True} | options,
            progress=no_progress,
        )
        return self.given


def test_joules_and_throughput_share_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 s throughput has 40, and 16 s a size leave time for three."""
    made = Made(monkeypatch, throughput=40.0)
    assert made.run(tmp_path) == {"communication": 30.0, "throughput": 40.0, "energy": [4, 16, 64]}
    alone = Made(monkeypatch).run(tmp_path, energy=False)
    assert alone == {"communication": 30.0, "throughput": 100.0}


@pytest.mark.parametrize(
    ("budget", "spent", "told"),
    [
        # Two sizes take 31.3 s: three fifths of 53, or what is left of 102.
        (30.0, 12.0, "31 s at least, and 18 s of the time budget are left. Use --time-budget 53."),
        (
            100.0,
            70.0,
            "31 s at least, and 30 s of the time budget are left. Use --time-budget 102.",
        ),
        (1.0, 2.0, "31 s at least, and 0 s of the time budget are left. Use --time-budget 53."),
    ],
)
def test_the_time_that_joules_need_is_named(
    budget: float,
    spent: float,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = Made(monkeypatch, throughput=spent)
    assert "energy" not in made.run(tmp_path, time_budget_seconds=budget)
    assert capsys.readouterr().err == f"Energy was not measured: its windows need {told}\n"


def test_one_size_that_was_timed_is_enough_for_joules() -> None:
    (point,) = throughput(sizes=(8,), alpha=1.0).points
    assert affordable_sizes([point], 23.0) == [8]  # 4 steps, and 3 windows of 5 s and a step
    assert affordable_sizes([point], 21.9) == []


def test_what_communication_leaves_throughput_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Made(monkeypatch, communication=10.0).run(tmp_path, ranks=2)["throughput"] == 90.0
    assert Made(monkeypatch, communication=80.0).run(tmp_path, ranks=2)["throughput"] == 70.0


def test_throughput_that_is_known_leaves_its_time_to_joules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was measured in all of the time or in the share that it has beside joules."""
    for name, energy in (("whole", False), ("share", True)):
        Made(monkeypatch, throughput=40.0).run(tmp_path / name, energy=energy)
        again = Made(monkeypatch).run(tmp_path / name, fresh=False)
        assert again == {"communication": 30.0, "energy": [4, 8, 16, 32, 64]}


def findings(*parts: str, name: str = "digits", optimizer: str = "SGD", **environment: str):  # type: ignore[no-untyped-def]
    """Findings of which only these parts were measured."""
    made = full()
    return rb.Findings(
        task=replace(made.task, name=name, optimizer=optimizer),
        environment=environment,
        **{part: getattr(made, part) for part in parts},
    )


GPU = {"device": "cuda:1", "device_name": "NVIDIA H200"}


@pytest.mark.parametrize("part", ["memory", "communication", "energy"])
@pytest.mark.parametrize(
    ("other", "called"), [(GPU, "NVIDIA H200"), ({"device": "mps:0"}, "mps")], ids=["cuda", "mps"]
)
def test_what_is_of_another_device_is_not_joined(
    part: str, other: dict[str, str], called: str
) -> None:
    told = f"got throughput of cpu and {part} of {called}: neither says"
    with pytest.raises(rb.ResultsError, match=told):
        joined(findings("throughput", device="cpu"), findings(part, **other))


def test_another_device_of_the_same_kind_is_joined() -> None:
    first = {**GPU, "device": "cuda"}
    both = joined(findings("throughput", **first), findings("memory", "energy", **GPU))
    assert both.energy == full().energy
    assert both.environment == first
    with pytest.raises(rb.ResultsError, match="of NVIDIA H200 and energy of NVIDIA A100:"):
        joined(
            findings("throughput", **GPU),
            findings("energy", **GPU | {"device_name": "NVIDIA A100"}),
        )


def test_gradient_noise_is_of_any_device_and_times_are_of_theirs() -> None:
    """What was learnt on a CPU, planned for the device that was timed; and the other way."""
    learnt = findings("noise", "critical_batch_size", device="cpu")
    timed = findings("throughput", "critical_batch_size", **GPU)
    both = joined(learnt, timed)
    assert (both.noise, both.throughput) == (full().noise, full().throughput)
    assert both.environment == GPU
    assert joined(timed, learnt).environment == GPU


def test_nothing_is_refused_for_what_is_not_taken() -> None:
    known = findings("throughput", "noise", device="cpu")
    assert joined(known, findings("throughput", optimizer="Adam", name="other", **GPU)) == known


def test_what_is_of_another_optimizer_is_not_joined() -> None:
    with pytest.raises(rb.ResultsError, match="of one optimizer to be joined, got SGD and Adam:"):
        joined(findings("throughput"), findings("energy", optimizer="Adam"))
    sharded = findings("communication", "throughput", optimizer="ZeroRedundancyOptimizer")
    assert joined(findings("throughput"), sharded).communication == full().communication


def test_another_name_is_told() -> None:
    both = joined(findings("throughput"), findings("energy", "communication", name="words"))
    assert both.task.warnings == (
        "one warning.",
        "communication, energy come from results of 'words', the rest is of 'digits': they were "
        "joined because both models have as many parameters.",
    )
    wrapped = findings("communication", name="DistributedDataParallel")
    assert joined(findings("throughput"), wrapped).task.warnings == ("one warning.",)


def test_counters_that_stand_still_are_told(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "energy_counters", lambda device: None)
    monkeypatch.setattr(command, "measure_energy", lambda *args, **options: None)
    monkeypatch.setattr(command, "affordable_sizes", lambda points, seconds: [4, 32])
    done = run(*ARGUMENTS, "--energy")
    assert "the counters of the device do not move" in done.stderr


def test_time_is_counted_once() -> None:
    """What came before a part is not in its time."""
    clock = SimpleNamespace(now=0.0)
    watch = Deadline(1e9, lambda: clock.now)
    session = Session(None, as_json=False, traceback=False, watch=watch)
    session.keep(rb.Findings(task=least().task, environment={}))
    for name, now in (("first", 2.0), ("second", 5.0)):
        clock.now = now
        session.add(name)
    assert session.findings is not None
    assert session.findings.seconds == {"first": 2.0, "second": 3.0}
