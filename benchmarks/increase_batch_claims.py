"""The rules for the claims on growing the batch, written before the run. Pure functions."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rightbatch.studies.study import Claim, Verdict

FEWER = 0.40  # share of the updates that must be saved

Task = dict[str, Any]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation of a sample.

    Example:
        >>> mean_and_deviation([1.0, 2.0, 3.0])
        (2.0, 1.0)
    """
    return statistics.fmean(values), statistics.stdev(values)


def pooled_deviation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the standard deviation within two samples of the same size.

    Example:
        >>> pooled_deviation([0.0, 2.0], [10.0, 16.0]) ** 2  # of variances 2 and 18
        10.0
    """
    return math.sqrt((statistics.variance(one) + statistics.variance(other)) / 2)


def paired(task: Task, way: str, other: str) -> tuple[float, float]:
    """Return the mean difference of accuracies of the same seed, and its standard error."""
    differences = [
        a - b for a, b in zip(accuracies(task, way), accuracies(task, other), strict=True)
    ]
    mean, deviation = mean_and_deviation(differences)
    return mean, deviation / math.sqrt(len(differences))


def accuracies(task: Task, way: str) -> list[float]:
    """Return the test accuracy at the end, one of each seed."""
    return [run["accuracy"] for run in task["runs"][way]]


def judge(tasks: Sequence[Task]) -> tuple[Claim, ...]:
    """Judge both claims over all tasks."""
    return (
        Claim(
            key="C10, its first sentence",
            text="Raising the batch does what decaying the rate does.",
            rule="Mean test accuracies differ by at most one standard deviation, pooled over "
            "the seeds of the two. It can be told only where a constant rate ends lower than "
            "a decayed one by more than one.",
            verdict=_over_all([_does_the_same(task) for task in tasks]),
            evidence=" ".join(_accuracy_evidence(task) for task in tasks),
        ),
        Claim(
            key="C24",
            text="Start with a small batch and raise it: as good as decaying the rate, with "
            "fewer updates.",
            rule=f"Mean test accuracy is not lower by more than that, with at least {FEWER:.0%} "
            "fewer updates; in part: as good, with fewer saved.",
            verdict=_over_all([_saves_updates(task) for task in tasks]),
            evidence=" ".join(_updates_evidence(task) for task in tasks),
        ),
    )


def _over_all(verdicts: Sequence[Verdict]) -> Verdict:
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if {Verdict.HOLDS, Verdict.IN_PART} & set(verdicts):
        return Verdict.IN_PART
    return Verdict.DOES_NOT_HOLD


def _difference(task: Task, way: str) -> tuple[float, float]:
    """The mean accuracy over that of the decayed rate, and one pooled standard deviation."""
    ours, decayed = accuracies(task, way), accuracies(task, "decay")
    return statistics.fmean(ours) - statistics.fmean(decayed), pooled_deviation(ours, decayed)


def _decay_matters(task: Task) -> bool:
    difference, deviation = _difference(task, "constant")
    return difference < -deviation


def _does_the_same(task: Task) -> Verdict:
    if not _decay_matters(task):
        return Verdict.CANNOT_TELL
    difference, deviation = _difference(task, "grow")
    return Verdict.HOLDS if abs(difference) <= deviation else Verdict.DOES_NOT_HOLD


def _saves_updates(task: Task) -> Verdict:
    if not _decay_matters(task):
        return Verdict.CANNOT_TELL
    difference, deviation = _difference(task, "grow")
    if difference < -deviation:
        return Verdict.DOES_NOT_HOLD
    return Verdict.HOLDS if _saved(task) >= FEWER else Verdict.IN_PART


def _saved(task: Task) -> float:
    grown, decayed = (sum(run["updates"] for run in task["runs"][way]) for way in ("grow", "decay"))
    return 1 - grown / decayed


def _accuracy_evidence(task: Task) -> str:
    grown, constant = _difference(task, "grow"), _difference(task, "constant")
    return (
        f"{task['name']}: growing the batch ends {_points(*grown)} decaying the rate, "
        f"changing neither {_points(*constant)} it."
    )


def _points(difference: float, deviation: float) -> str:
    side = "above" if difference > 0 else "below"
    return f"{100 * abs(difference):.2f} points (standard deviation {100 * deviation:.2f}) {side}"


def _updates_evidence(task: Task) -> str:
    grown, decayed = (task["runs"][way][0]["updates"] for way in ("grow", "decay"))
    return f"{task['name']}: {grown:,} updates for {decayed:,}, {_saved(task):.0%} fewer."
