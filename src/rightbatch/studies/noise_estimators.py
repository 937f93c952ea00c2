"""Claims C2 and C3: how to measure the noise scale on one device, and how it grows on MNIST."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rightbatch._environment import describe_environment
from rightbatch._format import format_count, format_interval, format_number
from rightbatch._time import Clock, Deadline, Progress, no_progress, wall_clock
from rightbatch.studies.finder_ways import Parts
from rightbatch.studies.noise_figures import drawings
from rightbatch.studies.noise_run import (
    AVERAGING,
    FULL,
    QUICK,
    Course,
    Look,
    corrected_name,
    follow_runs,
    stored_name,
    tensors_kept,
)
from rightbatch.studies.noise_verdicts import Accuracy, Rise, judge_rise, judge_ways
from rightbatch.studies.study import Study, StudyTable
from rightbatch.tasks import BUILT_IN

NAME = "noise-estimators"
TITLE = "Five ways to measure the gradient noise scale, against the exact value"


def run(
    *,
    seed: int = 0,
    quick: bool = False,
    progress: Progress = no_progress,
    clock: Clock = wall_clock,
) -> Study:
    """Run the study on MNIST: five runs of 3,000 steps, about five minutes on two cores.

    Args:
        seed: Of the order of the data and of every draw.
        quick: Two short runs, in seconds: too little to judge a claim by.
        progress: Called with (fraction done, what is being done).
        clock: Monotonic seconds.

    Raises:
        DataUnavailable: If MNIST cannot be found, downloaded or read.
    """
    watch = Deadline(0.0, clock)
    task = BUILT_IN["mnist"].factory()
    course = QUICK if quick else FULL
    looks = follow_runs(task, course, seed=seed, progress=progress)
    return assemble(
        looks,
        course,
        quick=quick,
        seed=seed,
        examples=task.num_examples or course.batch_size,
        environment=describe_environment(task.device),
        seconds=watch.elapsed_seconds(),
    )


def assemble(
    looks: Sequence[Look],
    course: Course,
    *,
    quick: bool,
    seed: int,
    examples: int,
    environment: dict[str, str],
    seconds: float,
) -> Study:
    """Judge and lay out what was measured. Pure: the same looks give the same study.

    Args:
        looks: Of every run, at every step of the course.
        course: What was run.
        quick: Whether it was a trial.
        seed: Of every draw.
        examples: In the data set.
        environment: Where it was measured.
        seconds: That it took.
    """
    accuracies = compare(looks, course)
    epoch = -(-examples // course.batch_size)
    # Looks are sparse: the last one within a tenth of an epoch of its end stands for it.
    rise = judge_rise(_rises(looks), epoch=round(1.1 * epoch))
    return Study(
        name=NAME,
        title=TITLE,
        summary=_summary(course, quick),
        quick=quick,
        seed=seed,
        claims=(*judge_ways(accuracies, course.stored), rise),
        tables=(
            _ways_table(looks, accuracies, course),
            _rise_table(looks, course),
            _points_table(looks, course),
        ),
        drawings=drawings(looks, course, accuracies, tensors_kept(course)),
        measurements=_measurements(looks, course, accuracies),
        environment=environment,
        seconds=round(seconds, 1),
    )


def compare(looks: Sequence[Look], course: Course) -> dict[str, Accuracy]:
    """Ratios of every way's answers to the exact value, from the first step that counts.

    The gradient jumps from step to step. So what is measured at frozen weights is held against
    the exact value at these weights; what averages along training, against the ratio of both
    parts' means over the last steps.
    """
    return {
        name: Accuracy(
            tuple(
                tuple(
                    _ratio(k.estimates[name], k.recent if name in AVERAGING else k.exact)
                    for k in looks
                    if k.step == step
                )
                for step in course.steps
                if step >= course.compare_from
            )
        )
        for name in looks[0].estimates
    }


def _ratio(estimate: Parts | None, exact: Parts) -> float | None:
    found = estimate.noise_scale if estimate is not None else None
    truth = exact.noise_scale
    return found / truth if found is not None and truth is not None else None


def _rises(looks: Sequence[Look]) -> list[Rise]:
    return [
        Rise(
            steps=tuple(look.step for look in own),
            grad_sq=tuple(look.exact.grad_sq for look in own),
            trace_cov=tuple(look.exact.trace_cov for look in own),
        )
        for own in ([k for k in looks if k.run == run] for run in sorted({k.run for k in looks}))
    ]


def _summary(course: Course, quick: bool) -> str:
    exact = "all examples" if course.exact_examples is None else f"{course.exact_examples:,}"
    text = (
        f"MNIST, a network of three convolutions, SGD at batch size {course.batch_size}. "
        f"{course.runs} runs from the same weights, each with its own order of the data, over "
        f"{course.steps[-1]:,} steps. At {len(course.steps)} points of each, the exact noise scale "
        f"comes from the gradients of {exact}, one by one. Ways (a), (c), (d) and NoiseMonitor "
        f"watch the training; (b) and the probe measure at frozen weights. Compared from step "
        f"{course.compare_from:,} on."
    )
    return f"{text} A quick trial: too little to judge a claim by." if quick else text


def way_labels(course: Course) -> dict[str, str]:
    """Name the ways for people, in the order in which tables show them."""
    return {
        "average": "(a) averages, 0.99",
        "average_adam": "(a) averages, 0.9 and 0.999",
        **{stored_name(n): f"(b) {n} stored" for n in course.stored},
        "two_runs": "(c) two runs, B and 2B",
        "consecutive": f"(d) {course.group} batches, 0.99",
        "consecutive_slow": f"(d) {course.group} batches, 0.999",
        "consecutive_frozen": "(d) standing still",
        "probe": "frozen probe",
        "monitor": "NoiseMonitor, live",
    }


def extra_examples(looks: Sequence[Look], course: Course) -> dict[str, int]:
    """Count the examples that each way differentiates beside training, over one run's points."""
    points = sum(step >= course.compare_from for step in course.steps)
    probed = sum(
        k.probe.examples for k in looks if k.run == looks[0].run and k.step >= course.compare_from
    )
    free = dict.fromkeys(("average", "average_adam", "consecutive", "consecutive_slow"), 0)
    stored = {stored_name(n): points * n * course.batch_size for n in course.stored}
    return {
        **free,
        **stored,
        "consecutive_frozen": stored[stored_name(course.stored[-1])],
        "two_runs": course.steps[-1] * course.batch_size,
        "probe": probed,
        "monitor": 0,  # it looks at gradients that training makes anyway
    }


