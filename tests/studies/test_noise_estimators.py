"""From looks to a study: what is counted, what is said, what is drawn. On made-up looks."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from rightbatch.studies.noise_estimators import assemble, compare, extra_examples, way_labels
from rightbatch.studies.noise_run import AVERAGING, Look
from rightbatch.studies.study import Study
from tests.studies.samples import COURSE, TRUTH, looks, parts


def made(found: list[Look] | None = None) -> Study:
    return assemble(
        found or looks(),
        COURSE,
        quick=False,
        seed=7,
        examples=64_000,
        environment={"python": "3"},
        seconds=12.34,
    )


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers_in(item)]
    if isinstance(value, list | tuple):
        return [n for item in value for n in numbers_in(item)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return [float(value)] if is_number else []


def test_only_steps_after_the_start_up_are_compared() -> None:
    found = compare(looks(), COURSE)
    assert found["probe"].comparisons == 4 * 3
    assert found["probe"].median_ratio == pytest.approx(1.05)
    assert found["two_runs"].negative == 3  # run 1, at each of the three steps
    assert found["consecutive"].typical_factor == pytest.approx(1.4)


def test_what_averages_along_training_is_held_against_the_last_steps() -> None:
    """The gradient of one step jumps: a steady answer is right, a frozen probe must follow."""
    found = looks()
    changed = compare(
        [*found[:-1], replace(found[-1], exact=parts(TRUTH[1000] * 1.03 / 8))], COURSE
    )
    before = compare(found, COURSE)
    assert changed["probe"].ratios[-1][3] == pytest.approx(8 * 1.05)
    assert changed["probe"].ratios[-1][:3] == before["probe"].ratios[-1][:3]
    assert all(changed[name] == before[name] for name in AVERAGING)
    recent = compare([*found[:-1], replace(found[-1], recent=parts(1.0))], COURSE)
    assert all(recent[name] != before[name] for name in AVERAGING)
    assert recent["stored_10"] == before["stored_10"]


def test_extra_examples_are_those_of_one_run() -> None:
    extra = extra_examples(looks(), COURSE)
    assert extra["average"] == extra["consecutive"] == 0
    assert extra["stored_100"] == 3 * 100 * 64
    assert extra["two_runs"] == 1000 * 64
    assert extra["probe"] == 3 * 512


def test_the_study_says_what_was_measured() -> None:
    study = made()
    assert [claim.key for claim in study.claims] == [
        *("C2 (a)", "C2 (b)", "C2 (c)", "C2 (d)", "C2", "C2 (live)", "C3")
    ]
    ways, rise, points = study.tables
    assert [row[0] for row in ways.rows] == list(way_labels(COURSE).values())
    probe = ways.rows[-2]
    assert probe == ("frozen probe", "1.05", "1.05", "12 of 12", "0", "1", "0", "1,536")
    assert ways.rows[4][:3] == ("(c) two runs, B and 2B", "2.00", "2.00")
    assert ways.rows[4][4:] == ("3", "none", "0", "64,000")
    assert "holds the exact value 12 times of 12" in ways.note
    assert [row[0] for row in rise.rows] == ["0", "10", "100", "1,000"]
    assert rise.rows[1][2] == "50.8 (50 to 51.5)"
    assert points.rows[0][1].startswith("152 (150 to 154)")
    assert points.rows[1][1] == "no answer"
    assert study.seconds == 12.3


def test_a_probe_that_misses_is_counted_as_missing() -> None:
    for miss in ({"low": 2 * TRUTH[1000]}, {"low": 1.0, "high": 0.9 * TRUTH[1000]}):
        found = looks()
        found[-1] = replace(found[-1], probe=replace(found[-1].probe, **miss))
        assert "holds the exact value 11 times of 12" in made(found).tables[0].note


def test_the_file_holds_every_number_and_only_finite_ones() -> None:
    study = made()
    plain = json.loads(study.dumps())
    assert plain["schema"] == "rightbatch-study/1"
    assert plain == study.to_json()
    assert all(map(math.isfinite, numbers_in(plain)))
    points = plain["measurements"]["points"]
    assert len(points) == len(looks())
    assert {p["exact"]["noise_scale"] for p in points} >= {50.0, 900.0}
    assert plain["measurements"]["ways"]["stored_100_corrected"]["median_ratio"] == pytest.approx(
        1.1
    )
    missing = [p for p in points if p["step"] == 0 and p["estimates"]["two_runs"] is None]
    assert missing


def test_figures_draw_the_numbers_of_the_file() -> None:
    study = made()
    known = set(numbers_in(study.measurements))
    along, memory, stored = (drawing.figure for drawing in study.drawings)
    line = next(trace for trace in along["data"] if trace.get("name") == "exact")
    assert list(line["y"]) == pytest.approx([TRUTH[s] * 1.015 for s in COURSE.steps])
    probe = next(trace for trace in along["data"] if trace.get("name") == "frozen probe")
    ends = [1.05 * TRUTH[1000], 1.05 * 1.03 * TRUTH[1000]]
    bar = probe["error_y"]
    drawn = [probe["y"][-1] - bar["arrayminus"][-1], probe["y"][-1] + bar["array"][-1]]
    assert drawn == pytest.approx(ends)
    factors = [y for figure in (memory, stored) for trace in figure["data"] for y in trace["y"]]
    ways = study.measurements["ways"].values()
    allowed = {way["typical_factor"] for way in ways} | {100.0}
    assert set(factors) <= allowed
    kept = {way.get("tensors_kept") for way in ways} | {0.3}
    assert {x for trace in memory["data"] for x in trace["x"]} <= kept
    assert allowed - {100.0, None} <= known


def test_a_way_without_answers_is_drawn_at_the_top() -> None:
    silent = [
        replace(k, estimates={**k.estimates, "two_runs": None, "consecutive": None})
        for k in looks()
    ]
    study = made(silent)
    assert study.tables[0].rows[4][1:4] == ("none", "none", "0 of 12")
    memory = study.drawings[1].figure
    two_runs = next(trace for trace in memory["data"] if trace["name"] == "(c) two runs")
    assert list(two_runs["y"]) == [100.0]


def test_the_axes_hold_every_mark() -> None:
    for drawing in made().drawings:
        for axis, values in (("xaxis", "x"), ("yaxis", "y")):
            low, high = drawing.figure["layout"][axis]["range"]
            for trace in drawing.figure["data"]:
                assert all(low <= math.log10(v) <= high for v in trace[values]), drawing.name
