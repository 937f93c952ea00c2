"""What every instrument returns: frozen numbers with their doubt, and nothing that computes.

One dataclass per result; `Results` holds them all and mirrors the results file
(``"schema": "rightbatch/1"``), so that what was saved is enough to plan and to report again.

Conventions: an interval is 95 %; an upper end that the data do not bound is ``None``;
a part that was not measured is ``None`` on `Results` and absent from the file.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """What a number is worth. The value is for programs, `sentence` for people."""

    OK = "ok"
    AT_LEAST = "at_least"
    UNRESOLVED = "unresolved"
    OUT_OF_TIME = "out_of_time"
    CAPPED = "capped"
    TOO_FEW_EXAMPLES = "too_few_examples"
    PLATEAU = "plateau"
    NOTHING_FITS = "nothing_fits"
    DISAGREE = "disagree"
    AT_THE_END = "at_the_end"
    DIVERGED = "diverged"
    TIE = "tie"
    ASSUMED = "assumed"
    NOT_YET = "not_yet"
    BRACKET = "bracket"
    NOT_DETERMINED = "not_determined"

    @property
    def sentence(self) -> str:
        """One sentence for the user: what happened, and what would settle it."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.OK: "Measured to the precision that was asked for.",
    Status.AT_LEAST: (
        "Bounded from below only: the squared mean gradient is too close to zero for an upper end. "
        "Measure more examples."
    ),
    Status.UNRESOLVED: (
        "Cannot tell: the squared mean gradient is not distinguishable from zero at this sample "
        "size. Measure more examples."
    ),
    Status.OUT_OF_TIME: "The time budget ended first. Give it more time for a narrower answer.",
    Status.CAPPED: (
        "Every size up to the cap (the data set or max_batch_size) fits: memory is not the limit."
    ),
    Status.TOO_FEW_EXAMPLES: (
        "The examples ended before the asked precision was reached: take the interval as it is, "
        "or measure more examples."
    ),
    Status.PLATEAU: "Larger sizes were not tried: they would no longer be faster per example.",
    Status.NOTHING_FITS: (
        "Not even the smallest batch fits in memory. Use checkpointing, a lower precision, an "
        "optimizer with less state or a smaller model, or give it more memory."
    ),
    Status.DISAGREE: (
        "Cannot tell: repeated measurements disagree by more than a decade. Repeat with more steps."
    ),
    Status.AT_THE_END: (
        "The answer lies at the end of the range that was tried. Widen the range to be sure."
    ),
    Status.DIVERGED: (
        "The training run diverged at today's settings; the numbers are from before. "
        "Lower the learning rate and measure again."
    ),
    Status.TIE: "Several choices cannot be told apart; the smaller, rounder one was taken.",
    Status.ASSUMED: "Not measured here: carried over from other measurements by a rule.",
    Status.NOT_YET: (
        "Not measurable yet: the optimizer's second moments or the measured steps are too few. "
        "Train some steps more."
    ),
    Status.BRACKET: (
        "No unbiased estimate exists: the truth lies between two estimates, one biased down, "
        "one up."
    ),
    Status.NOT_DETERMINED: (
        "The data do not determine it: its interval has an open end. "
        "Measure more sizes, and further apart."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What was measured, as far as a reader of the results needs to know."""

    name: str
    parameters: int  # trainable, tied weights once
    examples: int | None  # None: a stream of unknown length
    batch_size: int | None  # what the user trains with today
    learning_rate: float | None  # of the optimizer's first group, today
    optimizer: str  # class name
    hyperparameters: dict[str, float]  # the optimizer's first group, numbers only
    num_workers: int = 0
    warnings: tuple[str, ...] = ()  # what preflight found, a sentence each


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
    held_bytes: int = 0  # of it, before the first step: weights, buffers, optimizer state
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryNoise:
    """The noise scale in one geometry, in examples."""

    geometry: str  # "euclidean", "adam", "adam_sqrt" or "sign"
    noise_scale: float | None
    low: float
    high: float | None  # None: not bounded
    fits: bool  # whether it is the geometry of the task's optimizer
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNoise:
    """What one layer adds to both parts. Layers add up to the whole, exactly."""

    layer: str  # name of the module that owns the parameters
    parameters: int
    grad_sq: float
    trace_cov: float
    noise_scale: float | None  # of this layer alone; None: its |G|^2 is not positive
    noise_share: float  # trace_cov over the whole's
    gradient_share: float  # grad_sq over the whole's; a small one may come out negative


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """Simple noise scale of the gradient at one point in training, in examples."""

    noise_scale: float | None  # tr(Sigma)/|G|^2; None: |G|^2 is not resolved
    low: float
    high: float | None  # None: not bounded
    grad_sq: float  # |G|^2, unbiased, may be negative
    trace_cov: float  # tr(Sigma) per example, unbiased
    examples_used: int
    geometry: str  # of the numbers above: "euclidean"
    loss: float | None  # mean loss over the same examples; None: not seen
    micro_batch_size: int  # examples per small gradient
    examples_needed: int | None = None  # more examples for the asked precision; None: cannot say
    status: Status
    small_gradients: str = "micro_batches"  # or "ranks", "examples", "extra_pass": their source
    ghost_batch_size: int | None = None  # BatchNorm in train mode: the unit is this micro-batch
    coverage: float = 1.0  # share of the trainable parameters that got a gradient
    uncovered: tuple[str, ...] = ()  # the parameters that got none
    geometries: tuple[GeometryNoise, ...] = ()
    layers: tuple[LayerNoise, ...] = ()
    steps_measured: int | None = None  # by a monitor
    steps_skipped: int = 0  # by a monitor: gradients that were not finite, broken accumulation


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisePoint:
    """One probe along a training run."""

    step: int
    examples_seen: int
    loss: float
    noise_scale: float | None
    low: float
    high: float | None
    grad_sq: float
    trace_cov: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseTrack:
    """The noise scale along a training run, and its average over minimal steps."""

    points: tuple[NoisePoint, ...]
    batch_size: int
    learning_rate: float
    run_average: float | None  # examples; None: no probe resolved it
    low: float
    high: float | None
    trend: float | None  # d log(noise scale) / d log(loss); negative: it grows as the loss falls
    status: Status
    geometries: tuple[GeometryNoise, ...] = ()  # run averages


@dataclass(frozen=True, slots=True, kw_only=True)
class LRPoint:
    """Median smoothed loss of the range test at one rate, with the spread over repeats."""

    learning_rate: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LRCurve:
    """What a repeated range test saw."""

    batch_size: int
    points: tuple[LRPoint, ...]
    edge: float | None  # largest rate before the loss rises for good; None: never rose
    suggestion: float | None
    low: float | None  # spread of the suggestion over repeats
    high: float | None
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceEntry:
    """One rate in the race."""

    learning_rate: float
    steps: int  # how far it was let run
    loss: float | None  # held-out-in-time loss at the end; None: diverged
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LRRace:
    """Successive halving of a few rates at one batch size, from the same weights."""

    batch_size: int
    entries: tuple[RaceEntry, ...]  # ascending in learning_rate
    suggestion: float | None
    low: float | None  # rates that cannot be told from the suggestion
    high: float | None
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalBatchSize:
    """The batch size at which a run needs twice the fewest possible steps."""

    value: float | None
    low: float
    high: float | None
    source: str  # "noise", "branch" or "sweep"
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsFit:
    """How the examples needed to reach a target grow with the batch size: E_min (1 + b / B_c)."""

    minimal_examples: float | None  # E_min, at the smallest batches; None: B_c is not determined
    critical_batch_size: CriticalBatchSize  # B_c, which a plan can be made with
    residual: float  # root mean square of log(measured / fitted)
    num_sizes: int
    status: Status


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
    """One way to train that no other beats in both time and cost.

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
    meets_limits: bool | None = None  # deadline and budget; None: neither given, or cannot be told
    counted_at: int | None = None  # batch size of steps_allowed, today's; None: fewest possible
    steps_allowed: float | None = None  # steps of a run within the limits given ...
    steps_allowed_low: float | None = None  # ... at 95 %
    steps_allowed_high: float | None = None
    relative_energy: float | None = None  # see Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOption:
    """What staying, a larger batch or more devices costs: once, and in every run."""

    name: str  # "stay", "other batch here" or "more devices"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that was found out about one task: the results file, as an object.

    The public `rightbatch.Findings` is this plus saving, loading and showing.
    """

    task: TaskFacts
    environment: dict[str, str]
    memory: MemoryProfile | None = None
    throughput: ThroughputProfile | None = None
    communication: Communication | None = None
    energy: EnergyProfile | None = None
    learning_rate: LRCurve | None = None
    race: LRRace | None = None
    noise: NoiseScale | None = None
    track: NoiseTrack | None = None
    critical_batch_size: CriticalBatchSize | None = None
    plan: Plan | None = None
    seconds: dict[str, float] = field(default_factory=dict[str, float])  # what each part took
