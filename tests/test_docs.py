"""What the documentation shows works: its code, its commands, its links, its examples."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import rightbatch as rb
from rightbatch.cli.commands import app
from rightbatch.tasks import load_task

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BUDGET_SECONDS = 3.0
# Commands that need no more than the budget, or nothing but a results file.
RUN = {"find", "memory", "throughput", "noise", "lr", "plan", "report", "study", "tasks", "doctor"}
NEEDS_DATA = {"mnist", "bikes", "shakespeare", "noise-estimators"}

pytestmark = pytest.mark.usefixtures("float32")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, each with its line number as blank lines before it."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, match.start(1)) + match.group(1) for match in found]


def commands(page: Path) -> list[list[str]]:
    """The words of every command in the page's console blocks, without `VARIABLE=value`."""
    lines = [line for block in blocks(page, "console") for line in block.split("\n") if line]
    split = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [[word for word in words if not re.match(r"[A-Z_]+=", word)] for words in split]


def rightbatch_commands(page: Path) -> list[list[str]]:
    shown = (words for words in commands(page) if words)
    return [words[1:] for words in shown if Path(words[0]).name == "rightbatch"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the examples and a file of the reader's own."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "path" / "to").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "my_task.py", tmp_path / "path" / "to" / "file.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def findings() -> rb.Findings:
    task = load_task(f"{ROOT / 'examples' / 'my_task.py'}:make_task")
    return rb.find(task, time_budget_seconds=BUDGET_SECONDS)


def in_a_hurry(find: Callable[..., rb.Findings]) -> Callable[..., rb.Findings]:
    def hurried(task: rb.Task, **options: Any) -> rb.Findings:
        return find(task, **{**options, "time_budget_seconds": BUDGET_SECONDS})

    return hurried


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_blocks_run_one_after_the_other(
    page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rb, "find", in_a_hurry(rb.find))
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_run_one_after_the_other(page: Path, desk: Path, findings: rb.Findings) -> None:
    findings.save(desk / "results.json")
    for words in rightbatch_commands(page):
        if not words or words[0] not in RUN or NEEDS_DATA & set(words):
            continue
        measures = any("--time-budget" in parameter.opts for parameter in parameters_of(words[0]))
        hurry = ["--time-budget", str(BUDGET_SECONDS)] if measures else []
        done = CliRunner().invoke(app, [*words, *hurry])
        assert done.exit_code == 0, f"{shlex.join(words)}: {done.output}"


def parameters_of(name: str) -> list[Any]:
    """What a command takes: objects with a ``name`` and ``opts``."""
    existing: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})
    assert name in existing, f"there is no `rightbatch {name}`"
    return existing[name].params


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_their_options_exist(page: Path) -> None:
    """Also of commands that take too long to be run here."""
    for name, *words in rightbatch_commands(page):
        options = {option for parameter in parameters_of(name) for option in parameter.opts}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= options | {"--help"}, f"rightbatch {name}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {words[1] for words in commands(page) if words[:1] == ["make"] and len(words) > 1}
    text = page.read_text(encoding="utf-8")
    assert shown | set(re.findall(r"`make ([a-z]+)`", text)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in inside if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_public_names_in_the_text_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"\brb\.([A-Za-z_]+)", text))
    assert {name for name in names if not hasattr(rb, name)} == set()


def test_the_reader_meets_both_commands_first() -> None:
    shown = commands(ROOT / "README.md")
    assert shown[:2] == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    words = re.findall(r"\b(PLACEHOLDER|EVIDENCE|TODO|FIXME|TBD)\b", page.read_text("utf-8"))
    assert words == []


@pytest.mark.parametrize("example", EXAMPLES, ids=named)
def test_examples_are_tasks_that_can_be_measured(example: Path) -> None:
    task = load_task(f"{example}:make_task")
    assert task.check() == ()
