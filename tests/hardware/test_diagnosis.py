"""What limits the rate. Oracle: closed form (symptoms of a chosen cause), and laws."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.hardware.diagnosis import Diagnosis, Symptoms, diagnose
from rightbatch.results import LoopClocks, StepShares, ThroughputPoint, WorkerPoint

SIZES = (4, 8, 16, 64)
NAMES = {"loading", "sync", "padding", "thrashing", "overhead", "compute", "mixed"}


def point(
    batch_size: int, step_seconds: float, *, load: float = 0.0, spread: float = 0.0, **more: float
) -> ThroughputPoint:
    return ThroughputPoint(
        batch_size=batch_size,
        step_seconds=step_seconds,
        low=step_seconds * (1 - spread),
        high=step_seconds * (1 + spread),
        load_seconds=load,
        total_seconds=step_seconds + load,
        **more,
    )


def line(
    alpha: float, beta: float, sizes: tuple[int, ...] = SIZES, **more: float
) -> list[ThroughputPoint]:
    return [point(size, alpha + beta * size, **more) for size in sizes]


def clocks(load: float, step: float, *, workers: int = 0, size: int = 64) -> LoopClocks:
    return LoopClocks(
        batch_size=size,
        num_workers=workers,
        load_seconds=load,
        step_seconds=step,
        total_seconds=max(load, step) if workers else load + step,
        overlap=1.0 if workers else 0.0,
    )


def found(points: list[ThroughputPoint], half: float | None = None, **more: Any) -> Diagnosis:
    return diagnose(Symptoms(points=points, half_batch_size=half, **more))


CASES = {
    "far below the half size": (line(1.0, 0.001), 1000.0, {}, "overhead"),
    "past the half size": (line(1.0, 1.0), 1.0, {}, "compute"),
    "around the half size": (line(1.0, 1 / 64), 64.0, {}, "mixed"),
    "flat": (line(1.0, 0.0), None, {}, "overhead"),
    "noise": ([point(4, 1.0), point(64, 3.0)], None, {}, "mixed"),
    "one size": ([point(4, 1.0)], None, {}, "mixed"),
    "loading more than half": (line(1.0, 0.0, load=1.01), None, {}, "loading"),
    "loading less than half": (line(1.0, 0.0, load=0.99), None, {}, "overhead"),
    "loading hidden": (line(1.0, 0.0, load=1.09), None, {"num_workers": 2}, "overhead"),
    "loading slower than steps": (line(1.0, 0.0, load=1.11), None, {"num_workers": 2}, "loading"),
    "mostly idle": (line(1.0, 0.0, idle_share=0.51), None, {}, "sync"),
    "sometimes idle": (line(1.0, 0.0, idle_share=0.49), None, {}, "overhead"),
    "idle, but loading is slower": (line(1.0, 0.0, idle_share=0.9, load=2.0), None, {}, "loading"),
    "dearer at the largest": ([point(8, 1.0), point(64, 12.1)], 0.0, {}, "thrashing"),
    "dearer within the doubt": ([point(8, 1.0), point(64, 12.1, spread=0.1)], 0.0, {}, "compute"),
    "hardly dearer": ([point(8, 1.0), point(64, 11.9)], 0.0, {}, "compute"),
    "today below the knee": (line(1.0, 0.05, (4, 400)), 20.0, {"batch_size": 4}, "overhead"),
    "today past the knee": (line(1.0, 0.05, (4, 400)), 20.0, {"batch_size": 400}, "compute"),
    "today not measured": (line(1.0, 0.05, (4, 400)), 20.0, {"batch_size": 7}, "compute"),
}


@pytest.mark.parametrize(("largest", "promised"), [(104, False), (200, True)])
def test_a_gain_is_promised_only_where_it_was_measured(largest: int, promised: bool) -> None:
    """At 100 of a thousand fixed: 104 is 4 % faster an example, 200 almost twice as fast."""
    points = line(1.0, 0.001, (10, 100, largest))
    advice = found(points, 1000.0, batch_size=100).advice
    assert ("times the examples/s" in advice) == promised
    assert "larger batch" in advice


@pytest.mark.parametrize(("points", "half", "more", "name"), CASES.values(), ids=CASES)
def test_the_bottleneck_is_named(
    points: list[ThroughputPoint], half: float | None, more: dict[str, Any], name: str
) -> None:
    assert found(points, half, **more).bottleneck == name


def padded(share: float, *, alpha: float = 0.0) -> list[ThroughputPoint]:
    """At 64 so much of the batch is padding, at 4 nothing; a step costs 1 ms an element."""
    elements = {4: 40.0, 64: 640.0 / (1 - share)}
    return [
        point(b, alpha + 1e-3 * count, units=10.0 * b, elements=count)
        for b, count in elements.items()
    ]


@pytest.mark.parametrize(
    ("share", "name"), [(0.0, "compute"), (0.15, "compute"), (0.25, "padding"), (0.6, "padding")]
)
def test_padding_is_what_the_densest_batch_did_without(share: float, name: str) -> None:
    diagnosis = found(padded(share), 0.0)
    assert diagnosis.bottleneck == name
    if name == "padding":
        assert f"at least {100 * share:.0f} % of it is padding" in diagnosis.evidence


def test_padding_that_costs_nothing_is_no_bottleneck() -> None:
    """Nine tenths of a step are fixed: without the padding it would take 5 % less."""
    assert found(padded(0.5, alpha=9 * 1.28), 576.0).bottleneck == "overhead"


def test_longer_batches_are_not_taken_for_thrashing() -> None:
    """An example costs 60 % more at 64, each element the same; half of a step is fixed cost."""
    points = padded(0.375)
    assert found(points, 64.0).bottleneck == "mixed"
    blind = [point(p.batch_size, p.step_seconds) for p in points]
    assert found(blind, 64.0).bottleneck == "thrashing"


# What is said.


def test_the_evidence_of_loading_is_the_three_clocks() -> None:
    diagnosis = found(line(0.02, 0.0, load=0.3), clocks=clocks(0.3, 0.02))
    assert diagnosis.evidence == (
        "Loading a batch of 64 takes 300 ms and computing on it 20 ms; the loop pays 320 ms a step."
    )
    assert "num_workers" in diagnosis.advice


BESIDE = {  # seconds of loading with 0 and 1 workers, beside steps of 0.64 s
    "a worker hides it": ([0.58, 0.59], "Loading is 48 % of what the loop pays: try num_workers=1"),
    "none gains": ([0.58, 1.3], ""),
    "it is little": ([0.05, 0.05], ""),
    "none was tried": ([], ""),
}


@pytest.mark.parametrize(("loading", "said"), BESIDE.values(), ids=BESIDE)
def test_loading_that_is_paid_beside_computing_is_told(loading: list[float], said: str) -> None:
    """With workers the loop would pay the longer of both, and not their sum."""
    workers = [WorkerPoint(num_workers=n, load_seconds=s) for n, s in enumerate(loading)]
    load = loading[0] if loading else 0.58
    points = line(0.0, 0.01, load=load)
    diagnosis = found(points, 0.0, clocks=clocks(load, 0.64), workers=workers)
    assert diagnosis.bottleneck == "compute"
    assert diagnosis.advice.endswith("more devices.") != bool(said)
    assert said in diagnosis.advice


WORKERS = {
    "the fewest that hide loading": ([0.3, 0.16, 0.05, 0.04], "num_workers=2"),
    "or those that load fastest": ([0.3, 0.2, 0.12, 0.1], "num_workers=4"),
    "one that loads no faster still works meanwhile": ([0.3, 0.3, 0.3, 0.31], "num_workers=1"),
    "none where none gains": ([0.3, 0.4, 0.39, 0.4], "nor do worker processes (up to 4 tried)"),
}


@pytest.mark.parametrize(("seconds", "words"), WORKERS.values(), ids=WORKERS)
def test_the_advice_on_workers_was_measured(seconds: list[float], words: str) -> None:
    workers = [
        WorkerPoint(num_workers=count, load_seconds=each)
        for count, each in zip((0, 1, 2, 4), seconds, strict=True)
    ]
    diagnosis = found(
        line(0.06, 0.0, load=0.3), clocks=clocks(0.3, 0.06), workers=workers, batch_size=64
    )
    assert diagnosis.bottleneck == "loading"
    assert words in diagnosis.advice


def test_the_advice_on_workers_names_both_times_and_the_size() -> None:
    workers = [
        WorkerPoint(num_workers=0, load_seconds=0.3),
        WorkerPoint(num_workers=4, load_seconds=0.06),
    ]
    advice = found(line(0.1, 0.0, load=0.3), clocks=clocks(0.3, 0.1), workers=workers).advice
    assert advice == (
        "No batch size helps: try num_workers=4, with which loading a batch of 64 took 60 ms "
        "instead of 300 ms, while a step of 100 ms is computed."
    )


def test_an_overhead_says_what_the_largest_size_gains() -> None:
    """At 4: 1.004 s for 4; at 64: 1.064 s for 64, 15 times as many a second."""
    diagnosis = found(line(1.0, 0.001), 1000.0, batch_size=4)
    assert diagnosis.evidence.startswith("100 % of a step of 1 s at 4 examples is fixed cost")
    assert "up to 15 times the examples/s at 64" in diagnosis.advice
    at_largest = found(line(1.0, 0.001), 1000.0)
    assert at_largest.advice == ("Try a larger batch, or a compiled model with fewer operations.")


def test_a_fixed_cost_that_the_optimizer_makes_is_said_to_be() -> None:
    shares = StepShares(batch_size=64, forward=0.2, backward=0.3, optimizer=0.5)
    diagnosis = found(line(1.0, 0.001), 1000.0, shares=shares)
    assert "the optimizer takes 50 %" in diagnosis.evidence
    assert "a fused optimizer" in diagnosis.advice


def test_thrashing_names_the_size_to_stay_at() -> None:
    diagnosis = found([point(8, 1.0), point(32, 3.2), point(64, 12.8)], 0.0)
    assert diagnosis.evidence == "An example takes 200 ms at 64 and 100 ms at 32."
    assert diagnosis.advice.startswith("Pass 32 examples at a time")


@given(
    points=st.lists(
        st.builds(
            point,
            st.integers(1, 4096),
            st.floats(0.0, 10.0),
            load=st.floats(0.0, 10.0),
            spread=st.floats(0.0, 1.0),
            idle_share=st.none() | st.floats(0.0, 1.0),
            units=st.none() | st.floats(0.5, 1e6),
            elements=st.none() | st.floats(0.0, 1e6),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda p: p.batch_size,
    ),
    half=st.none() | st.floats(0.0, 1e6),
    today=st.none() | st.integers(1, 64),
    workers=st.integers(0, 4),
)
def test_any_numbers_give_a_name_and_two_whole_sentences(
    points: list[ThroughputPoint], half: float | None, today: int | None, workers: int
) -> None:
    points = sorted(points, key=lambda p: p.batch_size)
    diagnosis = found(points, half, batch_size=today, num_workers=workers)
    assert diagnosis.bottleneck in NAMES
    for sentence in (diagnosis.evidence, diagnosis.advice):
        assert not sentence[0].islower()
        assert sentence.endswith(".")
        assert "nan" not in sentence
        assert "inf" not in sentence.replace("information", "")
