"""The front where joules are the objective. Oracle: brute force over every candidate (rung 2)."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch.plan import plan
from rightbatch.results import Candidate, FrontPoint, Plan
from tests.plan.made_up import critical, facts, memory, throughput
from tests.plan.test_energy import energy

TIE = 1.05  # what lies within 5 % is the same


def coordinates(way: Candidate | FrontPoint, objective: str) -> tuple[float, ...]:
    two = way.relative_time, way.relative_cost
    return two if objective != "energy" else (*two, way.relative_energy or 0.0)


def rivals(made: Plan) -> list[Candidate]:
    """Candidates that could be chosen under this objective."""
    known = made.objective != "energy"
    return [c for c in made.candidates if c.fits and (known or c.relative_energy is not None)]


@settings(max_examples=60, deadline=None)
@given(
    objective=st.sampled_from(["time", "cost", "energy"]),
    value=st.sampled_from([5.0, 160.0, 5000.0]),
    beta=st.sampled_from([1e-5, 1e-3, 0.1]),
    fixed=st.sampled_from([0.1, 1.0, 16.0, 300.0]),
    gbps=st.sampled_from([1.0, 100.0]),
    largest=st.sampled_from([16, 1024]),
    devices=st.sampled_from([(1,), (1, 4), (1, 2, 4, 8), (3, 5)]),
)
def test_no_usable_way_beats_a_point_of_the_front_in_all_by_more_than_a_tie(
    objective: str,
    value: float,
    beta: float,
    fixed: float,
    gbps: float,
    largest: int,
    devices: tuple[int, ...],
) -> None:
    made = plan(
        throughput(alpha=0.1, beta=beta),
        critical(value),
        facts(parameters=10**7),
        energy(fixed),
        memory(largest),
        objective=objective,
        devices=devices,
        allreduce_gbps=gbps,
    )
    ways = [coordinates(c, objective) for c in rivals(made)]
    for point in made.front:
        own = coordinates(point, objective)
        beaten = [w for w in ways if all(TIE * a < b for a, b in zip(w, own, strict=True))]
        assert not beaten, (point, beaten)
    for objective_taken, axis in (("time", 0), ("cost", 1), ("energy", 2))[: len(ways[0])]:
        (taken,) = (p for p in made.front if objective_taken in p.taken_for)
        # A tie on its number of devices, and a tie between those.
        least = min(way[axis] for way in ways)
        assert coordinates(taken, objective)[axis] <= TIE**2 * least * (1 + 1e-9)


def test_the_fastest_and_the_cheapest_are_on_the_front_of_energy() -> None:
    """Seconds hardly grow with the batch, joules do: the thriftiest size is the slowest."""
    results = (throughput(alpha=1.0, beta=1e-5), critical(160.0), facts(), energy(1.0))
    fast = plan(*results, devices=[1, 4])
    made = plan(*results, devices=[1, 4], objective="energy")
    for name in ("time", "cost"):
        (here,) = (p for p in made.front if name in p.taken_for)
        (there,) = (p for p in fast.front if name in p.taken_for)
        assert (here.devices, here.batch_size) == (there.devices, there.batch_size)
    assert made.front[-1].batch_size < 64 < made.front[0].batch_size
    (thrifty,) = (p for p in made.front if "energy" in p.taken_for)
    assert (made.devices, made.batch_size) == (thrifty.devices, thrifty.batch_size) == (1, 16)
    assert "For energy: 1 device with batch size 16" in " ".join(made.reasons)


def test_of_equal_joules_the_fastest_is_taken() -> None:
    """Batch 8 draws 189 J for each minimal step and 16 draws 187: a tie, in half the time."""
    results = (throughput(alpha=1.0, beta=1e-5), critical(160.0), facts(), energy(1.0))
    made = plan(*results, objective="energy")
    joules = {c.batch_size: c.relative_energy for c in made.candidates}
    assert joules[8] == pytest.approx(189 / 187)
    assert made.batch_size == 16
    assert made.low == 8


LIMITED: dict[str, Any] = {"steps_today": 10_000, "objective": "energy"}


def test_a_deadline_takes_the_least_energy_of_what_keeps_it() -> None:
    results = (throughput(alpha=1.0, beta=1e-5), critical(160.0), facts(), energy(1.0))
    free = plan(*results, **LIMITED)
    deadline = 0.5 * (free.front[-1].seconds or 0.0)
    made = plan(*results, **LIMITED, deadline_seconds=deadline)
    # 16 needs 10,000 steps of a second, so size b needs 10,000 (1 + 160/b) / 11.
    seconds = {b: 1e4 / 11 * (1 + 160 / b) for b in (32, 64)}
    assert seconds[64] < deadline < seconds[32]
    assert made.batch_size == 64
    (reason,) = (r for r in made.reasons if r.startswith("With a deadline"))
    assert "With a deadline of 1 h 23 min: 1 device with batch size 64" in reason
    assert "takes 1 device with batch size 16" in reason


def test_over_every_limit_the_nearest_is_not_called_the_thriftiest() -> None:
    results = (throughput(alpha=1.0, beta=1e-5), critical(160.0), facts(), energy(1.0))
    made = plan(*results, **LIMITED, deadline_seconds=1.0)
    assert made.batch_size == 1024
    words = " ".join(made.reasons)
    assert "1 device with batch size 1,024 comes nearest" in words
    assert "a step: the least time" in words


def test_a_count_that_others_beat_is_named_for_energy_too() -> None:
    slow = plan(
        throughput(), critical(5.0), facts(parameters=10**8), energy(),
        objective="energy", devices=[1, 2], allreduce_gbps=1.0,
    )  # fmt: skip
    assert {p.devices for p in slow.front} == {1}
    assert any(
        r == "Not on the front: 2 devices. What takes the least time or energy there, others beat "
        "in time, cost and energy."
        for r in slow.reasons
    )
