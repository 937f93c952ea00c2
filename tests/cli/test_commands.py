"""What a person at a terminal sees: output, exit codes, and one message per mistake."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rightbatch as rb
from rightbatch.cli.commands import app

pytestmark = pytest.mark.usefixtures("float32")

TASK = """
import torch
from torch import nn
import rightbatch as rb

def make_task():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    data = [(torch.randn(4), torch.randn(2)) for _ in range(96)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return rb.Task(model, optimizer, data, rb.supervised(nn.functional.mse_loss), batch_size=8)

def empty():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return rb.Task(model, optimizer, [], rb.supervised(nn.functional.mse_loss))

def nan():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return rb.Task(model, optimizer, [torch.randn(4)] * 8, lambda m, b: m(b).sum() * float("nan"))

def still():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return rb.Task(model, optimizer, [torch.randn(4)] * 8, lambda m, b: m(b).mean())

def raises():
    raise LookupError("no such file on this planet")

def number():
    return 7
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task file, and the current folder."""
    (tmp_path / "lab_task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `find` once, in a process of its own, as a user does; return the output folder."""
    folder = tmp_path_factory.mktemp("found")
    (folder / "lab_task.py").write_text(TASK)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "rightbatch", "find", "lab_task.py:make_task"),
            *("--time-budget", "6", "--output", "out", "--json"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout.json").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


def test_json_prints_the_results_file_and_nothing_else(found: Path) -> None:
    printed = (found / "stdout.json").read_text()
    assert printed == (found / "out" / "results.json").read_text()
    results = json.loads(printed)
    assert results["schema"] == "rightbatch/1"
    for key in (
        *("task", "environment", "memory", "throughput", "learning_rate", "noise"),
        *("critical_batch_size", "plan"),
    ):
        assert key in results
    made = results["plan"]
    assert made["batch_size"] == (
        made["micro_batch_size"] * made["accumulation_steps"] * made["devices"]
    )
    assert made["learning_rate"] > 0


def test_the_output_folder_holds_a_page(found: Path) -> None:
    page = (found / "out" / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "lab_task" in (found / "out" / "results.json").read_text() or "Linear" in page


def test_planning_again_needs_only_the_file(found: Path) -> None:
    again = run("plan", str(found / "out" / "results.json"), "--json")
    assert again.exit_code == 0, again.output
    assert (
        json.loads(again.stdout)["plan"] == json.loads((found / "stdout.json").read_text())["plan"]
    )
    four = run("plan", str(found / "out" / "results.json"), "--devices", "4", "--json")
    assert json.loads(four.stdout)["plan"]["devices"] == 4


def test_a_report_can_be_shown_again(found: Path, tmp_path: Path) -> None:
    shown = run("report", str(found / "out" / "results.json"))
    assert shown.exit_code == 0
    assert str(rb.load(found / "out" / "results.json")).strip() == shown.stdout.strip()
    page = tmp_path / "again.html"
    assert run("report", str(found / "out" / "results.json"), "--html", str(page)).exit_code == 0
    assert page.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("memory", "memory"),
        ("throughput", "throughput"),
        ("noise", "noise"),
        ("lr", "learning_rate"),
    ],
)
def test_each_instrument_has_a_command(lab: Path, command: str, key: str) -> None:
    done = run(command, "lab_task.py:make_task", "--time-budget", "2", "--json")
    assert done.exit_code == 0, done.output
    assert key in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ("diggits", 2, "Did you mean digits?"),
        ("nowhere.py:make_task", 2, "must name a file that exists, got 'nowhere.py'"),
        ("lab_task.py:make_tusk", 2, "must have the function that `TASK` names, got 'make_tusk'"),
        ("lab_task.py:raises", 1, "LookupError: no such file on this planet"),
        ("lab_task.py:number", 1, "must return a rightbatch.Task"),
        ("lab_task.py:empty", 1, "must hold at least two examples, got 0"),
        ("lab_task.py:nan", 1, "must be finite, got nan"),
        ("lab_task.py:still", 1, "positive, finite learning rate, got lr=0.0"),
    ],
)
def test_a_task_that_cannot_be_measured_is_one_message(
    lab: Path, spec: str, code: int, message: str
) -> None:
    done = run("noise", spec, "--time-budget", "2")
    assert done.exit_code == code
    assert message in " ".join(done.stderr.split())
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("find", "digits", "--devices", "0"), "must be at least 1, got 0"),
        (("find", "digits", "--time-budget", "-5"), "must be positive and finite, got -5"),
        (("find", "digits", "--price-per-hour", "0"), "must be positive and finite, got 0"),
        (("find", "digits", "--time-budget", "inf"), "must be positive and finite, got inf"),
        (("find", "digits", "--seed", "-1"), "must not be negative, got -1"),
        (("find", "digits", "--objective", "joy"), "joy"),
        (("find", "digits", "--objective", "energy"), "needs measured joules"),
        (("find",), "TASK"),
        (("plan", "absent.json"), "no results file at 'absent.json'"),
        (("report", "absent.json"), "no results file at 'absent.json'"),
        (("fly",), "fly"),
    ],
)
def test_wrong_usage_exits_with_two(lab: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": "rightbatch/1", "task"', "is not complete JSON"),
        ('{"schema": "rightbatch/9"}', "got 'rightbatch/9'"),
        ('{"schema": "rightbatch/1", "task": NaN}', "finite numbers only, got NaN"),
        ("[]", "is not a rightbatch results file"),
    ],
)
def test_a_damaged_results_file_is_refused(lab: Path, text: str, message: str) -> None:
    Path("results.json").write_text(text)
    done = run("plan", "results.json")
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_an_output_folder_that_cannot_be_written_is_refused_before_measuring(lab: Path) -> None:
    Path("a_file").write_text("")
    done = run("noise", "lab_task.py:make_task", "--output", "a_file/inside")
    assert done.exit_code == 2
    assert "cannot write to 'a_file/inside'" in " ".join(done.stderr.split())


