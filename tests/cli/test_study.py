"""The command `study`: what it prints, what it writes, and one message per mistake."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rightbatch._time import Progress
from rightbatch.cli.commands import app
from rightbatch.errors import DataUnavailable
from rightbatch.studies import STUDIES, Study
from rightbatch.studies.catalogue import Entry
from rightbatch.studies.showing import render_markdown, render_text
from tests.studies.test_noise_estimators import made

pytestmark = pytest.mark.usefixtures("float32")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["study", *arguments])


def instant(*, seed: int, quick: bool, progress: Progress) -> Study:
    progress(1.0, "done")
    return replace(made(), seed=seed, quick=quick)


def interrupted(**options: Any) -> Study:
    raise KeyboardInterrupt


def without_data(**options: Any) -> Study:
    raise DataUnavailable("mnist.npz is nowhere. Put it somewhere.")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Path]:
    """Put a function in the study's place, and work in an empty folder."""

    def replaced(function: Any) -> Path:
        entry = Entry(claims=("C0",), title="A test", run=function)
        monkeypatch.setitem(STUDIES, "noise-estimators", entry)
        return tmp_path

    monkeypatch.chdir(tmp_path)
    return replaced


def test_the_list_names_every_study() -> None:
    done = run("--list")
    assert done.exit_code == 0
    for name, entry in STUDIES.items():
        assert name in done.stdout
        assert ", ".join(entry.claims) in done.stdout


def test_a_study_is_printed_and_written_down(place: Callable[[Any], Path]) -> None:
    folder = place(instant)
    done = run("noise-estimators")
    assert done.exit_code == 0, done.output
    assert done.stdout == render_text(replace(made(), seed=0))
    assert "Wrote studies/noise-estimators.html, and noise-estimators.json" in done.stderr
    saved = json.loads((folder / "studies" / "noise-estimators.json").read_text())
    assert saved == replace(made(), seed=0).to_json()
    page = (folder / "studies" / "noise-estimators.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    words = (folder / "studies" / "noise-estimators.md").read_text()
    assert words == render_markdown(replace(made(), seed=0))


def test_json_prints_the_file_and_nothing_else(place: Callable[[Any], Path]) -> None:
    folder = place(instant)
    done = run("noise-estimators", "--json", "--output", "out", "--quick", "--seed", "3")
    assert done.exit_code == 0, done.output
    assert done.stdout == (folder / "out" / "noise-estimators.json").read_text()
    study = json.loads(done.stdout)
    assert (study["seed"], study["quick"]) == (3, True)


@pytest.mark.parametrize(("arguments", "got"), [(("noise",), "'noise'"), ((), "None")])
def test_a_name_that_is_not_there_is_refused(arguments: tuple[str, ...], got: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    message = " ".join(done.stderr.replace("│", " ").split())
    assert f"must be one of noise-estimators, got {got}" in message
    assert "rightbatch study --list" in message


def test_an_interrupt_is_one_line(place: Callable[[Any], Path]) -> None:
    folder = place(interrupted)
    done = run("noise-estimators")
    assert done.exit_code == 130
    assert done.stderr.strip() == "Interrupted. Everything is as it was before."
    assert done.stdout == ""
    assert list((folder / "studies").iterdir()) == []


def test_missing_data_is_one_message(place: Callable[[Any], Path]) -> None:
    place(without_data)
    done = run("noise-estimators")
    assert done.exit_code == 1
    assert done.stderr.strip() == "error: mnist.npz is nowhere. Put it somewhere."
    shown = run("noise-estimators", "--traceback")
    assert "Traceback" in shown.stderr


def test_a_folder_that_cannot_be_written_is_refused_at_once(place: Callable[[Any], Path]) -> None:
    folder = place(interrupted)
    (folder / "file").write_text("")
    done = run("noise-estimators", "--output", "file/inside")
    assert done.exit_code == 2
    assert "cannot write to 'file/inside'" in " ".join(done.stderr.split())


@pytest.mark.slow
@pytest.mark.data
def test_the_real_study_on_mnist_in_a_hurry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("noise-estimators", "--quick", "--json")
    assert done.exit_code == 0, done.output
    study = json.loads(done.stdout)
    assert study["quick"] is True
    assert {claim["verdict"] for claim in study["claims"]} == {"cannot tell here"}
    probe = study["measurements"]["ways"]["probe"]
    assert probe["share_within_2x"] == 1.0
    assert probe["negative"] == 0
