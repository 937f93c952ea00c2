"""What is trained with today is one pass of today's batch. Oracle: by hand (rung 1)."""

from dataclasses import replace

import pytest

from rightbatch.plan import plan
from rightbatch.plan.candidates import Way, find_today
from rightbatch.report.figures import figures
from rightbatch.report.tables import candidates_table
from rightbatch.report.words import details, headline
from rightbatch.results import Plan, Results, Status, StepShares, ThroughputProfile
from tests.plan.made_up import critical, facts, memory, throughput

SECONDS = {16: 0.02, 32: 0.03, 64: 0.05, 128: 0.09, 256: 0.6}
B_C = 2000.0


def timed(seconds: dict[int, float]) -> ThroughputProfile:
    plain = throughput(sizes=tuple(seconds))
    points = tuple(
        replace(p, step_seconds=s, low=s, high=s, total_seconds=s)
        for p, s in zip(plain.points, seconds.values(), strict=True)
    )
    return replace(plain, points=points)


def with_optimizer(at_256: float) -> ThroughputProfile:
    """Of 60 ms at 64 examples the optimizer takes 48: two passes of 128 take 92 ms."""
    shares = StepShares(batch_size=64, forward=0.1, backward=0.1, optimizer=0.8)
    return replace(timed({64: 0.06, 128: 0.07, 256: at_256}), shares=shares)


def made(today: int = 256, **options: object) -> Plan:
    """One pass of 256 takes 600 ms, two of 128 take 180."""
    return plan(timed(SECONDS), critical(B_C), facts(batch_size=today), **options)  # type: ignore[arg-type]


def test_the_speed_up_is_over_one_pass_as_it_was_measured() -> None:
    result = made()
    assert (result.batch_size, result.micro_batch_size) == (128, 128)
    by_hand = (1 + B_C / 256) * 0.6 / ((1 + B_C / 128) * 0.09)
    assert result.speedup == pytest.approx(by_hand, rel=1e-9)  # 3.5, where two passes say 1.06
    assert result.current is not None
    assert (result.current.batch_size, result.current.micro_batch_size) == (256, 256)
    both = [c.accumulation_steps for c in result.candidates if c.batch_size == 256]
    assert both == [2, 1]  # the faster layout is weighed beside it


def test_staying_costs_what_one_pass_costs() -> None:
    result = made(price_per_hour=3.6, upfront_costs={"retuning": 5.0}, steps_today=10_000)
    stay, other = result.costs
    assert stay.running == pytest.approx(10_000 * 0.6 * 1e-3, rel=1e-9)
    steps = (1 + B_C / 128) / (1 + B_C / 256)
    assert other.running == pytest.approx(10_000 * steps * 0.09 * 1e-3, rel=1e-9)
    saving = 10_000 * (0.6 - steps * 0.09) * 1e-3
    assert other.break_even_runs == pytest.approx(5 / saving, rel=1e-9)  # 1.2, not 71


def test_another_layout_of_todays_batch_is_not_what_is_trained_with_today() -> None:
    result = plan(
        with_optimizer(at_256=0.6),
        critical(500.0),
        facts(batch_size=256),
        price_per_hour=3.6,
        upfront_costs={"retuning": 5.0},
    )
    assert (result.batch_size, result.micro_batch_size) == (256, 128)
    assert result.speedup == pytest.approx(0.6 / 0.092, rel=1e-9)
    assert any(r.startswith("Against today's 256 in one pass, ") for r in result.reasons)
    assert "of today's batch size 256 in one pass" in " ".join(details(result))
    stay, other = result.costs
    assert (other.name, other.upfront, other.batch_size) == ("other layout here", 0.0, 256)
    (words,) = (reason for reason in result.reasons if "costs 0 once" in reason)
    assert "costs 0 once and less to run from the first step, in " in words
    assert stay.relative_time == 1.0
    marks = {row.cells[1]: row.cells[-1] for row in candidates_table(result).rows}
    assert (marks["256 x 1"], marks["128 x 2"]) == ("today", "recommended")
    results = Results(task=facts(batch_size=256), environment={}, plan=result)
    assert headline(results) == "Keep batch size 256, with learning rate 0.1."
    traces = figures(results)["plan"].to_plotly_json()["data"]
    drawn = {trace["name"]: trace["y"][0] for trace in traces}
    assert drawn["today"] == pytest.approx(0.6 / 0.092 * drawn["recommended"])


def test_the_same_layout_is_kept_and_called_so() -> None:
    result = made(today=128)
    assert result.speedup == 1.0
    assert "That is today's batch size: keep 128." in result.reasons
    assert "It is what you train with today." in details(result)


def test_one_pass_between_the_measured_sizes_is_read_from_the_curve() -> None:
    result = plan(throughput(sizes=(16, 32, 64)), critical(160.0), facts(batch_size=24))
    assert result.current is not None
    assert result.current.micro_batch_size == 24


@pytest.mark.parametrize(("today", "largest", "passes"), [(512, 512, "2 passes of 256"),
                                                          (256, 64, "4 passes of 64")])  # fmt: skip
def test_a_pass_that_was_not_timed_or_does_not_fit_is_said_to_be_several(
    today: int, largest: int, passes: str
) -> None:
    sizes = (16, 32, 64, 128, 256)
    result = plan(
        throughput(sizes=sizes), critical(160.0), facts(batch_size=today), memory(largest)
    )
    (reason,) = (r for r in result.reasons if r.startswith("Against today's"))
    share = f"one of {today} was not timed, or does not fit"
    assert f"today's {today} (taken to be {passes}: {share})" in reason


def test_two_layouts_of_one_size_are_no_tie() -> None:
    """One pass of 256 takes hardly longer than two of 128: it is kept."""
    result = plan(
        with_optimizer(at_256=0.094), critical(500.0), facts(batch_size=256, examples=256)
    )
    assert (result.batch_size, result.accumulation_steps) == (256, 1)
    assert result.status is Status.OK
    assert not any("Cannot distinguish" in r for r in result.reasons)


def test_today_is_on_the_fewest_devices() -> None:
    ways = (Way(16, 4, 1, True, 4), Way(16, 4, 2, True, 2), Way(32, 8, 1, True, 4))
    assert find_today(ways, 16) == 1
    assert find_today(ways, 32) is None
