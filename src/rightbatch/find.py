"""The whole loop: every instrument in turn, then the plan. No arithmetic of its own."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, final

from rightbatch._environment import describe_environment
from rightbatch._time import Clock, Deadline, Progress, no_progress, wall_clock
from rightbatch.findings import Findings
from rightbatch.hardware import measure_memory, measure_throughput
from rightbatch.hardware.cache import MeasurementCache, free_memory
from rightbatch.lr import race, range_test
from rightbatch.noise import measure_noise, track_noise
from rightbatch.plan import check_energy, check_options, check_today, critical_batch_size, plan
from rightbatch.results import Plan, Status, ThroughputProfile
from rightbatch.scaling import batch_size_set_for, scale_hyperparameters
from rightbatch.task import Task
from rightbatch.task.preflight import mixes_examples

T = TypeVar("T")

# Shares of the time budget, in the order they are spent; what one part leaves, the next ones get.
SHARES = {
    "memory": 0.08,
    "throughput": 0.20,
    "noise": 0.06,
    "track": 0.34,
    "learning_rate": 0.10,
    "race": 0.22,
}
CACHED = ("memory", "throughput")  # the other parts depend on the weights
_CHEAP = 1.25  # a micro-batch costs at most this factor more per example than the cheapest
_APART_SECONDS = 313.0  # leave 25 for memory; in less, processes of their own take long to start
_ENDED_EARLY = (Status.OUT_OF_TIME, Status.LEAK)


def find(
    task: Task,
    *,
    objective: str = "time",
    devices: int | Sequence[int] = 1,
    price_per_hour: float | None = None,
    allreduce_gbps: float | None = None,
    deadline_seconds: float | None = None,
    max_cost: float | None = None,
    steps_today: float | None = None,
    upfront_costs: Mapping[str, float] | None = None,
    time_budget_seconds: float = 60.0,
    seed: int = 0,
    cache: MeasurementCache | None = None,
    on_part: Callable[[Findings], None] | None = None,
    progress: Progress = no_progress,
    clock: Clock = wall_clock,
) -> Findings:
    """Find the batch size and the learning rate to train a task with, on this device.

    Measures memory, throughput, gradient noise (at the present weights, and along a short run at
    today's settings), and the learning rate at the batch size that comes out; then plans.

    Trap: the short run covers the beginning of training. The noise, and with it the batch size
    that pays, grows as the loss falls: for a long run measure again from a checkpoint.

    Args:
        task: What is trained; left bit for bit as it was.
        objective: "time" or "cost".
        devices: Devices that will share a batch, or the counts to choose from.
        price_per_hour: Of one device.
        allreduce_gbps: Gigabits per second between devices; see `plan`, also for the four below.
        deadline_seconds: The longest that the whole run may take.
        max_cost: The most that the whole run may cost.
        steps_today: Optimizer steps of the whole run at today's batch size.
        upfront_costs: What is paid once, "per_device" and for "retuning".
        time_budget_seconds: For everything; from 313 on, sizes are tried in processes of their own.
        seed: Of every draw.
        cache: Where memory and throughput may be known from; the time goes to the other parts.
        on_part: Called with all findings so far after each part, so that an interrupted run
            loses nothing.
        progress: Called with (fraction done, what is being done).
        clock: Monotonic seconds.

    Returns:
        All results and the plan.

    Raises:
        TaskError: If the task cannot be measured.
        ValueError: If the time budget is not positive.
        CannotPlan: If an option is out of range, or no batch size fits.
    """
    options: dict[str, Any] = {
        "objective": objective,
        "devices": devices,
        "price_per_hour": price_per_hour,
        "allreduce_gbps": allreduce_gbps,
        "deadline_seconds": deadline_seconds,
        "max_cost": max_cost,
        "steps_today": steps_today,
        "upfront_costs": upfront_costs,
    }
    check_options(**options)
    check_energy(objective, None)  # which is not among what is measured here
    check_today(steps_today, task.batch_size)
    if not (math.isfinite(time_budget_seconds) and time_budget_seconds > 0):
        raise ValueError(
            f"`time_budget_seconds` must be positive and finite, got {time_budget_seconds}. "
            "A minute is enough for most tasks."
        )
    run = _Run(task, Deadline(time_budget_seconds, clock), seed, cache, on_part, progress)
    memory = run.part("memory", measure_memory, isolate=time_budget_seconds >= _APART_SECONDS)
    if memory.status is Status.NOTHING_FITS:
        return run.findings
    # A search that ended early bounds nothing: then throughput watches the memory itself.
    cap = None if memory.status in _ENDED_EARLY else memory.max_verified_batch_size
    throughput = run.part("throughput", measure_throughput, max_batch_size=cap)
    micro = noise_micro_batch_size(task, throughput)
    run.part("noise", measure_noise, micro_batch_size=micro)
    run.part("track", track_noise, micro_batch_size=micro, trust_loss=True)
    run.learning_rate(provisional=plan(run.findings, **options))
    found = run.findings
    critical = critical_batch_size(found.noise, found.track, optimizer=found.task.optimizer)
    return run.keep(plan=plan(run.findings, **options), critical_batch_size=critical)


def noise_micro_batch_size(task: Task, throughput: ThroughputProfile) -> int:
    """Smallest measured size that is nearly as cheap per example as the cheapest.

    Small micro-batches tell more about the noise, as long as they cost no more. Where modules
    mix examples the loss is another one at another size, so it is today's.

    Args:
        task: What is measured.
        throughput: Seconds per step.

    Returns:
        Examples per micro-batch, at most today's batch size and an eighth of the data set.
    """
    if mixes_examples(task.model):
        return task.default_batch_size
    most = min(task.default_batch_size, max(1, (task.num_examples or 2**62) // 8))
    costs = {p.batch_size: p.total_seconds / p.batch_size for p in throughput.points}
    usable = {size: cost for size, cost in costs.items() if size <= most}
    return min(
        (size for size, cost in usable.items() if cost <= _CHEAP * min(usable.values())),
        default=most,
    )


@final
class _Run:
    """Spends one time budget on the parts in turn, and keeps what they found."""

    def __init__(
        self,
        task: Task,
        deadline: Deadline,
        seed: int,
        cache: MeasurementCache | None,
        on_part: Callable[[Findings], None] | None,
        progress: Progress,
    ) -> None:
        self._task, self._deadline, self._seed, self._cache = task, deadline, seed, cache
        self._on_part, self._progress = on_part, progress
        self._left = dict(SHARES)
        self.findings = Findings(
            task=task.facts(), environment=describe_environment(task.device), seconds={}
        )

    def part(self, name: str, instrument: Callable[..., T], **options: Any) -> T:
        """Run one instrument on its share of the time that is left, or know it from before."""
        if self._cache is None or name not in CACHED:
            return self._run(name, instrument, **options)
        flags = {**options, "free": free_memory(self._task.device), "within": "find"}
        known = self._cache.get(name, self._task, **flags)
        if known is None:
            known = self._run(name, instrument, **options)
            self._cache.put(name, known, self._task, **flags)
        else:
            self._left.pop(name)
            self.keep(**{name: known}, seconds={**self.findings.seconds, name: 0.0})
        return known

    def _run(self, name: str, instrument: Callable[..., T], **options: Any) -> T:
        before = 1 - sum(self._left.values())
        share = self._left.pop(name)
        budget = self._deadline.remaining_seconds() * share / (share + sum(self._left.values()))
        begun = self._deadline.elapsed_seconds()
        result = instrument(
            self._task,
            time_budget_seconds=max(budget, 0.1),
            seed=self._seed,
            progress=lambda fraction, note: self._progress(before + share * fraction, note),
            clock=self._deadline.clock,
            **options,
        )
        took = self._deadline.elapsed_seconds() - begun
        # A look at the task may have found something to warn of.
        facts = replace(self.findings.task, warnings=self._task.check())
        parts = {name: result, "task": facts}
        self.keep(**parts, seconds={**self.findings.seconds, name: took})
        return result

    def learning_rate(self, provisional: Plan) -> None:
        """Range test, then race, at the batch size that one device sees in one pass.

        With the other settings as they suit that size: a rate is good only together with them.
        """
        size, optimizer = provisional.micro_batch_size, self._task.optimizer
        suited = batch_size_set_for(optimizer) or self._task.batch_size
        with self._task.preserved():
            if suited is not None:
                scale_hyperparameters(optimizer, round(suited), size)
            curve = self.part("learning_rate", range_test, batch_size=size)
            self.part("race", race, batch_size=size, centre=curve.suggestion, upper=curve.edge)

    def keep(self, **parts: Any) -> Findings:
        """Add parts to the findings and tell who listens."""
        self.findings = replace(self.findings, **parts)
        if self._on_part is not None:
            self._on_part(self.findings)
        return self.findings
