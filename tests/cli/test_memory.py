"""``rightbatch memory``: what is said and answered where nothing ran, and which ranks speak."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import rightbatch as rb
from rightbatch.cli.commands import app
from rightbatch.cli.memory import exit_if_none_verified
from rightbatch.results import MemoryPoint, MemoryProfile
from tests.report import samples

pytestmark = pytest.mark.usefixtures("float32")

TASK = """
import torch
from torch import nn
import rightbatch as rb

def make_task():
    torch.manual_seed(0)
    model = nn.Linear(100, 2)
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
