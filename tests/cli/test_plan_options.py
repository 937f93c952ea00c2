"""Options of ``plan``: device lists, durations, limits. Oracle: the same plan made in Python."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rightbatch as rb
from rightbatch.cli.commands import app
from tests.plan.made_up import critical, facts, throughput


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A results file that was measured elsewhere."""
    path = tmp_path / "results.json"
    rb.Findings(
        task=facts(parameters=10**6),
        environment={},
        throughput=throughput(),
        critical_batch_size=critical(300.0),
    ).save(path)
    return path


def again(path: Path, *words: str) -> dict[str, object]:
    done = CliRunner().invoke(app, ["plan", str(path), *words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["plan"]


def test_the_front_is_printed_without_measuring_again(saved: Path) -> None:
    words = ("--devices", "1,2,4,8", "--price-per-hour", "2.5", "--deadline", "1h")
    done = CliRunner().invoke(app, ["plan", str(saved), *words])
    assert done.exit_code == 0, done.output
    assert "Front: no other way is both faster and cheaper" in done.stdout
    told = " ".join(done.stdout.split())
    assert "A deadline of 1 h can be kept if the run needs" in told
    assert "Communication counted as free" in told


def test_every_option_reaches_the_plan(saved: Path) -> None:
    made = again(
        saved,
        *("--devices", "1,2,4", "--allreduce-gbps", "100", "--price-per-hour", "3"),
        *("--deadline", "30m", "--max-cost", "40", "--steps-today", "20000"),
        *("--upfront-cost-per-device", "5", "--upfront-cost-retuning", "7"),
        *("--objective", "cost"),
    )
    expected = rb.plan(
        rb.load(saved),
        devices=[1, 2, 4],
        allreduce_gbps=100.0,
        price_per_hour=3.0,
        deadline_seconds=1800.0,
        max_cost=40.0,
        steps_today=20_000,
        upfront_costs={"per_device": 5.0, "retuning": 7.0},
        objective="cost",
    )
    assert made["reasons"] == list(expected.reasons)
    assert len(made["costs"]) == len(expected.costs) > 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("1h", 3600), ("2d", 172_800), ("30 min", 1800)],
)
def test_durations_are_read(saved: Path, text: str, seconds: float) -> None:
    made = again(saved, "--deadline", text)
    expected = rb.plan(rb.load(saved), deadline_seconds=seconds)
    assert made["reasons"] == list(expected.reasons)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--deadline", "soon"), "must be a duration above zero, got 'soon'"),
        (("--deadline", "1ms"), "must be in s, m, min, h or d, got '1ms'"),
        (("--deadline", "0h"), "must be a duration above zero, got '0h'"),
        (("--deadline", "-1h"), "must be a duration above zero, got '-1h'"),
        (("--devices", "1,two"), "must be whole numbers with commas, got '1,two'"),
        (("--devices", "4,0"), "must be at least 1, got 0"),
        (("--steps-today", "-3"), "must be positive and finite, got -3"),
    ],
)
def test_wrong_options_exit_with_two(saved: Path, words: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, ["plan", str(saved), *words])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-cost", "4"), "`max_cost` needs `price_per_hour`"),
        (("--upfront-cost-per-device", "4"), "got no `price_per_hour`"),
    ],
)
def test_options_that_need_another_exit_with_one(
    saved: Path, words: tuple[str, ...], message: str
) -> None:
    done = CliRunner().invoke(app, ["plan", str(saved), *words])
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert done.stderr.count("error:") == 1