def _ways_table(
    looks: Sequence[Look], accuracies: Mapping[str, Accuracy], course: Course
) -> StudyTable:
    kept, extra = tensors_kept(course), extra_examples(looks, course)
    rows: list[tuple[str, ...]] = []
    for name, label in way_labels(course).items():
        found = accuracies[name]
        spread = "none" if found.spread is None else format_number(found.spread)
        rows.append(
            (
                label,
                _two_decimals(found.median_ratio),
                _two_decimals(found.typical_factor),
                f"{round(found.good * found.comparisons)} of {found.comparisons}",
                str(found.negative),
                spread,
                str(kept[name]),
                format_count(extra[name]),
            )
        )
    inside = [_inside(k) for k in looks if k.step >= course.compare_from]
    return StudyTable(
        title="Every way against the exact value",
        header=(
            *("way", "ratio", "off by", "within 2x", "negative"),
            *("runs differ", "kept", "examples"),
        ),
        rows=tuple(rows),
        note="Ratio: median of estimate over exact value, of the answers given. Off by: median "
        "factor between the two, at least 1; none: no answer half of the time. Runs differ: "
        "largest over smallest ratio among runs, at the worst point. Kept: tensors of the size of "
        "all parameters, beside what training holds. Examples: differentiated beside training's "
        "own, for all points of one run. Ways that average along training are held against the "
        f"ratio of both parts' means over the last {course.window} steps, the others against the "
        "exact value at the very weights. "
        f"The probe's 95 % interval holds the exact value {sum(inside)} times of {len(inside)}.",
    )


