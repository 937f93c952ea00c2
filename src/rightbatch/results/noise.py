"""The gradient noise scale, at one place and along a run."""

from dataclasses import dataclass

from rightbatch.results.status import Status


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
