"""Results for tests of the results file."""

import json
from pathlib import Path
from typing import Any

from rightbatch.results import (
    Candidate,
    Change,
    Communication,
    CriticalBatchSize,
    Current,
    EnergyPoint,
    EnergyProfile,
    GeometryNoise,
    LayerNoise,
    LoopClocks,
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
    StepShape,
    StepShares,
    TaskFacts,
    ThroughputPoint,
    ThroughputProfile,
    Validity,
    WorkerPoint,
)


def full() -> Results:
    """Every part measured, with values that no two fields share."""
    return Results(
        task=TaskFacts(
            name="digits",
            parameters=1000,
            examples=1438,
            batch_size=64,
            learning_rate=0.05,
            optimizer="SGD",
            hyperparameters={"lr": 0.05, "momentum": 0.9},
            warnings=("one warning.",),
        ),
        environment={"torch": "2.13.0", "device": "cpu"},
        memory=MemoryProfile(
            max_verified_batch_size=512,
            upper_bound=None,
            budget_bytes=10**9,
            points=(MemoryPoint(batch_size=64, peak_bytes=None, source="real", outcome="oom"),),
            status=Status.CAPPED,
        ),
        throughput=ThroughputProfile(
            points=(
                ThroughputPoint(
                    batch_size=64,
                    step_seconds=0.5,
                    low=0.4,
                    high=0.6,
                    load_seconds=0.01,
                    total_seconds=0.51,
                    idle_share=0.05,
                    crowded_share=0.15,
                    paging_share=0.35,
                    units=640.0,
                    elements=960.0,
                ),
            ),
            alpha_seconds=0.1,
            beta_seconds_per_example=0.002,
            half_batch_size=50.0,
            bottleneck="compute",
            status=Status.PLATEAU,
            evidence="The numbers.",
            advice="Something to try.",
            clocks=LoopClocks(
                batch_size=63,
                num_workers=3,
                load_seconds=0.011,
                step_seconds=0.49,
                total_seconds=0.495,
                overlap=0.55,
            ),
            shares=StepShares(batch_size=62, forward=0.25, backward=0.45, optimizer=0.3),
            workers=(WorkerPoint(num_workers=5, load_seconds=0.012),),
            shape=StepShape(
                alpha_seconds=0.12, beta_seconds_per_example=0.0021, sharpness=1.5, residual=0.03
            ),
            notes=("Something to know.",),
        ),
        communication=Communication(
            world_size=2,
            gradient_bytes=4001,
            allreduce_seconds=0.07,
            low=0.06,
            high=0.08,
            no_sync_step_seconds=0.49,
            sync_step_seconds=0.55,
            gbps=4.5,
            status=Status.OK,
        ),
        energy=EnergyProfile(
            points=(EnergyPoint(batch_size=61, joules_per_step=9.0, low=8.5, high=9.5),),
            joules=1.5,
            joules_per_example=0.12,
            window_seconds=5.5,
            price_per_kwh=0.25,
            status=Status.OK,
        ),
        learning_rate=LRCurve(
            batch_size=64,
            points=(LRPoint(learning_rate=0.01, loss=2.0, low=1.9, high=2.1),),
            edge=0.5,
            suggestion=0.1,
            low=0.05,
            high=0.2,
            status=Status.OK,
        ),
        race=LRRace(
            batch_size=128,
            entries=(RaceEntry(learning_rate=0.1, steps=50, loss=None, low=None, high=None),),
            suggestion=0.1,
            low=0.05,
            high=None,
            status=Status.AT_THE_END,
        ),
        noise=NoiseScale(
            noise_scale=None,
            low=30.0,
            high=None,
            grad_sq=-0.1,
            trace_cov=5.0,
            examples_used=1000,
            geometry="euclidean",
            loss=2.3,
            micro_batch_size=16,
            examples_needed=2000,
            status=Status.AT_LEAST,
            small_gradients="ranks",
            ghost_batch_size=16,
            coverage=0.5,
            uncovered=("head.bias", "tail"),
            geometries=(
                GeometryNoise(
                    geometry="adam",
                    noise_scale=None,
                    low=3.0,
                    high=None,
                    fits=True,
                    status=Status.AT_LEAST,
                ),
            ),
            layers=(
                LayerNoise(
                    layer="head",
                    parameters=10,
                    grad_sq=-0.1,
                    trace_cov=5.0,
                    noise_scale=None,
                    noise_share=1.0,
                    gradient_share=1.0,
                ),
            ),
            steps_measured=7,
            steps_skipped=1,
        ),
        track=NoiseTrack(
            points=(
                NoisePoint(
                    step=10,
                    examples_seen=640,
                    loss=2.0,
                    noise_scale=90.0,
                    low=60.0,
                    high=None,
                    grad_sq=0.1,
                    trace_cov=9.0,
                ),
            ),
            batch_size=64,
            learning_rate=0.05,
            run_average=90.0,
            low=60.0,
            high=None,
            trend=-1.0,
            status=Status.OUT_OF_TIME,
        ),
        critical_batch_size=CriticalBatchSize(
            value=90.0, low=30.0, high=None, source="noise", status=Status.OK
        ),
        plan=Plan(
            batch_size=128,
            micro_batch_size=64,
            accumulation_steps=2,
            devices=1,
            learning_rate=0.1,
            hyperparameters={"lr": 0.1},
            changes=(
                Change(
                    parameter="beta2", before=0.999, after=0.98, why="", validity=Validity.OUTSIDE
                ),
            ),
            low=64,
            high=None,
            objective="time",
            candidates=(
                Candidate(
                    batch_size=128,
                    micro_batch_size=64,
                    accumulation_steps=2,
                    step_seconds=0.3,
                    relative_steps=1.7,
                    relative_time=1.0,
                    relative_cost=1.0,
                    fits=True,
                ),
            ),
            current=Current(batch_size=64, relative_time=1.5),
            speedup=1.5,
            speedup_low=1.2,
            speedup_high=1.9,
            reasons=("because.",),
            status=Status.TIE,
        ),
        seconds={"memory": 1.5},
    )


def least() -> Results:
    return Results(task=full().task, environment={})


def file_of(plain: Any, folder: Path) -> Path:
    path = folder / "results.json"
    path.write_text(plain if isinstance(plain, str) else json.dumps(plain))
    return path
