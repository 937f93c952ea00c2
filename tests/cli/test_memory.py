"""``rightbatch memory``: what is said and answered where nothing ran, and which ranks speak."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import rightbatch as rb
from rightbatch._comm import Alone, Comm
from rightbatch._time import no_progress
from rightbatch.cli.commands import app
from rightbatch.cli.memory import exit_if_none_verified, measure_sizes
from rightbatch.cli.session import Session
from rightbatch.errors import RightBatchError
from rightbatch.hardware.cache import MeasurementCache
from rightbatch.results import MemoryPoint, MemoryProfile
from rightbatch.testing import QuadraticTask
from tests.report import samples

pytestmark = pytest.mark.usefixtures("float32")

TASK = """
import torch
from torch import nn
import rightbatch as rb

def make_task():
    torch.manual_seed(0)
    model = nn.Linear(100, 2)
    if torch.distributed.is_initialized():
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return rb.Task(model, optimizer, torch.randn(96, 100), lambda m, x: m(x).mean(), batch_size=8)
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task file, and the current folder."""
    (tmp_path / "lab_task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def memory(*arguments: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, ["memory", "lab_task.py:make_task", *arguments])


def test_a_task_that_never_ran_is_not_called_too_large(lab: Path) -> None:
    done = memory("--time-budget", "1e-6", "--memory-limit", "300MiB", "--json")
    assert done.exit_code == 1
    said = " ".join(done.stderr.split())
    assert "error: no size was run to its end in time, limit 300 MiB" in said
    assert "by tensors alone up to 96 may fit. The time budget ended first." in said
    found = json.loads(done.stdout)["memory"]
    assert found["status"] == "out_of_time"
    assert {point["source"] for point in found["points"]} == {"fake"}


@pytest.mark.parametrize(("free_mib", "kept"), [(10, False), (1000, True)])
def test_what_was_found_under_a_lowered_limit_is_not_kept_for_the_limit(
    lab: Path, monkeypatch: pytest.MonkeyPatch, free_mib: int, kept: bool
) -> None:
    """Little is free at first, and the answer is that to less than the 50 MiB asked for."""
    name = "rightbatch.hardware.memory.device_budget_bytes"
    monkeypatch.setattr(name, lambda device: free_mib * 2**20)
    limit = ("--memory-limit", "50MiB", "--json")
    first = memory(*limit)
    assert first.exit_code == 0, first.stderr
    assert (json.loads(first.stdout)["memory"]["budget_bytes"] == 50 * 2**20) == kept
    monkeypatch.setattr(name, lambda device: 1000 * 2**20)
    second = memory(*limit)
    assert json.loads(second.stdout)["memory"]["budget_bytes"] == 50 * 2**20
    assert ("taken from a measurement" in second.stderr) == kept


def test_where_memory_is_not_told_the_doctor_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> int:
        raise RightBatchError("free memory is not told here")

    monkeypatch.setattr("rightbatch.cli.commands.cpu_budget_bytes", refuse)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert "free memory is not told here" in done.stdout
    assert "task digits" in done.stdout


def profile_without(status: rb.Status, outcome: str) -> MemoryProfile:
    return MemoryProfile(
        max_verified_batch_size=0,
        upper_bound=None,
        budget_bytes=2**20,
        points=(MemoryPoint(batch_size=4, peak_bytes=None, source="real", outcome=outcome),),
        status=status,
    )


@pytest.mark.parametrize(
    ("status", "outcome", "message"),
    [
        (rb.Status.OUT_OF_TIME, "hang", "no size was run to its end in time, limit 1 MiB. The"),
        (rb.Status.LEAK, "leak", "memory grew with every step at batch 4, limit 1 MiB. Cannot"),
        (rb.Status.NOTHING_FITS, "oom", "batch size 4 does not fit, limit 1 MiB. Not even"),
    ],
)
def test_nothing_verified_exits_with_one_unless_a_plan_was_made(
    capsys: pytest.CaptureFixture[str], status: rb.Status, outcome: str, message: str
) -> None:
    findings = rb.Findings(
        task=samples.TASK, environment={}, memory=profile_without(status, outcome)
    )
    exit_if_none_verified(replace(findings, plan=samples.PLAN))
    with pytest.raises(typer.Exit, match="1"):
        exit_if_none_verified(findings)
    assert f"error: {message}" in capsys.readouterr().err


def on_two_ranks(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("-m", "rightbatch", "memory", "lab_task.py:make_task", *arguments),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_two_ranks_agree_and_one_delivers(lab: Path) -> None:
    done = on_two_ranks("--memory-limit", "64MiB", "--json", "--output", "out")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)  # of one rank only, or it would be no JSON
    assert printed == json.loads(Path("out/results.json").read_text())
    found = printed["memory"]
    weights = 4 * (2 * 100 + 2)
    assert found["held_bytes"] == 2 * weights  # and the wrapper's copy of the gradients
    assert found["max_verified_batch_size"] == 96


@pytest.mark.slow
def test_of_two_ranks_one_says_that_nothing_fits_and_knows_it_again(lab: Path) -> None:
    task = lab / "lab_task.py"  # not wrapped, since what holds a process group is not kept
    task.write_text(TASK.replace("is_initialized()", "is_initialized() and False"))
    for known in (0, 1):  # the second time the first rank alone knows that nothing fits
        done = on_two_ranks("--memory-limit", "1KiB", "--json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["memory"]["status"] == "nothing_fits"
        assert done.stderr.count("error: needs about") == 1
        assert done.stderr.count("taken from a measurement") == known


class OneOfTwo:
    """A rank beside another one that says the same number whenever numbers are gathered."""

    world_size = 2

    def __init__(self, rank: int, said: int) -> None:
        self.rank, self._said = rank, said

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        values[1 - self.rank] = self._said
        return values

    def average_(self, values: torch.Tensor) -> None:
        pytest.fail("no gradients are averaged")


def measured_by(comm: Comm, task: rb.Task, folder: Path) -> tuple[MemoryProfile | None, list[str]]:
    said: list[str] = []
    session = Session(None, as_json=False, traceback=False)
    session.keep(rb.Findings(task=task.facts(), environment={}))
    cache = MeasurementCache(folder, say=said.append)
    measure_sizes(
        session, task, comm, cache, limit_bytes=2**29, time_budget_seconds=60.0, seed=0,
        progress=no_progress,
    )  # fmt: skip
    assert session.findings is not None
    return session.findings.memory, said


def test_what_the_first_rank_knows_is_measured_on_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    made = replace(profile_without(rb.Status.OK, "ok"), budget_bytes=2**29)

    def measure(task: rb.Task, *, budget_bytes: int, **_: object) -> MemoryProfile:
        asked.append(budget_bytes)
        return made

    monkeypatch.setattr("rightbatch.cli.memory.measure_memory", measure)
    task = QuadraticTask(examples=8).task
    assert measured_by(OneOfTwo(rank=1, said=0), task, tmp_path) == (made, [])
    assert (len(asked), list(tmp_path.iterdir())) == (1, [])  # the first one keeps it
    assert measured_by(OneOfTwo(rank=0, said=0), task, tmp_path) == (made, [])
    assert (len(asked), len(list(tmp_path.iterdir()))) == (2, 1)
    found, said = measured_by(OneOfTwo(rank=0, said=0), task, tmp_path)
    assert (found, len(asked), len(said)) == (made, 2, 1)
    assert measured_by(OneOfTwo(rank=1, said=1), task, tmp_path) == (None, [])
    assert len(asked) == 2
    assert measured_by(Alone(), task, tmp_path) == (made, [])  # which has more memory to itself
    assert len(asked) == 3
