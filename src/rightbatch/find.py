"""The whole loop: every instrument in turn, then the plan. No arithmetic of its own."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, final

from torch import nn
from torch.optim import Optimizer

from rightbatch import _codec
from rightbatch._environment import describe_environment
from rightbatch._time import Clock, Deadline, Progress, no_progress, wall_clock
from rightbatch.errors import CannotPlan, ResultsError
from rightbatch.hardware import measure_memory, measure_throughput
from rightbatch.hardware.cache import MeasurementCache, free_memory
from rightbatch.lr import race, range_test
from rightbatch.noise import measure_noise, track_noise
from rightbatch.plan import check_energy, check_options, check_today, critical_batch_size, plan
from rightbatch.report import render_html, render_text
from rightbatch.results import Plan, Results, Status, ThroughputProfile
from rightbatch.scaling import ScalingReport, batch_size_set_for, scale_hyperparameters
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


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Findings(Results):
    """All that was found out about one task, ready to be saved, shown and planned from.

    ``print(findings)`` shows one screen; the parts are attributes: ``findings.plan.batch_size``.
    """

    def save(self, path: str | Path) -> None:
        """Write the results file.

        Args:
            path: The file; its folder must exist.

        Raises:
            ResultsError: If it cannot be written.
        """
        _codec.write(self, path)

    def to_html(self, path: str | Path) -> None:
        """Write the report: one page that needs nothing else.

        Args:
            path: The file; its folder must exist.

        Raises:
            ResultsError: If it cannot be written.
        """
        try:
            Path(path).write_text(render_html(self), encoding="utf-8")
        except OSError as error:
            raise ResultsError(
                f"cannot write {str(path)!r}: {error.strerror}. "
                "Name a folder that you may write to."
            ) from error

    def apply(
        self,
        optimizer: Optimizer,
        *,
        scheduler: Any = None,
        model: nn.Module | None = None,
        model_ema: Any = None,
        warmup_examples: float | None = None,
        dry_run: bool = False,
    ) -> ScalingReport:
        """Set an optimizer's hyperparameters to those of the plan; its state is kept.

        The learning rate becomes the plan's, and everything that goes with the batch size moves
        from today's size to the plan's, as `rightbatch.scale_hyperparameters` does it. Applied
        once more, nothing changes.

        The trap: the loader is yours. Give it ``plan.micro_batch_size``, and accumulate over
        ``plan.accumulation_steps``.

        Args:
            optimizer: Of the class that was measured, with today's settings or already applied.
            scheduler: As of `rightbatch.scale_hyperparameters`, also for the four below.
            model: Whose BatchNorm layers are to keep their memory in examples.
            model_ema: A decay, or what holds one.
            warmup_examples: Length of the warm-up.
            dry_run: Only report.

        Returns:
            Every setting from what to what and why, with warnings.

        Raises:
            CannotPlan: If there is no plan to apply, or it is for another kind of optimizer.

        Example:
            Four times the batch: Adam's betas to the fourth power, and the rate as it was found.

            >>> import torch
            >>> from rightbatch.results import TaskFacts
            >>> task = TaskFacts(name="toy", parameters=1, examples=None, batch_size=8,
            ...     learning_rate=0.1, optimizer="Adam", hyperparameters={})
            >>> made = Plan(batch_size=32, micro_batch_size=32, accumulation_steps=1, devices=1,
            ...     learning_rate=0.3, hyperparameters={}, low=32, high=32, objective="time",
            ...     candidates=(), current=None, speedup=None, speedup_low=None,
            ...     speedup_high=None, reasons=(), status=Status.OK)
            >>> weight = torch.nn.Parameter(torch.ones(1))
            >>> optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.5, 0.75))
            >>> _ = Findings(task=task, environment={}, plan=made).apply(optimizer)
            >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]
            (0.3, (0.0625, 0.31640625))
        """
        made, kind = self.plan, type(optimizer).__name__
        if made is None or made.status is Status.NOTHING_FITS:
            raise CannotPlan(
                "`apply` needs a plan, got findings without one. Run rightbatch.find, or "
                "rightbatch.plan with more results."
            )
        if kind != self.task.optimizer:
            raise CannotPlan(
                f"`apply` sets the kind of optimizer that was measured, {self.task.optimizer}, "
                f"got {kind}: its learning rates mean something else. Find its own plan."
            )
        now = batch_size_set_for(optimizer) or self.task.batch_size or made.batch_size
        critical = self.critical_batch_size
        return scale_hyperparameters(
            optimizer,
            round(now),
            made.batch_size,
            learning_rate=made.learning_rate,
            critical_batch_size=None if critical is None else critical.value,
            scheduler=scheduler,
            model=model,
            model_ema=model_ema,
            warmup_examples=warmup_examples,
            dry_run=dry_run,
        )

    def __str__(self) -> str:
        return render_text(self)


def load(path: str | Path) -> Findings:
    """Read a results file.

    Args:
        path: What `Findings.save` or ``rightbatch find --output DIR`` wrote.

    Returns:
        The findings, equal to those that were saved.

    Raises:
        ResultsError: If the file is missing, truncated, of another schema, or holds NaN.
    """
    return _codec.read(path, Findings)


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
        time_budget_seconds: For everything together.
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
    memory = run.part("memory", measure_memory, isolate=False)
    if memory.status is Status.NOTHING_FITS:
        return run.findings
    # A search that ran out of time bounds nothing: then throughput watches the memory itself.
    cap = None if memory.status is Status.OUT_OF_TIME else memory.max_verified_batch_size
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
        size, today = provisional.micro_batch_size, self._task.batch_size
        with self._task.preserved():
            if today is not None:
                scale_hyperparameters(self._task.optimizer, today, size)
            curve = self.part("learning_rate", range_test, batch_size=size)
            self.part("race", race, batch_size=size, centre=curve.suggestion, upper=curve.edge)

    def keep(self, **parts: Any) -> Findings:
        """Add parts to the findings and tell who listens."""
        self.findings = replace(self.findings, **parts)
        if self._on_part is not None:
            self._on_part(self.findings)
        return self.findings
