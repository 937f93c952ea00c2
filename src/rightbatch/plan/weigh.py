"""What each way to train takes in every draw of what is not known exactly."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rightbatch.errors import CannotPlan
from rightbatch.plan.candidates import Way, draw_critical, draw_times, list_ways, step_seconds
from rightbatch.plan.energy import check_energy, draw_energies, joules_per_step
from rightbatch.plan.inputs import Inputs
from rightbatch.plan.options import PlanOptions
from rightbatch.plan.step_model import (
    FREE,
    Exchange,
    allreduce_seconds,
    is_trusted,
    measured_exchange,
)
from rightbatch.results import Candidate

Floats = NDArray[np.float64]

TIE = 0.05  # what lies within 5 % of the best is the same to us
_DRAWS = 2000
_SEED = 0  # a plan is a pure function of results: the same every time


@dataclass(frozen=True, slots=True)
class Weighed:
    """The ways to train, and what each takes in every draw."""

    ways: tuple[Way, ...]
    fits: NDArray[np.bool_]  # [ways]
    times: Floats  # [draws, ways], seconds for each of the fewest possible steps
    critical: Floats  # [draws], B_c
    left_out: tuple[int, ...]  # device counts that no batch can be shared by
    energies: Floats | None = None  # [draws, ways], joules as times are seconds; inf: not known
    objective: str = "time"

    @property
    def devices(self) -> Floats:
        """Devices of each way, shape [ways]."""
        return np.array([way.devices for way in self.ways], dtype=float)

    def amounts(self, objective: str) -> Floats:
        """What an objective wants little of, shape [draws, ways]."""
        if objective == "energy" and self.energies is not None:
            return self.energies
        return self.times * self.devices if objective == "cost" else self.times

    def where(self, devices: int) -> NDArray[np.bool_]:
        """Which ways can be chosen on so many devices: they fit, and the amount is known."""
        known = np.isfinite(self.amounts(self.objective)).all(axis=0)
        return self.fits & known & (self.devices == devices)

    def keeping(self, devices: int, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Those on so many devices that are allowed; all of them where none is."""
        usable = self.where(devices)
        return usable & allowed if (usable & allowed).any() else usable


def weigh(inputs: Inputs, options: PlanOptions) -> Weighed:
    """Draw the times of every way to train.

    Raises:
        CannotPlan: If nothing fits, or joules or the all-reduce cannot be reckoned.
    """
    check_energy(options.objective, inputs.energy)
    facts = inputs.task
    ways: list[Way] = []
    for devices in options.devices:
        ways += list_ways(
            inputs.throughput,
            inputs.memory,
            devices=devices,
            examples=facts.examples if facts else None,
            current_batch_size=facts.batch_size if facts else None,
            exchange=_exchange(inputs, options, devices),
        )
    fits = np.array([way.fits for way in ways], dtype=bool)
    if not fits.any():
        raise CannotPlan(_why_nothing_fits(inputs, options.devices[0]))
    generator = np.random.default_rng(_SEED)
    critical = draw_critical(inputs.critical, _DRAWS, generator)
    times = draw_times(tuple(ways), inputs.throughput, critical, generator)
    energies = None
    if inputs.energy is not None and inputs.energy.points:
        energies = draw_energies(tuple(ways), inputs.energy, critical, generator)
    weighed = Weighed(tuple(ways), fits, times, critical, (), energies, options.objective)
    left_out = [d for d in options.devices if not weighed.where(d).any()]
    if len(left_out) == len(options.devices):  # something fits, so it is joules that lack
        raise CannotPlan(_why_no_joules(inputs))
    return replace(weighed, left_out=tuple(left_out))


def _exchange(inputs: Inputs, options: PlanOptions, devices: int) -> Exchange:
    measured = inputs.communication
    if devices == 1 or (options.allreduce_gbps is None and measured is None):
        return FREE
    if measured is not None and (options.allreduce_gbps is None or is_trusted(measured, devices)):
        return measured_exchange(measured, devices)
    if inputs.task is None:
        raise CannotPlan(
            f"`allreduce_gbps` needs the number of parameters, got {options.allreduce_gbps:g} and "
            "no TaskFacts. Pass task.facts(), or whole Findings."
        )
    seconds = allreduce_seconds(inputs.task.parameters, devices, options.allreduce_gbps)
    return Exchange(seconds, seconds, seconds)


def _why_nothing_fits(inputs: Inputs, devices: int) -> str:
    smallest = inputs.throughput.points[0].batch_size
    examples = inputs.task.examples if inputs.task else None
    if examples is not None and smallest * devices > examples:
        return (
            f"a batch must not exceed the data set, got {examples} examples for {devices} devices "
            f"of at least {smallest}. Use fewer devices, or time smaller sizes."
        )
    largest = inputs.memory.max_verified_batch_size if inputs.memory else 0
    return (
        f"a batch size must fit, but on a device at most {largest} examples do and the smallest "
        f"size that was timed is {smallest}. Use a smaller model, or a device with more memory."
    )


