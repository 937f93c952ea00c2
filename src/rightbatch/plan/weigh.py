"""What each way to train takes in every draw of what is not known exactly."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.errors import CannotPlan
from rightbatch.plan.candidates import Way, draw_critical, draw_times, list_ways, step_seconds
from rightbatch.plan.inputs import Inputs
from rightbatch.plan.options import PlanOptions
from rightbatch.plan.step_model import allreduce_seconds
from rightbatch.results import Candidate, ThroughputProfile

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

    @property
    def devices(self) -> Floats:
        """Devices of each way, shape [ways]."""
        return np.array([way.devices for way in self.ways], dtype=float)

    def where(self, devices: int) -> NDArray[np.bool_]:
        """Which ways fit and use so many devices, shape [ways]."""
        return self.fits & (self.devices == devices)


def weigh(inputs: Inputs, options: PlanOptions) -> Weighed:
    """Draw the times of every way to train.

    Raises:
        CannotPlan: If nothing fits, or the all-reduce cannot be reckoned.
    """
    facts = inputs.task
    ways: list[Way] = []
    left_out: list[int] = []
    for devices in options.devices:
        listed = list_ways(
            inputs.throughput,
            inputs.memory,
            devices=devices,
            examples=facts.examples if facts else None,
            current_batch_size=facts.batch_size if facts else None,
            communication_seconds=_communication_seconds(inputs, options, devices),
        )
        ways += listed
        if not any(way.fits for way in listed):
            left_out.append(devices)
    fits = np.array([way.fits for way in ways], dtype=bool)
    if not fits.any():
        raise CannotPlan(_why_nothing_fits(inputs, options.devices[0]))
    generator = np.random.default_rng(_SEED)
    critical = draw_critical(inputs.critical, _DRAWS, generator)
    times = draw_times(tuple(ways), inputs.throughput, critical, generator)
    return Weighed(tuple(ways), fits, times, critical, tuple(left_out))


def _communication_seconds(inputs: Inputs, options: PlanOptions, devices: int) -> float:
    if options.allreduce_gbps is None or devices == 1:
        return 0.0
    if inputs.task is None:
        raise CannotPlan(
            f"`allreduce_gbps` needs the number of parameters, got {options.allreduce_gbps:g} and "
            "no TaskFacts. Pass task.facts(), or whole Findings."
        )
    return allreduce_seconds(inputs.task.parameters, devices, options.allreduce_gbps)


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


def choose_size(weighed: Weighed, devices: int) -> tuple[int, list[int]]:
    """Choose among the sizes for so many devices, which must have one that fits.

    Returns:
        The index of the smallest, roundest way within 5 % of the fastest, and the round sizes
        that cannot be told from it.
    """
    ways, usable = weighed.ways, weighed.where(devices)
    regret = _regret(weighed, usable).mean(axis=0)
    expected = np.where(usable, regret, np.inf)
    ties = [i for i in range(len(ways)) if expected[i] <= (1 + TIE) * expected.min()]
    # Powers of two are the round sizes here; one pass comes before accumulation.
    chosen = min(
        ties,
        key=lambda i: (
            ways[i].accumulation_steps > 1,
            not _is_round(ways[i]),
            ways[i].batch_size,
        ),
    )
    return chosen, [ways[i].batch_size for i in ties if i == chosen or _is_round(ways[i])]


def near_best(weighed: Weighed, chosen: int) -> tuple[int, int]:
    """Smallest and largest size within 5 % of the best, on as many devices as are chosen.

    In at least half of the draws.
    """
    usable = weighed.where(weighed.ways[chosen].devices)
    share = (_regret(weighed, usable) <= 1 + TIE).mean(axis=0)
    near = [
        way.batch_size
        for i, way in enumerate(weighed.ways)
        if usable[i] and (share[i] >= 0.5 or i == chosen)
    ]
    return min(near), max(near)


def _regret(weighed: Weighed, usable: NDArray[np.bool_]) -> Floats:
    """Times over the best usable way of the same draw, shape [draws, ways]."""
    best = np.where(usable, weighed.times, np.inf).min(axis=1)
    return weighed.times / best[:, None]


def _is_round(way: Way) -> bool:
    return way.batch_size.bit_count() == 1


def list_candidates(weighed: Weighed, throughput: ThroughputProfile) -> tuple[Candidate, ...]:
    """List every way with its numbers at the median critical batch size."""
    ways = weighed.ways
    seconds = step_seconds(ways, throughput)
    critical = float(np.median(weighed.critical))
    steps = np.array([1 + critical / way.batch_size for way in ways])
    time = steps * seconds / (steps * seconds)[weighed.fits].min()
    cost = steps * seconds * weighed.devices
    cost = cost / cost[weighed.fits].min()
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
            communication_seconds=way.communication_seconds,
            assumed=way.devices > 1,
        )
        for i, way in enumerate(ways)
    )
