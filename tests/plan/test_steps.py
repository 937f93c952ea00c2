"""Oracle: curves made by the law itself (rung 1), coverage over many draws last."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import steps_model
from rightbatch.plan import fit_steps, plan
from rightbatch.results import Status
from tests.plan.made_up import facts, throughput

SIZES = [64, 256, 1024, 4096]


def curve(sizes: list[int], minimal: float = 7.0, critical: float = 700.0) -> list[float]:
    return [minimal * (1 + b / critical) for b in sizes]


@settings(deadline=None)
@given(
    critical=st.floats(30.0, 20_000.0),
    minimal=st.floats(1e-3, 1e9),
    sizes=st.lists(st.integers(16, 30_000), min_size=3, max_size=7, unique=True),
)
def test_exact_curves_come_back(critical: float, minimal: float, sizes: list[int]) -> None:
    fit = fit_steps(sizes, curve(sizes, minimal, critical))
    found = fit.critical_batch_size
    if max(sizes) < 1.5 * min(sizes):
        return  # nearly one size: rounding alone bends the curve
    assert found.value == pytest.approx(critical, rel=1e-3)
    assert fit.minimal_examples == pytest.approx(minimal, rel=1e-3)
    assert fit.residual < 1e-6
    assert fit.status is Status.OK
    assert found.source == "sweep"


def test_units_and_order_do_not_matter() -> None:
    noisy = [7.1, 9.4, 18.0, 47.0]
    fit = fit_steps(SIZES, noisy)
    assert fit.status is Status.OK
    scaled = fit_steps(SIZES[::-1], [1000 * e for e in noisy[::-1]])
    for name in ("value", "low", "high"):
        ours, theirs = (getattr(f.critical_batch_size, name) for f in (fit, scaled))
        assert ours == pytest.approx(theirs, rel=1e-6)
    doubled = fit_steps([2 * b for b in SIZES], noisy).critical_batch_size.value
    assert doubled == pytest.approx(2 * fit.critical_batch_size.value, rel=1e-6)  # type: ignore[operator]


def test_the_residual_is_the_root_mean_square_of_the_logarithms() -> None:
    """Equal and opposite errors at one size, twice: the fit passes between them."""
    sizes = [100, 100, 1000, 1000]
    errors = np.array([0.03, -0.03, 0.03, -0.03])
    fit = fit_steps(sizes, curve(sizes) * np.exp(errors))  # type: ignore[arg-type]
    assert fit.critical_batch_size.value == pytest.approx(700.0, rel=1e-4)
    assert fit.residual == pytest.approx(0.03, rel=1e-6)


def test_a_flat_curve_is_bounded_from_below_only() -> None:
    fit = fit_steps(SIZES, [10.0, 10.2, 9.9, 10.1])
    found = fit.critical_batch_size
    assert fit.status is found.status is Status.NOT_DETERMINED
    assert found.high is None
    assert found.low > 4096  # far beyond the sizes: else the last would have shown it


def test_a_falling_curve_has_no_value() -> None:
    fit = fit_steps([64, 256, 1024], [12.0, 10.0, 9.0])
    assert fit.critical_batch_size.value is None
    assert fit.minimal_examples is None
    assert fit.status is Status.NOT_DETERMINED


def test_a_curve_in_proportion_is_bounded_from_above_only() -> None:
    fit = fit_steps(SIZES, [b * e for b, e in zip(SIZES, [1.0, 1.02, 0.99, 1.01], strict=True)])
    found = fit.critical_batch_size
    assert fit.status is Status.NOT_DETERMINED
    assert found.low == 0.0
    assert found.high is not None
    assert found.high < 64


def test_two_sizes_bound_nothing() -> None:
    fit = fit_steps([64, 1024], curve([64, 1024]))
    found = fit.critical_batch_size
    assert found.value == pytest.approx(700.0, rel=1e-3)
    assert (found.low, found.high, fit.status) == (0.0, None, Status.NOT_DETERMINED)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """400 draws at 95 %: the share's standard error is 1.1 %."""
    generator = np.random.default_rng(0)
    sizes, covered = [64, 128, 256, 512, 1024, 2048], 0
    for _ in range(400):
        noisy = curve(sizes) * np.exp(0.05 * generator.standard_normal(len(sizes)))
        found = fit_steps(sizes, noisy).critical_batch_size  # type: ignore[arg-type]
        covered += found.low <= 700.0 and (found.high is None or found.high >= 700.0)
    assert abs(covered / 400 - 0.95) < 3.5 * 0.011


def test_a_lower_level_is_a_narrower_interval() -> None:
    wide, narrow = (
        fit_steps(SIZES, [7.1, 9.4, 18.0, 47.0], level=level).critical_batch_size
        for level in (0.95, 0.5)
    )
    assert wide.low < narrow.low < narrow.high < wide.high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("sizes", "examples", "message"),
    [
        ([64], [1.0], "at least two different sizes"),
        ([64, 64], [1.0, 1.1], "at least two different sizes"),
        ([64, 128], [1.0], "of one length, got 2 and 1"),
        ([64, 128], [1.0, 0.0], "`examples` must be positive and finite, got 0.0"),
        ([64, -1], [1.0, 2.0], "`batch_sizes` must be positive and finite, got -1.0"),
        ([64, 128], [1.0, float("nan")], "must be positive and finite, got nan"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    sizes: list[float], examples: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_steps(sizes, examples)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_levels_are_shares(level: float) -> None:
    with pytest.raises(ValueError, match=f"must lie in \\(0, 1\\), got {level}"):
        fit_steps([64, 128], [1.0, 2.0], level=level)


def test_a_plan_can_be_made_from_a_fit() -> None:
    known = fit_steps(SIZES, [7.1, 9.4, 18.0, 47.0]).critical_batch_size
    assert plan(throughput(), known, facts()).status in (Status.OK, Status.TIE)
    flat = fit_steps(SIZES, [10.0, 10.2, 9.9, 10.1]).critical_batch_size
    made = plan(throughput(), flat, facts())
    assert made.status is Status.NOT_DETERMINED
    assert made.high is None
    assert "do not determine" in made.reasons[0]


def test_the_committed_table_is_what_the_public_runs_give() -> None:
    """Of all benchmarks the newest round; skipped where the data are absent."""
    path = Path(os.environ.get("RIGHTBATCH_DATA", ".")) / steps_model.DATA
    if not path.is_file():
        pytest.skip(f"no {steps_model.DATA} in $RIGHTBATCH_DATA")
    committed = json.loads((steps_model.RESULTS / "steps_model.json").read_text())
    again = steps_model.steps_model()
    assert again["median_residual"] == pytest.approx(committed["median_residual"], rel=1e-6)
    assert [row["benchmark"] for row in again["rows"]] == [
        row["benchmark"] for row in committed["rows"]
    ]
    assert {row["status"] for row in again["rows"]} == {"ok", "not_determined"}