def _why_no_joules(inputs: Inputs) -> str:
    assert inputs.energy is not None
    joules, seconds = inputs.energy.points, inputs.throughput.points
    return (
        "`objective` 'energy' needs joules at sizes that were timed and fit, got joules from "
        f"{joules[0].batch_size} to {joules[-1].batch_size} and seconds from "
        f"{seconds[0].batch_size} to {seconds[-1].batch_size}. Measure joules at those sizes."
    )


def choose_size(
    weighed: Weighed, usable: NDArray[np.bool_], objective: str
) -> tuple[int, list[int]]:
    """Choose among the usable ways, of which there must be one, on one number of devices.

    Returns:
        The index of the smallest, roundest way within 5 % of the best, and the round sizes
        that cannot be told from it. Of those within 5 % of the least energy only the fastest
        count: seconds may halve where joules hardly change.
    """
    ways = weighed.ways
    near = near_least(weighed, usable, objective)
    if objective == "energy":
        near = near_least(weighed, near, "time")
    ties = [int(i) for i in np.flatnonzero(near)]
    # Powers of two are the round sizes here; one pass comes before accumulation.
    chosen = min(
        ties,
        key=lambda i: (
            ways[i].accumulation_steps > 1,
            not _is_round(ways[i]),
            ways[i].batch_size,
        ),
    )
    return chosen, sorted({ways[i].batch_size for i in ties if i == chosen or _is_round(ways[i])})


def near_least(weighed: Weighed, usable: NDArray[np.bool_], objective: str) -> NDArray[np.bool_]:
    """Usable ways that are within 5 % of the least, on average over the draws."""
    regret = _regret(weighed, usable, objective).mean(axis=0)
    expected = np.where(usable, regret, np.inf)
    return expected <= (1 + TIE) * expected.min()


def near_best(weighed: Weighed, chosen: int, allowed: NDArray[np.bool_]) -> tuple[int, int]:
    """Smallest and largest size within 5 % of the best, on as many devices as are chosen.

    In at least half of the draws, and among the allowed ways where there are any.
    """
    usable = weighed.keeping(weighed.ways[chosen].devices, allowed)
    share = (_regret(weighed, usable, weighed.objective) <= 1 + TIE).mean(axis=0)
    near = [
        way.batch_size
        for i, way in enumerate(weighed.ways)
        if usable[i] and (share[i] >= 0.5 or i == chosen)
    ]
    return min(near), max(near)


def _regret(weighed: Weighed, usable: NDArray[np.bool_], objective: str) -> Floats:
    """Amounts over those of the best usable way of the same draw, shape [draws, ways]."""
    amounts = weighed.amounts(objective)
    return amounts / np.where(usable, amounts, np.inf).min(axis=1)[:, None]


def _is_round(way: Way) -> bool:
    return way.batch_size.bit_count() == 1


def list_candidates(weighed: Weighed, inputs: Inputs) -> tuple[Candidate, ...]:
    """List every way with its numbers at the median critical batch size."""
    ways = weighed.ways
    seconds = step_seconds(ways, inputs.throughput)
    critical = float(np.median(weighed.critical))
    steps = np.array([1 + critical / way.batch_size for way in ways])
    time = steps * seconds / (steps * seconds)[weighed.fits].min()
    cost = steps * seconds * weighed.devices
    cost = cost / cost[weighed.fits].min()
    energy = _relative_energies(weighed, inputs, steps)
    return tuple(
        Candidate(
            batch_size=way.batch_size,
            micro_batch_size=way.micro_batch_size,
            accumulation_steps=way.accumulation_steps,
            step_seconds=float(seconds[i]),
            relative_steps=float(steps[i]),
            relative_time=float(time[i]),
            relative_cost=float(cost[i]),
            fits=way.fits,
            devices=way.devices,
            communication_seconds=way.exchange.seconds,
            assumed=way.devices > 1 and not is_trusted(inputs.communication, way.devices),
            relative_energy=energy[i],
        )
        for i, way in enumerate(ways)
    )


def _relative_energies(weighed: Weighed, inputs: Inputs, steps: Floats) -> list[float | None]:
    """Joules over the least that fits; ``None`` where they are not known."""
    if inputs.energy is None or not inputs.energy.points:
        return [None] * len(weighed.ways)
    joules = steps * joules_per_step(weighed.ways, inputs.energy)
    known = joules[np.isfinite(joules) & weighed.fits]
    return [float(j / known.min()) if known.size and np.isfinite(j) else None for j in joules]
