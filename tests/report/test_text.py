"""The screen of text. Oracle: golden files, and laws that hold for all results."""

import ast
import textwrap
from dataclasses import replace

import pytest

from rightbatch.report import render_text
from rightbatch.results import Current, MemoryPoint, Status
from tests.report import samples
from tests.report.golden import assert_golden

ALL = pytest.mark.parametrize("name", samples.ALL)


@ALL
def test_text_is_the_one_that_was_approved(name):
    assert_golden(f"{name}.txt", render_text(samples.ALL[name]))


@ALL
def test_everything_fits_on_one_screen(name):
    lines = render_text(samples.ALL[name]).splitlines()
    assert len(lines) <= 56  # AdamW accumulating on four devices, two warnings: says the most
    assert max(len(line) for line in lines) <= 92
    assert not any(line != line.rstrip() for line in lines)


def test_a_full_plan_takes_forty_lines():
    assert len(render_text(samples.FULL).splitlines()) <= 40


@ALL
def test_text_holds_no_control_characters(name):
    text = render_text(samples.ALL[name])
    assert text.endswith("\n")
    assert all(c.isprintable() for c in text.replace("\n", ""))


@pytest.mark.parametrize(
    "surroundings",
    [
        {"COLUMNS": "20", "LINES": "5"},
        {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        {"NO_COLOR": "1", "TERM": "dumb"},
    ],
)
def test_text_does_not_depend_on_the_terminal(surroundings, monkeypatch):
    before = render_text(samples.FOUR_DEVICES)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    assert render_text(samples.FOUR_DEVICES) == before


@pytest.mark.parametrize("width", [60, 72, 80, 100])
def test_sentences_keep_to_the_width_and_numbers_keep_their_units(width):
    lines = render_text(samples.FULL, width=width).splitlines()
    prose = [
        line for line in lines if not line.startswith(("  loader", "  optimizer", "  for group"))
    ]
    assert max(len(line) for line in prose) <= width
    units = ("s", "ms", "%", "GiB", "min")
    assert not any(
        line.split()[:1] in ([u], [f"{u};"], [f"{u}."], [f"{u},"]) for line in lines for u in units
    )


@pytest.mark.parametrize(
    ("part", "label"),
    [
        ("memory", "Memory"),
        ("throughput", "Throughput"),
        ("noise", "Noise scale"),
        ("track", "Noise in a run"),
        ("critical_batch_size", "Critical batch"),
        ("learning_rate", "Range test"),
        ("race", "Learning rate"),
    ],
)
def test_each_part_has_its_line_and_is_missed_by_nobody(part, label):
    line = f"\n  {label}  "
    assert line in render_text(samples.FULL)
    without = render_text(replace(samples.FULL, **{part: None}))
    assert line not in without


def test_markup_in_names_is_only_text():
    text = render_text(samples.HOSTILE)
    assert "[bold]not bold[/bold]" in text
    assert "</script><b> [31m{{ 7*7 }}" in text


def test_a_repeated_doubt_is_spelled_out_once():
    text = " ".join(render_text(samples.UNRESOLVED).split())
    assert text.count(Status.UNRESOLVED.sentence) == 1
    assert text.count("(unresolved)") == 2


def test_keeping_the_batch_size_is_said_plainly():
    current = Current(batch_size=256, relative_time=1.0)
    plan = replace(samples.PLAN, current=current, speedup=1.0, speedup_low=1.0, speedup_high=1.0)
    text = render_text(replace(samples.FULL, plan=plan))
    assert "Keep batch size 256, with learning rate 0.06." in text
    assert "It is what you train with today." in text
    assert "recommended, as today" in text


def test_a_speed_up_that_may_be_none_says_so():
    doubtful = replace(samples.PLAN, speedup=1.1, speedup_low=0.9, speedup_high=1.3)
    text = " ".join(render_text(replace(samples.FULL, plan=doubtful)).split())
    assert "it may be no gain at all" in text
    assert "it may be no gain at all" not in render_text(samples.FULL)


def test_a_plan_without_a_rate_says_so_and_offers_no_optimizer():
    text = render_text(replace(samples.FULL, plan=replace(samples.PLAN, learning_rate=None)))
    assert "Train with batch size 256. Other settings: momentum 0.5 as today.\n" in text
    assert "No learning rate was found for it" in text
    assert "optimizer =" not in text


def test_a_plan_in_which_nothing_fits_recommends_nothing():
    plan = replace(samples.PLAN, status=Status.NOTHING_FITS, candidates=())
    text = render_text(replace(samples.NOTHING_FITS, plan=plan))
    assert "Nothing to recommend" in text
    assert "DataLoader" not in text


def test_a_leak_is_not_told_as_a_model_too_large():
    memory = samples.NOTHING_FITS.memory
    points = (replace(memory.points[0], outcome="leak"),)
    leaking = replace(memory, points=points, status=Status.LEAK, upper_bound=70)
    text = " ".join(render_text(replace(samples.NOTHING_FITS, memory=leaking)).split())
    assert "memory grew with every step at batch 1, limit 600 MiB" in text
    assert "Look for what keeps them" in text
    assert "Not even" not in text


def test_an_interrupted_run_names_what_is_missing():
    text = render_text(
        replace(samples.FULL, plan=None, noise=None, track=None, critical_batch_size=None)
    )
    assert "No recommendation yet: noise not measured." in text


@ALL
def test_code_in_the_text_is_python(name):
    text = render_text(samples.ALL[name])
    code = text.partition("\nIn code\n")[2].partition("\n\n")[0]
    ast.parse(textwrap.dedent(code))
    assert bool(code) == (samples.ALL[name].plan is not None)


def test_a_limit_above_the_tensors_and_below_what_steps_need_is_not_called_enough():
    memory = replace(
        samples.NOTHING_FITS.memory,
        budget_bytes=2**20,
        points=(
            MemoryPoint(batch_size=1, peak_bytes=400 * 2**10, source="fake", outcome="ok"),
            MemoryPoint(batch_size=1, peak_bytes=None, source="real", outcome="oom"),
        ),
    )
    text = render_text(replace(samples.NOTHING_FITS, memory=memory))
    assert "needs more than the limit of 1 MiB at batch 1: its tensors alone take 400 KiB" in text