def test_a_missing_data_file_says_where_to_put_it(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGHTBATCH_DATA", str(lab / "not_there"))
    done = run("find", "mnist")
    assert done.exit_code == 1
    assert "`$RIGHTBATCH_DATA` must be a folder that exists" in " ".join(done.stderr.split())


def test_results_without_a_throughput_cannot_be_planned(lab: Path) -> None:
    done = run("noise", "lab_task.py:make_task", "--time-budget", "1", "--output", "out")
    assert done.exit_code == 0, done.output
    done = run("plan", "out/results.json")
    assert done.exit_code == 1
    assert "got no ThroughputProfile with points" in " ".join(done.stderr.split())


def test_traceback_shows_where_it_came_from(lab: Path) -> None:
    done = run("noise", "lab_task.py:raises", "--traceback")
    assert done.exit_code == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert 'raise LookupError("no such file on this planet")' in done.stderr
    assert run("plan", "absent.json", "--traceback").exit_code == 2


def test_what_the_users_code_prints_stays_out_of_the_results(lab: Path) -> None:
    (lab / "loud.py").write_text("print('hello from the file')\n" + TASK)
    done = run("noise", "loud.py:make_task", "--time-budget", "1", "--json")
    assert json.loads(done.stdout)["task"]["name"] == "Linear"
    assert "hello from the file" in done.stderr


def test_tasks_and_doctor_tell_what_there_is(lab: Path) -> None:
    listed = run("tasks")
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in ("digits", "mnist", "bikes", "shakespeare"))
    checked = run("doctor")
    assert checked.exit_code == 0
    assert "torch" in checked.stdout
    assert "pip install 'rightbatch[sweep]'" in checked.stdout or "sweep" in checked.stdout


def test_ctrl_c_keeps_what_was_measured_and_exits_with_130(lab: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "rightbatch", "find", "lab_task.py:make_task"),
            *("--time-budget", "60", "--output", "out", "--json"),
        ],
        cwd=lab,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Each part is written down as it ends.
    deadline = time.monotonic() + 90
    while not (lab / "out" / "results.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "Interrupted" in stderr
    kept = json.loads(stdout)
    assert "memory" in kept
    assert "plan" not in kept
    assert json.loads((lab / "out" / "results.json").read_text()) == kept
