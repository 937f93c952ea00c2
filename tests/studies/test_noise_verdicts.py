"""The rules, on made-up measurements: each claim can come out in each of the four ways."""

import pytest

from rightbatch.studies.noise_verdicts import Accuracy, Rise, judge_rise, judge_ways
from rightbatch.studies.study import Verdict

HOLDS, IN_PART = Verdict.HOLDS, Verdict.IN_PART
NOT, UNKNOWN = Verdict.DOES_NOT_HOLD, Verdict.CANNOT_TELL


def same(*ratios: float | None, points: int = 4) -> Accuracy:
    return Accuracy((ratios,) * points)


EXACT = same(1.0, 1.1, 0.9)
WILD = same(0.1, 1.0, 5.0)
NEGATIVE = same(1.0, None, 5.0)
BIASED = same(3.0, 3.1, 3.2)
FEW = Accuracy(((0.1, 5.0, None),))


def verdict_of(key: str, **found: Accuracy) -> Verdict:
    ways = {
        "average": EXACT,
        "average_adam": EXACT,
        "stored_10": EXACT,
        "stored_100": EXACT,
        "stored_300": EXACT,
        "two_runs": EXACT,
        "consecutive": EXACT,
        "probe": EXACT,
        "monitor": EXACT,
        **found,
    }
    claims = {claim.key: claim for claim in judge_ways(ways, (10, 100, 300))}
    return claims[key].verdict


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        (NEGATIVE, EXACT, HOLDS),
        (WILD, NEGATIVE, HOLDS),
        (WILD, EXACT, IN_PART),
        (EXACT, WILD, IN_PART),
        (EXACT, EXACT, NOT),
        (BIASED, BIASED, NOT),
        (FEW, FEW, UNKNOWN),
    ],
)
def test_moving_averages(one: Accuracy, two: Accuracy, expected: Verdict) -> None:
    assert verdict_of("C2 (a)", average=one, average_adam=two) is expected


@pytest.mark.parametrize(
    ("ten", "hundred", "most", "expected"),
    [
        (BIASED, BIASED, EXACT, HOLDS),
        (BIASED, EXACT, EXACT, HOLDS),
        (EXACT, EXACT, EXACT, IN_PART),
        (BIASED, BIASED, BIASED, NOT),
        (FEW, FEW, FEW, UNKNOWN),
    ],
)
def test_stored_gradients(
    ten: Accuracy, hundred: Accuracy, most: Accuracy, expected: Verdict
) -> None:
    found = verdict_of("C2 (b)", stored_10=ten, stored_100=hundred, stored_300=most)
    assert found is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [(WILD, HOLDS), (NEGATIVE, HOLDS), (BIASED, IN_PART), (EXACT, NOT), (FEW, UNKNOWN)],
)
def test_two_runs(found: Accuracy, expected: Verdict) -> None:
    assert verdict_of("C2 (c)", two_runs=found) is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (EXACT, HOLDS),
        (same(1.0, 1.0, 3.0), IN_PART),
        (same(*[1.0] * 19, None), IN_PART),  # one negative answer is one too many
        (BIASED, NOT),
        (FEW, UNKNOWN),
    ],
)
def test_consecutive_batches_and_the_monitor(found: Accuracy, expected: Verdict) -> None:
    assert verdict_of("C2 (d)", consecutive=found) is expected
    assert verdict_of("C2 (live)", monitor=found) is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (same(1.0, 1.01, 0.99), HOLDS),
        (same(1.14, 1.15, 1.15), HOLDS),  # the best is off by 1.1
        (same(1.2, 1.2, 1.3), IN_PART),
        (BIASED, NOT),
        (same(*[1.0] * 19, None), NOT),
        (FEW, UNKNOWN),
    ],
)
def test_ours(found: Accuracy, expected: Verdict) -> None:
    assert verdict_of("C2", probe=found) is expected


def test_ours_beats_ways_that_have_no_answer() -> None:
    silent = same(None, None, None)
    ways = dict.fromkeys(("average", "average_adam", "two_runs", "consecutive"), silent)
    assert verdict_of("C2", **ways, stored_300=silent) is HOLDS


def rise(*noise_scales: float, shrinking: str = "gradient", steps: int = 3000) -> Rise:
    """A run whose noise scale changes by its gradient, or by its noise."""
    count = len(noise_scales)
    ones = (1.0,) * count
    is_gradient = shrinking == "gradient"
    return Rise(
        steps=tuple(steps * index // (count - 1) for index in range(count)),
        grad_sq=tuple(1 / n for n in noise_scales) if is_gradient else ones,
        trace_cov=ones if is_gradient else noise_scales,
    )


@pytest.mark.parametrize(
    ("runs", "epoch", "expected"),
    [
        ([rise(150, 60, 300, 900)] * 3, 3000, HOLDS),
        ([rise(150, 60, 700, 2000)] * 3, 2000, HOLDS),
        ([rise(150, 60, 300, 900)] * 3, 2000, IN_PART),  # 900 comes too late
        ([rise(150, 20, 700, 2000)] * 3, 2000, IN_PART),  # starts too low
        ([rise(150, 60, 900, 2500, shrinking="noise")] * 3, 2000, IN_PART),
        ([rise(150, 60, 60, 50)] * 3, 2000, NOT),
        ([rise(150, 60, 900, 160)] * 3, 2000, NOT),
        ([rise(150, 60, 900, 400)] * 3, 2000, NOT),  # up and down again
        ([rise(150, 60, 900, 800), *[rise(150, 60, 300, 900)] * 2], 3000, HOLDS),  # one look
        ([rise(150, 60, 800, 900), rise(150, 60, 900, 160)], 2000, UNKNOWN),
        ([rise(150, 60, 800, 900, steps=900)] * 3, 2000, UNKNOWN),  # too short to say
    ],
)
def test_the_rise(runs: list[Rise], epoch: int, expected: Verdict) -> None:
    assert judge_rise(runs, epoch=epoch).verdict is expected


def test_the_evidence_says_the_numbers() -> None:
    claim = judge_rise([rise(150, 60, 300, 900)] * 3, epoch=2000)
    assert (
        "doubles in 3 of 3 runs: lowest 60, after one epoch 300, at the end 900" in claim.evidence
    )
    assert "squared gradient becomes 0.067 times" in claim.evidence
    claims = judge_ways(
        {
            **dict.fromkeys(
                ("average", "average_adam", "stored_10", "consecutive", "probe"), EXACT
            ),
            "two_runs": NEGATIVE,
            "monitor": EXACT,
        },
        (10,),
    )
    evidence = {claim.key: claim.evidence for claim in claims}
    assert evidence["C2 (c)"] == "4 of 12 answers within a factor of 2, 4 negative."
    assert "12 of 12 answers within a factor of 2, typically off by 1.1x" in evidence["C2 (d)"]


def test_accuracy_of_nothing_is_no_accuracy() -> None:
    nothing = Accuracy(())
    assert (nothing.good, nothing.median_ratio, nothing.typical_factor) == (0.0, None, None)
    assert nothing.spread is None


def test_the_typical_factor_counts_missing_answers_as_wrong() -> None:
    assert same(0.5, 2.0, 1.0).typical_factor == 2.0
    assert same(1.0, None, None).typical_factor is None
    assert same(1.0, 1.0, None).typical_factor == 1.0
