"""What a plan says of loading is what was measured of it. Oracle: the diagnosis (rung 3)."""

from dataclasses import replace

import pytest

from rightbatch.hardware.diagnosis import Symptoms, diagnose
from rightbatch.plan import plan
from rightbatch.results import LoopClocks, WorkerPoint
from tests.plan.made_up import critical, facts, throughput


def advice(with_four: float) -> str:
    """At 1,024 examples: 2 s to load in this process, 1 s to compute."""
    points = tuple(
        replace(p, load_seconds=2.0, total_seconds=3.0) for p in throughput().points[-1:]
    )
    clocks = LoopClocks(
        batch_size=1024,
        num_workers=0,
        load_seconds=2.0,
        step_seconds=1.034,
        total_seconds=3.0,
        overlap=0.0,
    )
    workers = (
        WorkerPoint(num_workers=0, load_seconds=2.0),
        WorkerPoint(num_workers=4, load_seconds=with_four),
    )
    return diagnose(
        Symptoms(points=points, half_batch_size=10.0, clocks=clocks, workers=workers)
    ).advice


@pytest.mark.parametrize(
    ("with_four", "words"), [(2.9, "nor do worker processes"), (0.7, "try num_workers=4")]
)
def test_the_reason_advises_what_the_diagnosis_does(with_four: float, words: str) -> None:
    """Where workers were tried and do not pay, no reason asks for more of them."""
    profile = replace(throughput(), bottleneck="loading", advice=advice(with_four))
    (reason,) = (r for r in plan(profile, critical(), facts()).reasons if "Computing" in r)
    assert reason.endswith(f"at 10. Loading is the bottleneck. {profile.advice}")
    assert words in reason


def test_old_files_advise_nothing() -> None:
    profile = replace(throughput(), bottleneck="loading", advice="")
    (reason,) = (r for r in plan(profile, critical(), facts()).reasons if "Computing" in r)
    assert reason.endswith("half the peak speed is reached at 10. Loading is the bottleneck.")


def test_another_bottleneck_says_nothing_of_loading() -> None:
    profile = replace(throughput(), bottleneck="compute", advice="Try a lower precision.")
    (reason,) = (r for r in plan(profile, critical(), facts()).reasons if "Computing" in r)
    assert reason.endswith("so half the peak speed is reached at 10.")