def _two_decimals(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}" if value < 10 else format_number(value)


def _inside(look: Look) -> bool:
    truth = look.exact.noise_scale
    high = look.probe.high
    return truth is not None and look.probe.low <= truth and (high is None or truth <= high)


def _rise_table(looks: Sequence[Look], course: Course) -> StudyTable:
    rows = [
        (
            format_count(step),
            format_count(step * course.batch_size),
            *(
                _ends([value(k.exact) for k in looks if k.step == step])
                for value in (
                    lambda parts: parts.noise_scale,
                    lambda parts: parts.grad_sq,
                    lambda parts: parts.trace_cov,
                )
            ),
        )
        for step in course.steps
    ]
    return StudyTable(
        title="The exact noise scale along training",
        header=("step", "examples seen", "noise scale", "squared gradient", "trace of covariance"),
        rows=tuple(rows),
        note="Median over the runs, and in brackets the smallest and the largest.",
    )


def _ends(values: Sequence[float | None]) -> str:
    known = sorted(v for v in values if v is not None)
    if not known:
        return "no answer"
    if known[0] == known[-1]:
        return format_number(known[0], 3)
    return format_interval(median(known), known[0], known[-1], number=lambda v: format_number(v, 3))


def _points_table(looks: Sequence[Look], course: Course) -> StudyTable:
    def cells(step: int) -> tuple[str, ...]:
        here = [k for k in looks if k.step == step]
        estimates = ([k.estimates[name] for k in here] for name in way_labels(course))
        return tuple(_ends([e.noise_scale if e else None for e in found]) for found in estimates)

    columns = [cells(step) for step in course.steps]
    exact = tuple(
        _ends([k.exact.noise_scale for k in looks if k.step == step]) for step in course.steps
    )
    labels = way_labels(course).values()
    rows = [("exact", *exact)]
    rows += [(label, *(column[i] for column in columns)) for i, label in enumerate(labels)]
    return StudyTable(
        title="Noise scale in examples, step by step",
        header=("way", *(f"step {format_count(step)}" for step in course.steps)),
        rows=tuple(rows),
        note="Median over the runs that gave an answer, and in brackets the smallest and largest.",
    )


def _measurements(
    looks: Sequence[Look], course: Course, accuracies: Mapping[str, Accuracy]
) -> dict[str, Any]:
    kept, extra = tensors_kept(course), extra_examples(looks, course)
    ways = {
        name: {
            "label": label,
            "tensors_kept": kept[name],
            "extra_examples": extra[name],
            **_accuracy(accuracies[name]),
        }
        for name, label in way_labels(course).items()
    }
    for count in course.stored:
        ways[corrected_name(count)] = _accuracy(accuracies[corrected_name(count)])
    points = [
        {
            "run": k.run,
            "step": k.step,
            "examples_seen": k.step * course.batch_size,
            "exact": _parts(k.exact),
            "recent": _parts(k.recent),
            "probe_low": k.probe.low,
            "probe_high": k.probe.high,
            "probe_examples": k.probe.examples,
            "estimates": {name: _parts(found) for name, found in k.estimates.items()},
        }
        for k in looks
    ]
    return {"batch_size": course.batch_size, "ways": ways, "points": points}


def _accuracy(found: Accuracy) -> dict[str, Any]:
    return {
        "comparisons": found.comparisons,
        "negative": found.negative,
        "share_within_2x": found.good,
        "median_ratio": found.median_ratio,
        "typical_factor": found.typical_factor,
        "spread": found.spread,
    }


def _parts(found: Parts | None) -> dict[str, float | None] | None:
    if found is None:
        return None
    return {
        "noise_scale": found.noise_scale,
        "grad_sq": found.grad_sq,
        "trace_cov": found.trace_cov,
    }
