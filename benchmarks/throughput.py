"""How far can a throughput profile be trusted: between its sizes, and when measured again?

Between: each measured size but the outermost is left out in turn and predicted from the others,
by the interpolation, by chords from point to point, by the straight line and by the bent one. With
it gone the gap is a factor of four; the plan reads gaps of two.
Again: every task is measured twice, all tasks once before any is measured for the second time, so
that what the machine did meanwhile differs.
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import rightbatch as rb
from rightbatch._environment import describe_environment
from rightbatch._format import format_number, format_seconds
from rightbatch.hardware.step_curve import StepCurve, fit_step_shape, log_shape
from rightbatch.hardware.step_time import fit_step_line
from rightbatch.results import ThroughputPoint, ThroughputProfile
from rightbatch.tasks import BUILT_IN

RESULTS = Path(__file__).parent / "results"
SECONDS = 45.0  # for one measurement of one task
SIZES = {  # doublings to well past the plateau, as far as the slowest step allows
    "digits": tuple(4 * 2**k for k in range(9)),
    "mnist": tuple(4 * 2**k for k in range(8)),
    "bikes": tuple(4 * 2**k for k in range(10)),
    "shakespeare": tuple(2**k for k in range(7)),
}
LIMITS = {"leave_one_out": 0.05, "step_seconds": 0.05, "half_batch_size": 0.1}

Predict = Callable[[Sequence[ThroughputPoint], int], float]


def by_line(points: Sequence[ThroughputPoint], size: int) -> float:
    alpha, beta, _ = fit_step_line(points)
    return alpha + beta * size


def by_shape(points: Sequence[ThroughputPoint], size: int) -> float:
    shape = fit_step_shape(points)
    if shape is None:
        return math.nan
    parts = (shape.alpha_seconds, shape.beta_seconds_per_example, shape.sharpness)
    logs = log_shape([math.log(part) for part in parts], np.log([float(size)]))
    return math.exp(float(logs[0]))


def by_chords(points: Sequence[ThroughputPoint], size: int) -> float:
    curve = StepCurve.computing(points)
    return float(np.interp(size, curve.sizes, curve.seconds))


def by_interpolation(points: Sequence[ThroughputPoint], size: int) -> float:
    return StepCurve.computing(points).at(size)[0]


METHODS: dict[str, Predict] = {
    "interpolation": by_interpolation,
    "chords": by_chords,
    "straight line": by_line,
    "bent line": by_shape,
}


def leave_one_out(points: Sequence[ThroughputPoint]) -> list[dict[str, Any]]:
    """Predict each inner point from the others; errors are relative to what was measured."""
    rows = []
    for i in range(1, len(points) - 1):
        left, others = points[i], [*points[:i], *points[i + 1 :]]
        _, low, high = StepCurve.computing(others).at(left.batch_size)
        rows.append(
            {
                "batch_size": left.batch_size,
                "errors": {
                    name: predict(others, left.batch_size) / left.step_seconds - 1
                    for name, predict in METHODS.items()
                },
                "covered": low <= left.high and left.low <= high,
            }
        )
    return rows


def agreement(first: ThroughputProfile, second: ThroughputProfile) -> dict[str, Any]:
    """Compare two measurements of one task."""
    steps = [
        abs(math.log(two.step_seconds / one.step_seconds))
        for one, two in zip(first.points, second.points, strict=True)
    ]
    halves = (first.half_batch_size, second.half_batch_size)
    # Below the smallest size that was measured there is nothing to tell half sizes apart by.
    smallest = first.points[0].batch_size
    told = [max(half, smallest) for half in halves if half is not None]
    return {
        "step_seconds": statistics.median(steps),
        "step_seconds_worst": max(steps),
        "half_batch_sizes": halves,
        "half_batch_size": abs(math.log10(told[0] / told[1])) if len(told) == 2 else None,
        "bottlenecks": (first.bottleneck, second.bottleneck),
    }


def throughput(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure every task twice and judge both questions."""
    profiles: dict[str, list[ThroughputProfile]] = {name: [] for name in SIZES}
    for turn in ("first", "second"):
        for name, sizes in SIZES.items():
            say(f"{name}, {turn} measurement")
            task = BUILT_IN[name].factory()
            profiles[name].append(rb.measure_throughput(task, sizes, time_budget_seconds=SECONDS))
    rows = [
        {
            "task": name,
            "left_out": [row for profile in pair for row in leave_one_out(profile.points)],
            **agreement(*pair),
            "profiles": [asdict(profile) for profile in pair],
        }
        for name, pair in profiles.items()
    ]
    return {
        "environment": describe_environment(),
        "seconds": SECONDS,
        "limits": LIMITS,
        "summary": summarize(rows),
        "rows": rows,
    }


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Take medians over all tasks: of errors over sizes and measurements, of agreement."""
    left_out = [row for each in rows for row in each["left_out"]]
    halves = [row["half_batch_size"] for row in rows if row["half_batch_size"] is not None]
    return {
        "leave_one_out": {
            name: statistics.median(abs(row["errors"][name]) for row in left_out)
            for name in METHODS
        },
        "covered": statistics.mean(row["covered"] for row in left_out),
        "step_seconds": statistics.median(row["step_seconds"] for row in rows),
        "half_batch_size": statistics.median(halves) if halves else None,
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as tables."""
    lines = [
        "# Throughput: between the sizes that were measured, and measured again",
        "",
        "Median error of predicting a size from the others (a gap of a factor of four):",
        "",
        "| task | sizes | " + " | ".join(METHODS) + " | within the interval |",
        "|---|---|" + "---|" * (len(METHODS) + 1),
    ]
    for row in result["rows"]:
        left_out = row["left_out"]
        errors = [statistics.median(abs(r["errors"][name]) for r in left_out) for name in METHODS]
        covered = sum(r["covered"] for r in left_out)
        sizes = [point["batch_size"] for point in row["profiles"][0]["points"]]
        lines.append(
            f"| {row['task']} | {sizes[0]} to {sizes[-1]} | "
            + " | ".join(f"{error:.1%}" for error in errors)
            + f" | {covered} of {len(left_out)} |"
        )
    summary, limits = result["summary"], result["limits"]
    overall = " | ".join(f"{error:.1%}" for error in summary["leave_one_out"].values())
    lines += [
        f"| all | | {overall} | {summary['covered']:.0%} |",
        "",
        "Measured twice, all tasks once before any for the second time:",
        "",
        "| task | step time, median difference | worst | half batch sizes | bottlenecks "
        "| threads in line |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        halves = " and ".join(format_number(half) for half in row["half_batch_sizes"])
        lines.append(
            f"| {row['task']} | {row['step_seconds']:.1%} | {row['step_seconds_worst']:.1%} | "
            f"{halves} | {' and '.join(row['bottlenecks'])} | {crowded(row)} |"
        )
    half = summary["half_batch_size"]
    lines += [
        "",
        f"Medians over tasks: step time {summary['step_seconds']:.1%}, half batch size "
        + ("unknown" if half is None else f"{half:.2f} orders of magnitude")
        + ". Limits: "
        + ", ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items())
        + f". {format_seconds(result['seconds'])} a measurement. Half batch sizes below the "
        "smallest size that was measured count as that. Threads in line: share of the "
        "time in which other processes had the processors, at the worst size of each measurement.",
        "",
        "Machine: " + ", ".join(f"{k} {v}" for k, v in result["environment"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def crowded(row: dict[str, Any]) -> str:
    shares = [
        max(point["crowded_share"] or 0.0 for point in profile["points"])
        for profile in row["profiles"]
    ]
    return " and ".join(f"{share:.0%}" for share in shares)


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "throughput.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "throughput.md").write_text(as_markdown(result))
