"""``rightbatch throughput``: seconds of a step, of communication under torchrun, and joules."""

from dataclasses import fields, replace

from rightbatch._comm import Comm, gradients_apart
from rightbatch._time import Progress
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
from rightbatch.hardware.energy import SHORTEST_WINDOW_SECONDS, WINDOWS
from rightbatch.results import ThroughputProfile
from rightbatch.task import Task

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
    """
    communication = measure_communication(task, comm=comm, seed=seed, progress=progress)
    if communication is not None:
        session.add("communication", communication=communication)
    # Ranks beside each other share a machine: such times are no others'.
    flags = {"seed": seed, "seconds": time_budget_seconds}
    flags |= {"ranks": comm.world_size} if comm.world_size > 1 else {}
    profile = cache.get("throughput", task, **flags)
    if profile is None:
        with gradients_apart(task.model):
            profile = measure_throughput(
                task, time_budget_seconds=time_budget_seconds, seed=seed, progress=progress
            )
        if comm.rank == 0:
            cache.put("throughput", profile, task, **flags)
    session.add("throughput", throughput=profile)
    if energy and comm.rank == 0:
        _add_energy(session, task, comm, profile, time_budget_seconds, seed, progress)


def _add_energy(
    session: Session,
    task: Task,
    comm: Comm,
    profile: ThroughputProfile,
    time_budget_seconds: float,
    seed: int,
    progress: Progress,
) -> None:
    """Measure joules at some of the sizes that were timed, or say in one line why not."""
    if comm.world_size > 1:
        words.print("Energy was not measured: other ranks draw too. Run it without torchrun.")
        return
    reason = energy_counters(task.device)
    if reason is None:
        sizes = spread_sizes(
            [point.batch_size for point in profile.points],
            int(time_budget_seconds / (WINDOWS * SHORTEST_WINDOW_SECONDS)),
        )
        found = measure_energy(task, sizes, seed=seed, progress=progress)
        if found is not None:
            session.add("energy", energy=found)
            return
        reason = "Energy was not measured: the counters of the device do not move."
    words.print(reason, markup=False, soft_wrap=True)


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
