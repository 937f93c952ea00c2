"""``rightbatch throughput``: seconds of a step, of communication under torchrun, and joules."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace

from rightbatch._comm import Comm, gradients_apart
from rightbatch._format import format_seconds
from rightbatch._time import Deadline, Progress
from rightbatch.cli.session import Session, words
from rightbatch.errors import ResultsError
from rightbatch.findings import Findings
from rightbatch.hardware import (
    energy_counters,
    measure_communication,
    measure_energy,
    measure_throughput,
)
from rightbatch.hardware.cache import MeasurementCache
from rightbatch.hardware.energy import energy_seconds
from rightbatch.results import ThroughputPoint, ThroughputProfile
from rightbatch.task import Task

# Of the time budget; throughput has the rest.
COMMUNICATION_SHARE = 0.3  # where there are several ranks
ENERGY_SHARE = 0.6  # where joules are asked for and can be measured
_FEWEST_SIZES = 2  # of joules; they make a line
_ON_A_DEVICE = frozenset({"memory", "throughput", "communication", "energy"})
_WRAPPERS = frozenset({"DistributedDataParallel", "OptimizedModule"})  # names of unnamed tasks


def measure_steps(
    session: Session,
    task: Task,
    comm: Comm,
    cache: MeasurementCache,
    *,
    time_budget_seconds: float,
    seed: int,
    energy: bool,
    progress: Progress,
) -> None:
    """Measure on every rank that was launched, each for itself but for the communication.

    Ranks take different numbers of steps, so none may wait for another's gradients meanwhile.
    All parts share the time budget, and what one leaves the next one gets.
    """
    deadline = Deadline(time_budget_seconds)
    communication = measure_communication(
        task,
        comm=comm,
        time_budget_seconds=COMMUNICATION_SHARE * time_budget_seconds,
        seed=seed,
        progress=progress,
    )
    if communication is not None:
        session.add("communication", communication=communication)
    energy = energy and comm.rank == 0 and _has_counters(task, comm)
    kept = ENERGY_SHARE * time_budget_seconds if energy else 0.0
    share = time_budget_seconds - kept
    if comm.world_size > 1:
        share = (1 - COMMUNICATION_SHARE) * time_budget_seconds
    # Ranks beside each other share a machine: such times are no others'.
    flags = {"seed": seed} | ({"ranks": comm.world_size} if comm.world_size > 1 else {})
    # What was measured in more time does as well.
    profile = cache.get("throughput", task, **flags, seconds=time_budget_seconds)
    if profile is None and share < time_budget_seconds:
        profile = cache.get("throughput", task, **flags, seconds=share)
    if profile is None:
        seconds = max(share, deadline.remaining_seconds() - kept)
        with gradients_apart(task.model):
            profile = measure_throughput(
                task, time_budget_seconds=seconds, seed=seed, progress=progress
            )
        if comm.rank == 0:
            cache.put("throughput", profile, task, **flags, seconds=share)
    session.add("throughput", throughput=profile)
    if energy:
        _add_energy(session, task, profile, deadline, seed, progress)


def _has_counters(task: Task, comm: Comm) -> bool:
    """Return whether joules can be measured here; say in one line why they cannot."""
    if comm.world_size > 1:
        words.print("Energy was not measured: other ranks draw too. Run it without torchrun.")
        return False
    reason = energy_counters(task.device)
    if reason is not None:
        words.print(reason, markup=False, soft_wrap=True)
    return reason is None


def _add_energy(
    session: Session,
    task: Task,
    profile: ThroughputProfile,
    deadline: Deadline,
    seed: int,
    progress: Progress,
) -> None:
    """Measure joules at some of the sizes that were timed, or say in one line why not."""
    left = max(0.0, deadline.remaining_seconds())
    sizes = affordable_sizes(profile.points, left)
    if sizes:
        found = measure_energy(task, sizes, seed=seed, progress=progress)
        if found is not None:
            session.add("energy", energy=found)
            return
        reason = "the counters of the device do not move."
    else:
        needed = _energy_seconds(profile.points, _FEWEST_SIZES)
        enough = math.ceil(max(needed / ENERGY_SHARE, deadline.elapsed_seconds() + needed))
        reason = (
            f"its windows need {format_seconds(needed)} at least, and {format_seconds(left)} of "
            f"the time budget are left. Use --time-budget {enough}."
        )
    words.print(f"Energy was not measured: {reason}", markup=False, soft_wrap=True)


def affordable_sizes(points: Sequence[ThroughputPoint], seconds: float) -> list[int]:
    """Pick as many of the timed sizes as joules can be measured at in so many seconds.

    Example:
        Counters need windows of 5 s, so that of quick steps a size takes 16 s:

        >>> points = [
        ...     ThroughputPoint(
        ...         batch_size=b, step_seconds=0.01, low=0.01, high=0.01, load_seconds=0.0,
        ...         total_seconds=0.01,
        ...     )
        ...     for b in (4, 8, 16, 32, 64)
        ... ]
        >>> [affordable_sizes(points, seconds) for seconds in (30, 36, 60)]
        [[], [4, 64], [4, 16, 64]]
    """
    for most in range(len(points), min(len(points), _FEWEST_SIZES) - 1, -1):
        if _energy_seconds(points, most) <= seconds:
            return spread_sizes([point.batch_size for point in points], most)
    return []


def _energy_seconds(points: Sequence[ThroughputPoint], most: int) -> float:
    """Predict how long joules at so many of the sizes take."""
    steps = {point.batch_size: point.step_seconds for point in points}
    return sum(energy_seconds(steps[size]) for size in spread_sizes(list(steps), most))


def joined(findings: Findings, more: Findings) -> Findings:
    """Fill in what was not measured from other findings of the same task.

    Seconds, bytes and joules are of one kind of device; what was learnt from gradients and losses
    is of any. Where only the other findings have some of the former, the result is of their
    machine. A model of the same size with another name is taken, with a warning.

    Raises:
        ResultsError: If they are of another model, optimizer or kind of device.
    """
    taken = {
        part.name: getattr(more, part.name)
        for part in fields(findings)
        if getattr(findings, part.name) is None and getattr(more, part.name) is not None
    }
    _check_one_task(findings, more, set(taken))
    on_device = _ON_A_DEVICE & set(taken)
    if on_device and not _of_a_device(findings):
        findings = replace(findings, environment=more.environment)
    names = findings.task.name, more.task.name
    if taken and names[0] != names[1] and not _WRAPPERS.intersection(names):
        warning = (
            f"{', '.join(sorted(taken))} come from results of {names[1]!r}, the rest is of "
            f"{names[0]!r}: they were joined because both models have as many parameters."
        ).replace("_", " ")
        task = findings.task
        findings = replace(findings, task=replace(task, warnings=(*task.warnings, warning)))
    return replace(findings, **taken)


def _check_one_task(findings: Findings, more: Findings, taken: set[str]) -> None:
    """Raise where what would be taken is of something else."""
    one, other = findings.task, more.task
    if one.parameters != other.parameters:
        raise ResultsError(
            f"results files must be of one model to be joined, got {one.parameters} and "
            f"{other.parameters} parameters. Measure the same task for both."
        )
    # Gradients take as long to average whatever is done with them.
    if one.optimizer != other.optimizer and taken - {"communication"}:
        raise ResultsError(
            f"results files must be of one optimizer to be joined, got {one.optimizer} and "
            f"{other.optimizer}: steps, memory and learning rates differ. Measure the same task "
            "for both."
        )
    devices = _device(findings), _device(more)
    if None not in devices and devices[0] != devices[1]:
        known, new = _of_a_device(findings), _ON_A_DEVICE & taken
        if known and new:
            raise ResultsError(
                "results files must be of one kind of device to be joined, got "
                f"{', '.join(sorted(known))} of {devices[0]} and {', '.join(sorted(new))} of "
                f"{devices[1]}: neither says anything of the other. Measure both on one."
            )


def _of_a_device(findings: Findings) -> set[str]:
    return {name for name in _ON_A_DEVICE if getattr(findings, name) is not None}


def _device(findings: Findings) -> str | None:
    """Name the kind of device, whichever of its kind it was; ``None`` where it is not known."""
    described = findings.environment
    kind = described.get("device", "").split(":")[0]
    return described.get("device_name") or kind or None


def spread_sizes(sizes: list[int], most: int) -> list[int]:
    """Pick so many sizes, both ends and others evenly between; never fewer than two.

    Example:
        >>> spread_sizes([4, 8, 16, 32, 64], 3), spread_sizes([4, 8, 16, 32, 64], 0)
        ([4, 16, 64], [4, 64])
    """
    count = min(len(sizes), max(_FEWEST_SIZES, most))
    if count == 1:
        return sizes[:1]
    return [sizes[round(i * (len(sizes) - 1) / (count - 1))] for i in range(count)]
