"""Results with laws that can be worked out by hand."""

from rightbatch.results import (
    CriticalBatchSize,
    MemoryProfile,
    Status,
    TaskFacts,
    ThroughputPoint,
    ThroughputProfile,
)

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def throughput(
    alpha: float = 0.01, beta: float = 0.001, sizes: tuple[int, ...] = SIZES, spread: float = 0.0
) -> ThroughputProfile:
    points = tuple(
        ThroughputPoint(
            batch_size=b,
            step_seconds=t,
            low=t * (1 - spread),
            high=t * (1 + spread),
            load_seconds=0.0,
            total_seconds=t,
        )
        for b in sizes
        for t in [alpha + beta * b]
    )
    return ThroughputProfile(
        points=points,
        alpha_seconds=alpha,
        beta_seconds_per_example=beta,
        half_batch_size=alpha / beta,
        bottleneck="compute",
        status=Status.OK,
    )


def critical(
    value: float | None = 160.0, low: float | None = None, high: float | None = -1.0
) -> CriticalBatchSize:
    return CriticalBatchSize(
        value=value,
        low=(value or 1.0) if low is None else low,
        high=value if high == -1.0 else high,
        source="noise",
        status=Status.OK,
    )


def facts(**changes: object) -> TaskFacts:
    values: dict[str, object] = {
        "name": "made up",
        "parameters": 10,
        "examples": 50_000,
        "batch_size": 16,
        "learning_rate": 0.1,
        "optimizer": "SGD",
        "hyperparameters": {"lr": 0.1, "momentum": 0.9},
    }
    return TaskFacts(**(values | changes))  # type: ignore[arg-type]


def memory(largest: int) -> MemoryProfile:
    return MemoryProfile(
        max_verified_batch_size=largest,
        upper_bound=largest,
        budget_bytes=10,
        points=(),
        status=Status.OK,
    )
