"""The rules for the claims on measuring the noise scale, written before the run. Pure functions.

One yardstick for all: an answer is *good* within a factor of 2 of the exact value, since a batch
size is chosen in powers of two.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from rightbatch._format import format_count, format_number, format_ratio
from rightbatch.studies.study import Claim, Verdict

GOOD = 2.0  # factor
WORKS = 0.9  # share of good answers
AS_EXACT = 1.05  # ratio of two typical factors that counts as none
HUNDREDS = 100  # stored gradients
FEWEST = 10  # comparisons to judge by
CLAIMED_LOW, CLAIMED_HIGH = 50, 900  # examples


@final
@dataclass(frozen=True, slots=True)
class Accuracy:
    """Ratios of estimate to exact value: one list per point in training, one entry per run.

    ``None`` stands for a negative part: the way has no answer there.

    Example:
        >>> accuracy = Accuracy(((1.0, 4.0), (0.5, None)))
        >>> accuracy.comparisons, accuracy.negative, accuracy.good, accuracy.median_ratio
        (4, 1, 0.5, 1.0)
        >>> accuracy.spread is None, Accuracy(((1.0, 4.0), (3.0, 2.0))).spread
        (True, 4.0)
    """

    ratios: tuple[tuple[float | None, ...], ...]

    @property
    def _answers(self) -> list[float]:
        return [ratio for point in self.ratios for ratio in point if ratio is not None]

    @property
    def comparisons(self) -> int:
        """Answers asked for."""
        return sum(map(len, self.ratios))

    @property
    def negative(self) -> int:
        """Answers not given, because a part came out negative."""
        return self.comparisons - len(self._answers)

    @property
    def good(self) -> float:
        """Share of answers within a factor of 2 of the exact value, in [0, 1]."""
        good = [ratio for ratio in self._answers if 1 / GOOD <= ratio <= GOOD]
        return len(good) / self.comparisons if self.comparisons else 0.0

    @property
    def median_ratio(self) -> float | None:
        """Median of the answers given, over the exact value."""
        return statistics.median(self._answers) if self._answers else None

    @property
    def typical_factor(self) -> float | None:
        """Median factor between answer and truth, at least 1; ``None``: half have no answer."""
        factors = [max(ratio, 1 / ratio) for ratio in self._answers] + [math.inf] * self.negative
        middle = statistics.median(factors) if factors else math.inf
        return middle if math.isfinite(middle) else None

    @property
    def spread(self) -> float | None:
        """Largest over smallest answer among the runs, at the worst point; ``None``: no answer."""
        if self.negative or not self.comparisons:
            return None
        return max(max(p) / min(p) for p in _complete(self.ratios))

    @property
    def works(self) -> bool:
        """Whether at least 90 % of the answers are good."""
        return self.good >= WORKS

    @property
    def unstable(self) -> bool:
        """Whether two runs differ by more than a factor of 2 somewhere, or one has no answer."""
        return self.spread is None or self.spread > GOOD


def _complete(ratios: Sequence[Sequence[float | None]]) -> list[list[float]]:
    return [[ratio for ratio in point if ratio is not None] for point in ratios]


def judge_ways(accuracies: Mapping[str, Accuracy], stored: Sequence[int]) -> tuple[Claim, ...]:
    """Judge the four ways and ours.

    Args:
        accuracies: By the names that `rightbatch.studies.noise_run` gives the ways.
        stored: Numbers of gradients that way (b) was tried with, ascending.
    """
    by_count = {count: accuracies[f"stored_{count}"] for count in stored}
    return (
        _moving_averages(accuracies["average"], accuracies["average_adam"]),
        _stored(by_count),
        _two_runs(accuracies["two_runs"]),
        _consecutive(accuracies["consecutive"]),
        _ours(accuracies["probe"], accuracies, by_count),
        _live(accuracies["monitor"]),
    )


def _told(accuracy: Accuracy, verdict: Verdict) -> Verdict:
    return verdict if accuracy.comparisons >= FEWEST else Verdict.CANNOT_TELL


def _words(accuracy: Accuracy) -> str:
    text = f"{_good(accuracy)} of {accuracy.comparisons} answers within a factor of 2"
    if accuracy.negative:
        return f"{text}, {accuracy.negative} negative"
    off, spread = format_ratio(accuracy.typical_factor), format_ratio(accuracy.spread)
    return f"{text}, typically off by {off}, runs differ by up to {spread}"


def _good(accuracy: Accuracy) -> int:
    return round(accuracy.good * accuracy.comparisons)


def _moving_averages(one: Accuracy, two: Accuracy) -> Claim:
    marks = (one.unstable or two.unstable) + bool(one.negative or two.negative)
    verdict = (Verdict.DOES_NOT_HOLD, Verdict.IN_PART, Verdict.HOLDS)[marks]
    return Claim(
        key="C2 (a)",
        text="A moving average of squared gradients minus the square of a moving average of "
        "gradients is unstable, and even negative.",
        rule="Unstable: two runs differ by more than a factor of 2 at some point, or one has no "
        "answer. Negative: at least one answer is. Both: holds; one: in part.",
        verdict=_told(one, verdict),
        evidence=f"One decay (0.99): {_words(one)}. Two decays (0.9 and 0.999): {_words(two)}.",
    )


def _stored(by_count: Mapping[int, Accuracy]) -> Claim:
    enough = next((count for count, found in by_count.items() if found.works), None)
    most, last = max(by_count.items())
    if enough is None:
        verdict, says = Verdict.DOES_NOT_HOLD, f"not even {most} are enough"
    elif enough < HUNDREDS:
        verdict, says = Verdict.IN_PART, f"{enough} are enough"
    else:
        verdict, says = Verdict.HOLDS, f"{enough} are needed"
    shares = ", ".join(f"{_good(a)} of {a.comparisons} at {n}" for n, a in by_count.items())
    return Claim(
        key="C2 (b)",
        text="Keeping N gradients and taking their variance works, but needs hundreds of them.",
        rule="Works: 90 % of the answers within a factor of 2. Holds if the fewest gradients that "
        "work are 100 or more; in part if fewer do; does not hold if none work.",
        verdict=_told(last, verdict),
        evidence=f"{says.capitalize()}. Within a factor of 2: {shares}.",
    )


def _two_runs(found: Accuracy) -> Claim:
    if found.unstable:
        verdict = Verdict.HOLDS
    else:
        verdict = Verdict.DOES_NOT_HOLD if found.works else Verdict.IN_PART
    return Claim(
        key="C2 (c)",
        text="Two epochs, at B and at 2B, give unstable answers.",
        rule="Unstable as in (a): holds. Stable but wrong: in part. Stable, and 90 % of the "
        "answers within a factor of 2: does not hold.",
        verdict=_told(found, verdict),
        evidence=f"{_words(found)}.",
    )


def _consecutive(found: Accuracy) -> Claim:
    return Claim(
        key="C2 (d)",
        text="20 consecutive batches, the last gradient against the mean of all, in moving "
        "averages with bias correction, works.",
        rule="90 % of the answers within a factor of 2 and none negative: holds. At least half: "
        "in part.",
        verdict=_told(found, _working(found)),
        evidence=f"With decay 0.99: {_words(found)}.",
    )


def _working(found: Accuracy) -> Verdict:
    if found.works and not found.negative:
        return Verdict.HOLDS
    return Verdict.IN_PART if found.good >= 0.5 else Verdict.DOES_NOT_HOLD


def _live(found: Accuracy) -> Claim:
    return Claim(
        key="C2 (live)",
        text="NoiseMonitor, which holds a part of a batch against the whole at the same weights "
        "and stores no gradient, works while training goes on.",
        rule="As for (d).",
        verdict=_told(found, _working(found)),
        evidence=f"{_words(found)}.",
    )


def _ours(
    found: Accuracy, accuracies: Mapping[str, Accuracy], by_count: Mapping[int, Accuracy]
) -> Claim:
    most = max(by_count)
    others = ("average", "average_adam", f"stored_{most}", "two_runs", "consecutive")
    factors = [accuracies[name].typical_factor for name in others]
    best = min((factor for factor in factors if factor is not None), default=math.inf)
    own = found.typical_factor
    if not found.works or found.negative or own is None:
        verdict = Verdict.DOES_NOT_HOLD
    else:
        verdict = Verdict.HOLDS if own <= AS_EXACT * best else Verdict.IN_PART
    nearest = "the four have no answer"
    if math.isfinite(best):
        nearest = f"the best of the four is off by {format_ratio(best)}"
    return Claim(
        key="C2",
        text="The frozen probe of rightbatch, which stores no gradient, replaces all four.",
        rule="90 % of its answers within a factor of 2, none negative, and as exact as the best "
        f"of the four, (b) with {most} gradients: its typical factor at most 5 % above theirs. "
        "All: holds. Only the last fails: in part.",
        verdict=_told(found, verdict),
        evidence=f"{_words(found)}, where {nearest}.",
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """Both parts of the exact noise scale along one run."""

    steps: tuple[int, ...]
    grad_sq: tuple[float, ...]
    trace_cov: tuple[float, ...]

    @property
    def noise_scales(self) -> tuple[float, ...]:
        """``tr(Sigma)/|G|^2`` at each step, in examples."""
        return tuple(t / g for t, g in zip(self.trace_cov, self.grad_sq, strict=True))

    @property
    def lowest(self) -> int:
        """Which look saw the smallest noise scale."""
        return self.noise_scales.index(min(self.noise_scales))

    def at(self, step: int) -> float:
        """The noise scale at the last step looked at that is not after ``step``."""
        return [n for s, n in zip(self.steps, self.noise_scales, strict=True) if s <= step][-1]

    @property
    def doubles(self) -> bool:
        """Whether it ends at more than twice what it was at the start."""
        return self.noise_scales[-1] > GOOD * self.noise_scales[0]


def judge_rise(runs: Sequence[Rise], *, epoch: int, least_steps: int = 1000) -> Claim:
    """Judge whether the noise scale grows along training, how far, and why.

    Args:
        runs: One or more.
        epoch: Steps of one epoch, about: the length of the finder's own run.
        least_steps: Shorter runs are not judged.
    """
    lows = [min(run.noise_scales) for run in runs]
    ends = [run.at(epoch) for run in runs]
    gradient = statistics.median([run.grad_sq[-1] / run.grad_sq[run.lowest] for run in runs])
    noise = statistics.median([run.trace_cov[-1] / run.trace_cov[run.lowest] for run in runs])
    low, end = statistics.median(lows), statistics.median(ends)
    last = statistics.median([run.noise_scales[-1] for run in runs])
    rising = sum(run.doubles for run in runs)
    middles = [
        statistics.median(found) for found in zip(*(r.noise_scales for r in runs), strict=True)
    ]
    steady = all(a < b for a, b in pairwise(middles[middles.index(min(middles)) :]))
    numbers = _near(low, CLAIMED_LOW) and _near(end, CLAIMED_HIGH)
    cause = gradient < 1 / GOOD <= noise <= GOOD
    if runs[0].steps[-1] < least_steps or 0 < rising < len(runs):
        verdict = Verdict.CANNOT_TELL
    elif not (rising and steady):
        verdict = Verdict.DOES_NOT_HOLD
    else:
        verdict = Verdict.HOLDS if numbers and cause else Verdict.IN_PART
    return Claim(
        key="C3",
        text="On MNIST the noise scale grows along training, from about 50 to about 900, because "
        "the gradient shrinks while the noise stays.",
        rule="Grows: in every run more than twofold from start to end, and in the median of the "
        "runs from each look to the next after its lowest. Numbers: its lowest within a factor of "
        "2 of 50, its value after one epoch within a factor of 2 of 900. Cause: from its lowest to "
        "the end the squared gradient more than halves and the covariance stays within a factor "
        "of 2. All: holds; grows but not all: in part; grows in some runs only: cannot tell.",
        verdict=verdict,
        evidence=f"It more than doubles in {rising} of {len(runs)} runs: lowest "
        f"{format_count(low)}, after one epoch {format_count(end)}, at the end "
        f"{format_count(last)} (medians). "
        "From the lowest to the end the squared gradient becomes "
        f"{format_number(gradient)} times, the trace of the covariance {format_number(noise)} "
        "times what it was.",
    )


def _near(value: float, claimed: float) -> bool:
    return claimed / GOOD <= value <= claimed * GOOD
