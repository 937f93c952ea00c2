"""What fits, how fast it is and what it takes: memory, throughput, communication, energy."""

from dataclasses import dataclass

from rightbatch.results.status import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPoint:
    """One batch size that was tried."""

    batch_size: int
    peak_bytes: int | None  # None: it did not finish
    source: str  # "real": executed; "fake": predicted
    outcome: str  # "ok", "over_budget", "oom", "thrash", "limit", "killed", "hang", "slow", "leak"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProfile:
    """Which batch sizes fit. Only sizes that were executed are called feasible."""

    max_verified_batch_size: int  # largest size executed within the budget; 0: none
    upper_bound: int | None  # no larger size can fit; None: not bounded
    budget_bytes: int  # for all that training holds on the device, as are the peaks
    points: tuple[MemoryPoint, ...]
    status: Status
    held_bytes: int = 0  # of it, before the first step: weights, optimizer state, a teacher ...
    units_per_example: float = 1.0  # what the loss averages over, such as tokens
    notes: tuple[str, ...] = ()  # what the answer assumes, a sentence each


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputPoint:
    """What one optimizer step costs at one batch size."""

    batch_size: int
    step_seconds: float  # computing on a batch that is already there
    low: float  # step_seconds, 95 % interval
    high: float
    load_seconds: float  # getting one batch from the loader, alone
    total_seconds: float  # what a training loop pays: both, as far as they do not overlap
    idle_share: float | None = None  # of the step: nothing ran, or was ready to; None: not known
    crowded_share: float | None = (
        None  # of the time threads wanted to run: others had the processor
    )
    paging_share: float | None = None  # of what threads ran: for pages of memory, given back before
    units: float | None = None  # what a batch weighs: examples, or unmasked tokens ...
    elements: float | None = None  # ... and what its tensors hold, padding included


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopClocks:
    """Three clocks at one batch size, looked at in turn: loading, computing, the real loop."""

    batch_size: int
    num_workers: int  # the task's own
    load_seconds: float  # one batch from the loader, alone
    step_seconds: float  # a step on a batch that is already there
    total_seconds: float  # a step of the real loop
    overlap: float  # share of the shorter one that the loop hides behind the longer one


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShares:
    """Where a step's time goes at one batch size; the three add up to 1."""

    batch_size: int
    forward: float  # with the loss
    backward: float
    optimizer: float  # with clipping, and zeroing the gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPoint:
    """What loading one batch takes with so many loader processes."""

    num_workers: int
    load_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """``step_seconds = (alpha^g + (beta b)^g)^(1/g)``: explains the points, never replaces them."""

    alpha_seconds: float  # what a step takes at the least
    beta_seconds_per_example: float  # what an example takes in a large batch
    sharpness: float  # g; 1: a straight line, large: flat up to a knee
    residual: float  # root mean square of log(measured / fitted)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputProfile:
    """Seconds per step against batch size, and the line that sums them up."""

    points: tuple[ThroughputPoint, ...]  # ascending in batch_size
    alpha_seconds: float  # fixed cost of a step
    beta_seconds_per_example: float
    half_batch_size: float | None  # alpha/beta: half the peak rate; None: beta not resolved
    bottleneck: str  # "compute", "overhead", "loading", "sync", "padding", "thrashing", "mixed"
    status: Status
    evidence: str = ""  # the numbers that name the bottleneck, a sentence
    advice: str = ""  # what to try, a sentence
    clocks: LoopClocks | None = None  # None: too slow for the time budget
    shares: StepShares | None = None
    workers: tuple[WorkerPoint, ...] = ()  # ascending; at the clocks' size, where loading matters
    shape: StepShape | None = None  # None: fewer than four sizes
    notes: tuple[str, ...] = ()  # what else to know, a sentence each


@dataclass(frozen=True, slots=True, kw_only=True)
class Communication:
    """What ranks pay for training one model together, measured on so many of them."""

    world_size: int
    gradient_bytes: int  # that a step averages, on each rank
    allreduce_seconds: float  # averaging them, alone: nothing is computed meanwhile
    low: float  # allreduce_seconds, 95 % interval
    high: float
    no_sync_step_seconds: float | None  # of one pass; None: the model does not average gradients
    sync_step_seconds: float | None  # the same with averaging, which overlaps computing
    gbps: float  # gigabits per second that a rank sends in a ring while averaging
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyPoint:
    """What one optimizer step draws at one batch size, as the counters tell."""

    batch_size: int
    joules_per_step: float
    low: float  # 95 % interval
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyProfile:
    """Joules per step against batch size, of one device; computing only, not loading."""

    points: tuple[EnergyPoint, ...]  # ascending in batch_size
    joules: float  # e0 of the line e0 + e1 b through the points: of a step
    joules_per_example: float  # e1
    window_seconds: float  # the shortest window of a sample
    price_per_kwh: float | None  # any currency, from the user
    status: Status
