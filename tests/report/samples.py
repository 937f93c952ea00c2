"""Results by hand: one plausible run on MNIST, and every way in which less is known."""

from dataclasses import replace

from rightbatch.results import (
    Candidate,
    Change,
    CriticalBatchSize,
    Current,
    GeometryNoise,
    LayerNoise,
    LRCurve,
    LRPoint,
    LRRace,
    MemoryPoint,
    MemoryProfile,
    NoisePoint,
    NoiseScale,
    NoiseTrack,
    Plan,
    RaceEntry,
    Results,
    Status,
    TaskFacts,
    ThroughputPoint,
    ThroughputProfile,
    Validity,
)

GIB = 2**30
ALPHA, BETA, CRITICAL = 4.1e-3, 16e-6, 410.0
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

TASK = TaskFacts(
    name="mnist",
    parameters=1_199_882,
    examples=60_000,
    batch_size=64,
    learning_rate=0.02,
    optimizer="SGD",
    hyperparameters={"lr": 0.02, "momentum": 0.5, "weight_decay": 0.0, "dampening": 0.0},
    num_workers=0,
)
ENVIRONMENT = {
    "rightbatch": "0.1.0",
    "python": "3.12.11",
    "torch": "2.13.0",
    "device": "cpu",
    "threads": "2",
    "commit": "4f1c2ab",
}
SECONDS = {"memory": 6.2, "throughput": 11.8, "noise": 3.1, "track": 24.0, "learning_rate": 12.5}

MEMORY = MemoryProfile(
    max_verified_batch_size=4096,
    upper_bound=6144,
    budget_bytes=int(6.3 * GIB),
    points=(
        *(
            MemoryPoint(
                batch_size=size,
                peak_bytes=int(0.31 * GIB + size * 1.4e6),
                source="real",
                outcome="ok",
            )
            for size in (1, 64, 1024, 4096)
        ),
        MemoryPoint(
            batch_size=6144, peak_bytes=int(8.3 * GIB), source="fake", outcome="over_budget"
        ),
        MemoryPoint(batch_size=8192, peak_bytes=None, source="real", outcome="oom"),
    ),
    status=Status.OK,
)


def _throughput_point(size: int) -> ThroughputPoint:
    step = ALPHA + BETA * size
    load = 9e-6 * size
    return ThroughputPoint(
        batch_size=size,
        step_seconds=step,
        low=step * 0.97,
        high=step * 1.05,
        load_seconds=load,
        total_seconds=step + load,
    )


THROUGHPUT = ThroughputProfile(
    points=tuple(_throughput_point(size) for size in SIZES),
    alpha_seconds=ALPHA,
    beta_seconds_per_example=BETA,
    half_batch_size=ALPHA / BETA,
    bottleneck="overhead",
    status=Status.OK,
)


def _geometry(
    name: str, scale: float | None, low: float, high: float | None, status: Status = Status.OK
) -> GeometryNoise:
    return GeometryNoise(
        geometry=name,
        noise_scale=scale,
        low=low,
        high=high,
        fits=name == "euclidean",
        status=status,
    )


def _layer(name: str, parameters: int, noise: float, gradient: float) -> LayerNoise:
    return LayerNoise(
        layer=name,
        parameters=parameters,
        grad_sq=0.42 * gradient,
        trace_cov=15.96 * noise,
        noise_scale=38.0 * noise / gradient if gradient > 0 else None,
        noise_share=noise,
        gradient_share=gradient,
    )


NOISE = NoiseScale(
    noise_scale=38.0,
    low=29.0,
    high=51.0,
    grad_sq=0.42,
    trace_cov=15.96,
    examples_used=8192,
    geometry="euclidean",
    loss=2.301,
    micro_batch_size=16,
    status=Status.OK,
    geometries=(
        _geometry("euclidean", 38.0, 29.0, 51.0),
        _geometry("adam", None, 0.0, None, Status.NOT_YET),
        _geometry("sign", 61.0, 52.0, 71.0, Status.BRACKET),
    ),
    layers=(
        _layer("conv", 1_000, 0.25, 0.6),
        _layer("head", 9_000, 0.7, 0.41),
        _layer("scale", 1, 0.05, -0.01),
    ),
)

