"""What to train with, and what else could be."""

from dataclasses import dataclass

from rightbatch.results.scaling import Change
from rightbatch.results.status import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to train that the plan weighed. Relative numbers are 1 at the best candidate."""

    batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    step_seconds: float  # one optimizer step, loading included
    relative_steps: float  # steps to the same loss, over the fewest possible
    relative_time: float
    relative_cost: float
    fits: bool
    devices: int | None = None  # that share the batch; None: as many as the plan's
    communication_seconds: float = 0.0  # of step_seconds: adding up the gradients of all devices
    assumed: bool = False  # communication was not measured: from a bandwidth, or counted as free
    relative_energy: float | None = None  # joules over the least; None: no joules at this size


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One way to train that no other beats in both time and cost, and in energy if that is saved.

    Relative numbers are 1 at the fastest and at the cheapest candidate. Seconds and cost are those
    of the whole run, known where the steps of today's run are.
    """

    batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    devices: int
    relative_time: float
    relative_cost: float  # device-hours
    assumed: bool  # see Candidate
    taken_for: tuple[str, ...] = ()  # of "time", "cost", "energy": objectives that take this point
    seconds: float | None = None
    seconds_low: float | None = None  # 95 %
    seconds_high: float | None = None
    cost: float | None = None  # in the currency of the price; needs one
    cost_low: float | None = None  # 95 %
    cost_high: float | None = None
    meets_limits: bool | None = None  # deadline and budget; None: neither given, or cannot be told
    counted_at: int | None = None  # batch size of steps_allowed, today's; None: fewest possible
    steps_allowed: float | None = None  # steps of a run within the limits given ...
    steps_allowed_low: float | None = None  # ... at 95 %
    steps_allowed_high: float | None = None
    relative_energy: float | None = None  # see Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOption:
    """What staying, a larger batch or more devices costs: once, and in every run."""

    name: str  # "stay", "other batch here", "other layout here" or "more devices"
    batch_size: int
    devices: int
    relative_time: float  # over staying
    upfront: float
    running: float | None  # of one run; None: the steps of a run are not known
    total: float | None  # of the first run
    break_even_steps: float | None  # of today's steps; None: it costs no less to run than staying
    break_even_runs: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """What the user trains with today, on the plan's scale."""

    batch_size: int
    relative_time: float  # over the plan's time
    devices: int | None = None  # the fewest that were planned for; None: as many as the plan's
    micro_batch_size: int | None = None  # that a device passes at a time; None: not told


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to train with, and why."""

    batch_size: int  # micro_batch_size * accumulation_steps * devices, exactly
    micro_batch_size: int
    accumulation_steps: int
    devices: int
    learning_rate: float | None
    hyperparameters: dict[str, float]  # of the optimizer's first group, at this batch size
    low: int  # sizes that are within 5 % of the best in at least half of the draws
    high: int | None
    objective: str  # "time", "cost" or "energy"
    candidates: tuple[Candidate, ...]
    current: Current | None
    speedup: float | None  # current time over planned time
    speedup_low: float | None
    speedup_high: float | None
    reasons: tuple[str, ...]
    status: Status
    warnings: tuple[str, ...] = ()  # what the plan takes for granted, a sentence each
    front: tuple[FrontPoint, ...] = ()  # the cheapest first
    costs: tuple[CostOption, ...] = ()  # where the user named an upfront cost
    changes: tuple[Change, ...] = ()  # of the optimizer's settings, from today's batch size

    @property
    def keeps_today(self) -> bool:
        """Whether it is what is trained with today: batch size, micro-batches and devices."""
        now = self.current
        return (
            now is not None
            and now.devices is None
            and now.batch_size == self.batch_size
            and now.micro_batch_size in (None, self.micro_batch_size)
        )
