"""What ranks pay for training together: averaging gradients alone, and steps with it and without.

Every rank takes part in the same rounds in the same order, and all agree on the slowest's times.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rightbatch._comm import Comm, default_comm, gradients_apart, is_sharded
from rightbatch._time import Clock, Deadline, Progress, no_progress, synchronize, wall_clock
from rightbatch.errors import TaskError
from rightbatch.hardware.step_time import estimate_seconds
from rightbatch.hardware.workload import batches_in_process, hold_still
from rightbatch.results import Communication, Status
from rightbatch.task import Task

_WARM_UP_ROUNDS = 2  # the first step of a wrapped model also arranges what is sent together
_FEWEST_ROUNDS = 3  # that count, however slow they are
_BUCKET_BYTES = 25 * 2**20  # that torch's data-parallel training sends together
_DECADE = 10.0
_BITS_PER_BYTE = 8


def measure_communication(
    task: Task,
    *,
    comm: Comm | None = None,
    rounds: int = 20,
    time_budget_seconds: float | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    clock: Clock = wall_clock,
) -> Communication | None:
    """Measure what averaging the gradients over all ranks takes, alone and beside computing.

        round 1    all wait | average | all wait | step | all wait | step without averaging
        round 2    all wait | step without averaging | all wait | average | all wait | step
        ...

    Tensors of the gradients' size and type are averaged while nothing else is done. Where the
    model is wrapped in ``DistributedDataParallel``, steps with and without averaging are timed
    too, at this rank's share of today's batch: their difference is what computing does not hide.
    Of every round the slowest rank counts, so that all ranks return the same.

    Trap: ranks that share one machine's processors or memory are slower and nearer to each other
    than ranks that have a machine each.

    Args:
        task: What is trained, on every rank; left as it was. Learning rates are turned down
            meanwhile.
        comm: The ranks; by default the process group that is initialised.
        rounds: Samples of each time, at most.
        time_budget_seconds: Begin no round that would not end by then, by the first rank's
            clock; three and two of warm-up are always made. ``None``: no limit.
        seed: Of the order and the resampling; the same on all ranks.
        progress: Told how many of the rounds are done.
        clock: Monotonic seconds.

    Returns:
        The times, equal on all ranks; ``None`` where there is no other rank. The status is
        ``DISAGREE`` where the interval of the averaging spans more than a decade, and
        ``OUT_OF_TIME`` where the budget did not pay for more than the fewest rounds.

    Raises:
        ValueError: If there are no rounds, or no time.
        TaskError: If the model is sharded, or the task cannot be measured.

    Example:
        >>> from rightbatch.testing import QuadraticTask
        >>> measure_communication(QuadraticTask().task) is None
        True
    """
    if rounds < 1:
        raise ValueError(
            f"`rounds` must be at least 1, got {rounds!r}. Each gives one sample of every time."
        )
    if time_budget_seconds is not None and not time_budget_seconds > 0:
        raise ValueError(
            f"`time_budget_seconds` must be positive, got {time_budget_seconds!r}. "
            "Leave it out for no limit."
        )
    deadline = Deadline(math.inf if time_budget_seconds is None else time_budget_seconds, clock)
    comm = comm or default_comm(task.device)
    if comm.world_size == 1:
        return None
    if any(is_sharded(parameter) for parameter in task.model.parameters()):
        raise TaskError(
            "communication is timed for models that every rank holds whole, got a sharded one. Its "
            "exchanges lie within the step: wrap the model in DistributedDataParallel to time them."
        )
    task.check()
    with task.preserved():
        torch.manual_seed(seed)
        hold_still(task.optimizer)
        buckets = gradient_buckets(task.parameters)
        actions = _actions(task, comm, buckets, seed)
        samples = _sample(actions, task.device, comm, rounds, seed, progress, deadline)
    cut = len(samples["average"]) < rounds and len(samples["average"]) == _FEWEST_ROUNDS
    gradient_bytes = sum(bucket.nbytes for bucket in buckets)
    rng = np.random.default_rng(seed)
    return _summarize(samples, comm.world_size, gradient_bytes, rng, cut=cut)


def gradient_buckets(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Make tensors as large as the gradients, cut as data-parallel training sends them.

    Example:
        >>> doubles = [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)]
        >>> [(len(b), b.nbytes) for b in gradient_buckets([*doubles, torch.zeros(5)])]
        [(10, 80), (5, 20)]
    """
    counts: dict[tuple[torch.dtype, torch.device], int] = {}
    for parameter in parameters:
        kind = (parameter.dtype, parameter.device)
        counts[kind] = counts.get(kind, 0) + parameter.numel()
    buckets: list[Tensor] = []
    for (dtype, device), count in counts.items():
        flat = torch.zeros(count, dtype=dtype, device=device)
        buckets += flat.split(max(1, _BUCKET_BYTES // flat.element_size()))
    return buckets


def _actions(
    task: Task, comm: Comm, buckets: list[Tensor], seed: int
) -> dict[str, Callable[[], None]]:
    """List what is timed, each once a round."""

    def average() -> None:
        for bucket in buckets:
            comm.average_(bucket)

    with gradients_apart(task.model) as averages:
        pass
    if not averages:
        return {"average": average}
    size = max(1, task.default_batch_size // comm.world_size)
    batch = next(batches_in_process(task, size, seed=seed))

    def step() -> None:
        task.step(batch)

    def step_apart() -> None:
        with gradients_apart(task.model):
            task.step(batch)

    return {"average": average, "step": step, "step_apart": step_apart}


def _sample(
    actions: dict[str, Callable[[], None]],
    device: torch.device,
    comm: Comm,
    rounds: int,
    seed: int,
    progress: Progress,
    deadline: Deadline,
) -> dict[str, list[float]]:
    """Time every action once a round, in an order that all ranks draw alike, till time is up."""
    names, order, clock = list(actions), np.random.default_rng(seed), deadline.clock
    taken: dict[str, list[float]] = {name: [] for name in names}
    round_seconds = 0.0
    for done in range(_WARM_UP_ROUNDS + rounds):
        begun = clock()
        if done >= _WARM_UP_ROUNDS + _FEWEST_ROUNDS and _first_says(
            deadline.remaining_seconds() < round_seconds, comm
        ):
            break
        for index in order.permutation(len(names)):
            synchronize(device)
            comm.sum(torch.zeros(1))  # nobody's time contains waiting for one who is late
            start = clock()
            actions[names[index]]()
            synchronize(device)
            taken[names[index]].append(clock() - start)
        round_seconds = clock() - begun
        progress((done + 1) / (_WARM_UP_ROUNDS + rounds), "communication: averaging gradients")
    return {name: _slowest(times[_WARM_UP_ROUNDS:], comm) for name, times in taken.items()}


def _first_says(what: bool, comm: Comm) -> bool:
    """Return on every rank what the first one says: clocks differ, and all must go on or none."""
    said = float(what) if comm.rank == 0 else 0.0
    return bool(comm.sum(torch.tensor([said])).item())


def _slowest(seconds: list[float], comm: Comm) -> list[float]:
    """Return the longest time of all ranks, for every round."""
    table = torch.zeros(comm.world_size, len(seconds), dtype=torch.float64)
    table[comm.rank] = torch.tensor(seconds, dtype=torch.float64)
    return comm.sum(table).max(dim=0).values.tolist()


def _summarize(
    samples: dict[str, list[float]],
    world_size: int,
    gradient_bytes: int,
    rng: np.random.Generator,
    *,
    cut: bool,
) -> Communication:
    seconds, low, high = estimate_seconds(samples["average"], rng)
    step, step_apart = (
        estimate_seconds(samples[name], rng)[0] if name in samples else None
        for name in ("step", "step_apart")
    )
    status = Status.OUT_OF_TIME if cut else Status.OK
    if high > _DECADE * low:
        status = Status.DISAGREE
    sent_bits = 2 * (world_size - 1) / world_size * gradient_bytes * _BITS_PER_BYTE
    return Communication(
        world_size=world_size,
        gradient_bytes=gradient_bytes,
        allreduce_seconds=seconds,
        low=low,
        high=high,
        no_sync_step_seconds=step_apart,
        sync_step_seconds=step,
        gbps=sent_bits / max(seconds, 1e-12) / 1e9,
        status=status,
    )