_PROBES = (  # examples seen, loss, noise scale, low, high
    (0, 2.301, 38.0, 29.0, 51.0),
    (3_200, 1.12, 74.0, 55.0, 102.0),
    (9_600, 0.46, 160.0, 118.0, 230.0),
    (25_600, 0.24, 340.0, 240.0, 520.0),
    (64_000, 0.13, 620.0, 410.0, 1_150.0),
    (128_000, 0.081, 1_150.0, 640.0, None),
    (192_000, 0.06, None, 900.0, None),
)
TRACK = NoiseTrack(
    points=tuple(
        NoisePoint(
            step=seen // 64,
            examples_seen=seen,
            loss=loss,
            noise_scale=scale,
            low=low,
            high=high,
            grad_sq=0.4 * loss,
            trace_cov=0.4 * loss * (scale or 900.0),
        )
        for seen, loss, scale, low, high in _PROBES
    ),
    batch_size=64,
    learning_rate=0.02,
    run_average=CRITICAL,
    low=300.0,
    high=620.0,
    trend=-0.95,
    status=Status.OK,
)
CRITICAL_BATCH_SIZE = CriticalBatchSize(
    value=CRITICAL, low=190.0, high=890.0, source="noise", status=Status.ASSUMED
)

_CURVE = (  # rate, loss, spread
    (1e-4, 2.300, 0.004),
    (3e-4, 2.297, 0.005),
    (1e-3, 2.287, 0.006),
    (3e-3, 2.255, 0.010),
    (1e-2, 2.120, 0.030),
    (3e-2, 1.640, 0.070),
    (6e-2, 1.190, 0.090),
    (1e-1, 0.930, 0.110),
    (2e-1, 0.860, 0.150),
    (4e-1, 1.480, 0.500),
    (8e-1, 9.700, 4.000),
)
LR_CURVE = LRCurve(
    batch_size=256,
    points=tuple(
        LRPoint(learning_rate=rate, loss=loss, low=loss - spread, high=loss + spread)
        for rate, loss, spread in _CURVE
    ),
    edge=0.21,
    suggestion=0.06,
    low=0.04,
    high=0.1,
    status=Status.OK,
)
RACE = LRRace(
    batch_size=256,
    entries=(
        RaceEntry(learning_rate=0.015, steps=40, loss=0.61, low=0.57, high=0.66),
        RaceEntry(learning_rate=0.03, steps=160, loss=0.262, low=0.248, high=0.277),
        RaceEntry(learning_rate=0.06, steps=160, loss=0.214, low=0.201, high=0.228),
        RaceEntry(learning_rate=0.12, steps=80, loss=0.35, low=0.33, high=0.37),
        RaceEntry(learning_rate=0.24, steps=40, loss=None, low=None, high=None),
    ),
    suggestion=0.06,
    low=0.03,
    high=0.12,
    status=Status.OK,
)


