"""Oracle: joules on a line, whose best batch is sqrt(e0 / e1 B_c) (rung 1)."""

from dataclasses import replace

import numpy as np
import pytest

from rightbatch.errors import CannotPlan
from rightbatch.hardware.step_curve import interpolate
from rightbatch.plan import plan
from rightbatch.plan.energy import draw_energies, joules_per_step
from rightbatch.results import EnergyPoint, EnergyProfile, Plan, Status
from tests.plan.made_up import SIZES, critical, facts, memory, throughput


def energy(
    fixed: float = 16.0, each: float = 1.0, sizes: tuple[int, ...] = SIZES, spread: float = 0.0
) -> EnergyProfile:
    points = tuple(
        EnergyPoint(batch_size=b, joules_per_step=j, low=j * (1 - spread), high=j * (1 + spread))
        for b in sizes
        for j in [fixed + each * b]
    )
    return EnergyProfile(
        points=points,
        joules=fixed,
        joules_per_example=each,
        window_seconds=5.0,
        price_per_kwh=None,
        status=Status.OK,
    )


def least(made: Plan) -> int:
    """The batch size of the least energy, whatever is recommended."""
    known = [c for c in made.candidates if c.relative_energy is not None]
    return min(known, key=lambda c: c.relative_energy or 0.0).batch_size


@pytest.mark.parametrize(("fixed", "scale"), [(16.0, 256.0), (4.0, 64.0), (64.0, 1024.0)])
def test_the_least_energy_is_at_the_closed_form(fixed: float, scale: float) -> None:
    made = plan(throughput(), critical(scale), facts(), energy(fixed), objective="energy")
    best = round((fixed / 1.0 * scale) ** 0.5)
    assert least(made) == best
    assert best / 4 <= made.batch_size <= best
    for c in made.candidates:
        joules = c.accumulation_steps * (fixed + c.micro_batch_size) * (1 + scale / c.batch_size)
        least_joules = (fixed + best) * (1 + scale / best)
        assert c.relative_energy == pytest.approx(joules / least_joules, rel=1e-9)


def test_the_objective_decides_between_time_and_energy() -> None:
    """Seconds hardly grow with the batch, joules do: the fastest size is not the thriftiest."""
    results = (throughput(alpha=1.0, beta=1e-5), critical(160.0), facts(), energy(1.0))
    fast, thrifty = plan(*results), plan(*results, objective="energy")
    assert fast.batch_size > 4 * thrifty.batch_size
    assert least(thrifty) == 16  # sqrt(160) = 12.6, and 16 is nearer than 8 on both sides
    assert thrifty.objective == "energy"
    (quick, least_joules) = thrifty.front
    assert (quick.taken_for, least_joules.taken_for) == (("time", "cost"), ("energy",))
    assert "draws 1 J plus 1 J per example" in " ".join(thrifty.reasons)
    assert "the least energy" in " ".join(thrifty.reasons)
    assert thrifty.low <= thrifty.batch_size <= (thrifty.high or 0)


def test_energy_beside_the_results_changes_no_other_plan() -> None:
    results = (throughput(spread=0.1), critical(160.0, 100.0, 250.0), facts())
    alone, beside = plan(*results), plan(*results, energy())

    def without(made: Plan) -> Plan:
        candidates = tuple(replace(c, relative_energy=None) for c in made.candidates)
        front = tuple(replace(p, relative_energy=None) for p in made.front)
        return replace(made, candidates=candidates, front=front)

    assert without(beside) == alone
    assert all(p.relative_energy is not None for p in beside.front)


def test_joules_are_never_extrapolated() -> None:
    made = plan(throughput(), critical(1e4), facts(), energy(sizes=(8, 16, 32)), objective="energy")
    assert 8 <= made.micro_batch_size <= 32
    assert {c.micro_batch_size in range(8, 33) for c in made.candidates} == {True, False}
    for c in made.candidates:
        assert (c.relative_energy is None) == (not 8 <= c.micro_batch_size <= 32)


def test_several_devices_draw_together_and_the_front_knows() -> None:
    made = plan(
        throughput(), critical(256.0), facts(), energy(), objective="energy", devices=[1, 4]
    )
    assert made.devices == 1  # four draw four times the fixed part
    (fast,) = (p for p in made.front if "time" in p.taken_for)
    (thrifty,) = (p for p in made.front if "energy" in p.taken_for)
    assert (fast.devices, thrifty.devices) == (4, 1)
    assert fast.relative_energy is not None
    assert fast.relative_energy > (thrifty.relative_energy or 0.0)
    assert any(reason.startswith("For energy: 1 device") for reason in made.reasons)


def test_what_does_not_fit_is_not_the_thriftiest() -> None:
    made = plan(throughput(), critical(1e4), facts(), energy(), memory(16), objective="energy")
    assert made.micro_batch_size <= 16
    assert all(c.relative_energy >= 1 for c in made.candidates if c.fits)  # type: ignore[operator]


@pytest.mark.parametrize("profile", [(), (replace(energy(), points=()),)])
def test_without_joules_energy_is_refused_by_name(profile: tuple[EnergyProfile, ...]) -> None:
    with pytest.raises(CannotPlan, match=r"'energy' needs measured joules, and none were"):
        plan(throughput(), critical(), facts(), *profile, objective="energy")


def test_joules_at_other_sizes_are_refused_by_name() -> None:
    with pytest.raises(
        CannotPlan, match=r"got joules from 2048 to 4096 and seconds from 1 to 1024"
    ):
        plan(throughput(), critical(), energy(sizes=(2048, 4096)), objective="energy")


def test_between_the_measured_sizes_joules_are_read_as_seconds_are() -> None:
    bent = replace(
        energy(),
        points=tuple(
            EnergyPoint(batch_size=b, joules_per_step=j, low=j, high=j)
            for b, j in ((8, 10.0), (16, 11.0), (32, 20.0), (64, 40.0))
        ),
    )
    sizes = np.array([8.0, 16.0, 32.0, 64.0])
    expected = float(interpolate(sizes, np.array([10.0, 11.0, 20.0, 40.0]), [24])[0])
    assert joules_per_step(plan_ways((24,)), bent).tolist() == [expected]
    drawn = draw_energies(plan_ways((24,)), bent, np.zeros(2), np.random.default_rng(0))
    assert drawn == pytest.approx(np.full((2, 1), expected), rel=1e-12)
    assert expected < 15.4  # below the chord, which a straight line would say: 15.5


def test_a_busy_machine_only_ever_adds_joules() -> None:
    ways = plan_ways((8,))
    high = replace(energy().points[3], joules_per_step=1e3)
    disturbed = replace(energy(), points=(high, *energy().points[4:]))
    assert joules_per_step(ways, disturbed).tolist() == [32.0]  # as at 16


def test_the_draws_spread_as_the_intervals_say() -> None:
    ways = plan_ways((8,))
    scale = np.full(4000, 8.0)
    drawn = draw_energies(ways, energy(spread=0.2), scale, np.random.default_rng(0))
    low, middle, high = np.quantile(drawn[:, 0], [0.025, 0.5, 0.975])
    assert middle == pytest.approx(2 * 24.0, rel=0.02)
    assert high / low == pytest.approx(1.2 / 0.8, rel=0.05)


def plan_ways(sizes: tuple[int, ...]) -> tuple:  # type: ignore[type-arg]
    from rightbatch.plan.candidates import Way

    return tuple(Way(size, size, 1, True) for size in sizes)