def candidates(
    *, devices: int = 1, accumulation: int = 1, largest: int = 4096
) -> tuple[Candidate, ...]:
    """Weigh sizes by the affine laws of the sample, as a plan would."""

    def relative_seconds(size: int) -> float:
        return (1 + CRITICAL / size) * (ALPHA * accumulation + BETA * size / devices)

    sizes = (*SIZES, 8192)
    best = min(relative_seconds(size) for size in sizes if size <= largest)
    return tuple(
        Candidate(
            batch_size=size,
            micro_batch_size=max(1, size // (devices * accumulation)),
            accumulation_steps=accumulation,
            step_seconds=ALPHA * accumulation + BETA * size / devices,
            relative_steps=1 + CRITICAL / size,
            relative_time=relative_seconds(size) / best,
            relative_cost=relative_seconds(size) / best,
            fits=size <= largest,
        )
        for size in sizes
        if size >= devices * accumulation
    )


def _change(
    name: str, before: float, after: float, why: str, validity: Validity = Validity.HOLDS
) -> Change:
    return Change(parameter=name, before=before, after=after, why=why, validity=validity)


PLAN = Plan(
    batch_size=256,
    micro_batch_size=256,
    accumulation_steps=1,
    devices=1,
    learning_rate=0.06,
    hyperparameters={"lr": 0.06, "momentum": 0.5, "weight_decay": 0.0, "dampening": 0.0},
    low=192,
    high=768,
    objective="time",
    candidates=candidates(),
    current=Current(batch_size=64, relative_time=1.78),
    speedup=1.78,
    speedup_low=1.42,
    speedup_high=2.13,
    reasons=(
        "The critical batch size is 410 (190 to 890): below it a larger batch saves steps almost "
        "in proportion, above it hardly any.",
        "A step costs 4.1 ms plus 16 us per example, so half the peak speed is reached at 256.",
        "Cannot distinguish 256 from 512 (within 5 %, given the intervals): the smaller, rounder "
        "size is taken.",
        "The learning rate won a race of 5 rates at this batch size.",
    ),
    status=Status.TIE,
    changes=(
        _change("lr", 0.02, 0.06, "won a race of 5 rates at this batch size"),
        _change("momentum", 0.5, 0.5, "kept: its half-life in steps"),
    ),
)

FULL = Results(
    task=TASK,
    environment=ENVIRONMENT,
    memory=MEMORY,
    throughput=THROUGHPUT,
    learning_rate=LR_CURVE,
    race=RACE,
    noise=NOISE,
    track=TRACK,
    critical_batch_size=CRITICAL_BATCH_SIZE,
    plan=PLAN,
    seconds=SECONDS,
)

ONLY_MEMORY = Results(task=TASK, environment=ENVIRONMENT, memory=MEMORY, seconds={"memory": 6.2})
ONLY_THROUGHPUT = Results(
    task=TASK, environment=ENVIRONMENT, throughput=THROUGHPUT, seconds={"throughput": 11.8}
)
ONLY_NOISE = Results(
    task=TASK, environment=ENVIRONMENT, noise=NOISE, track=TRACK, seconds={"noise": 3.1}
)
ONLY_LEARNING_RATE = Results(
    task=TASK,
    environment=ENVIRONMENT,
    learning_rate=LR_CURVE,
    race=RACE,
    seconds={"learning_rate": 12.5},
)
EMPTY = Results(task=TASK, environment={})

# Every number that may be None is None.
UNRESOLVED = Results(
    task=replace(TASK, examples=None, batch_size=None, learning_rate=None, hyperparameters={}),
    environment={},
    memory=MemoryProfile(
        max_verified_batch_size=64,
        upper_bound=None,
        budget_bytes=2 * GIB,
        points=(MemoryPoint(batch_size=64, peak_bytes=None, source="real", outcome="slow"),),
        status=Status.OUT_OF_TIME,
    ),
    throughput=ThroughputProfile(
        points=THROUGHPUT.points[:1],
        alpha_seconds=ALPHA,
        beta_seconds_per_example=0.0,
        half_batch_size=None,
        bottleneck="mixed",
        status=Status.OUT_OF_TIME,
    ),
    learning_rate=LRCurve(
        batch_size=64,
        points=LR_CURVE.points[:3],
        edge=None,
        suggestion=None,
        low=None,
        high=None,
        status=Status.DISAGREE,
    ),
    race=LRRace(
        batch_size=64,
        entries=(RaceEntry(learning_rate=0.1, steps=3, loss=None, low=None, high=None),),
        suggestion=None,
        low=None,
        high=None,
        status=Status.OUT_OF_TIME,
    ),
    noise=replace(
        NOISE,
        noise_scale=None,
        low=0.0,
        high=None,
        grad_sq=-0.01,
        examples_needed=None,
        status=Status.UNRESOLVED,
    ),
    track=NoiseTrack(
        points=(replace(TRACK.points[0], noise_scale=None, low=0.0, high=None),),
        batch_size=64,
        learning_rate=0.02,
        run_average=None,
        low=0.0,
        high=None,
        trend=None,
        status=Status.UNRESOLVED,
    ),
    critical_batch_size=CriticalBatchSize(
        value=None, low=0.0, high=None, source="noise", status=Status.UNRESOLVED
    ),
)

AT_LEAST = replace(
    FULL,
    noise=replace(
        NOISE,
        noise_scale=None,
        low=900.0,
        high=None,
        examples_needed=24_000,
        status=Status.AT_LEAST,
    ),
    track=None,
    critical_batch_size=CriticalBatchSize(
        value=None, low=900.0, high=None, source="noise", status=Status.AT_LEAST
    ),
    plan=replace(
        PLAN,
        batch_size=512,
        micro_batch_size=512,
        low=256,
        high=None,
        speedup=1.9,
        speedup_low=0.97,
        speedup_high=None,
        status=Status.AT_LEAST,
    ),
)

NOTHING_FITS = Results(
    task=TASK,
    environment=ENVIRONMENT,
    memory=MemoryProfile(
        max_verified_batch_size=0,
        upper_bound=0,
        budget_bytes=600 * 2**20,
        points=(
            MemoryPoint(batch_size=1, peak_bytes=int(1.2 * GIB), source="real", outcome="oom"),
        ),
        status=Status.NOTHING_FITS,
    ),
    seconds={"memory": 2.0},
)

NO_CURRENT = replace(
    FULL,
    task=replace(TASK, batch_size=None),
    plan=replace(PLAN, current=None, speedup=None, speedup_low=None, speedup_high=None),
)

FOUR_DEVICES = replace(
    FULL,
    task=replace(
        TASK,
        optimizer="AdamW",
        hyperparameters={"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
        learning_rate=1e-3,
        warnings=(
            "bn1, bn2 (BatchNorm in train mode) mixes the examples of a batch, so the smallest "
            "unit with a gradient of its own is the micro-batch: the noise is that of "
            "micro-batches of 64, and accumulation changes the statistics.",
            "No gradient reaches head.bias: left out of the noise.",
        ),
    ),
    plan=replace(
        PLAN,
        batch_size=1024,
        micro_batch_size=128,
        accumulation_steps=2,
        devices=4,
        learning_rate=2.8e-3,
        hyperparameters={"lr": 2.8e-3, "beta1": 0.9, "beta2": 0.984, "eps": 2.5e-9},
        changes=(
            _change("lr", 1e-3, 2.8e-3, "won a race of 5 rates at this batch size"),
            _change("beta1", 0.9, 0.9, "kept: the sizes are too far apart"),
            _change("beta2", 0.999, 0.984, "half-life kept in examples"),
            _change("eps", 1e-8, 2.5e-9, "same share of the root", Validity.OUTSIDE),
        ),
        low=512,
        high=2048,
        objective="cost",
        candidates=candidates(devices=4, accumulation=2),
        current=Current(batch_size=64, relative_time=3.64),
        speedup=3.64,
        speedup_low=2.7,
        speedup_high=4.5,
        status=Status.OK,
    ),
)

HOSTILE = replace(
    FULL,
    task=replace(
        TASK,
        name="</script><b>\x1b[31m{{ 7*7 }} " + "endless" * 12,
        warnings=("<img src=x onerror=alert(1)> [bold]not bold[/bold] " + "endless" * 20,),
    ),
    environment={"<i>device</i>": "</script><script>alert(2)</script>", "device": "a\nb"},
    plan=replace(PLAN, reasons=("<!-- </body> & \u2028 ]]>",)),
)

ALL = {
    "full": FULL,
    "only_memory": ONLY_MEMORY,
    "only_throughput": ONLY_THROUGHPUT,
    "only_noise": ONLY_NOISE,
    "only_learning_rate": ONLY_LEARNING_RATE,
    "empty": EMPTY,
    "unresolved": UNRESOLVED,
    "at_least": AT_LEAST,
    "nothing_fits": NOTHING_FITS,
    "no_current": NO_CURRENT,
    "four_devices": FOUR_DEVICES,
    "hostile": HOSTILE,
}
