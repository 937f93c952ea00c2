"""Room for the copy of gradients that data-parallel training keeps. Oracle: by hand (rung 1)."""

from dataclasses import replace

import pytest

from rightbatch.plan import plan
from rightbatch.results import Communication, MemoryPoint, MemoryProfile, Plan, Status
from tests.plan.made_up import critical, facts, memory, throughput

GIB = 2**30
PARAMETERS = 10**9  # 3.7 GiB of gradients
WRAPPED = Communication(
    world_size=2,
    gradient_bytes=4 * PARAMETERS,
    allreduce_seconds=0.01,
    low=0.01,
    high=0.01,
    no_sync_step_seconds=0.05,
    sync_step_seconds=0.055,
    gbps=100.0,
    status=Status.OK,
)


def verified(*peaks: tuple[int, float]) -> MemoryProfile:
    """Of 8 GiB, sizes took so many GiB."""
    points = tuple(
        MemoryPoint(batch_size=size, peak_bytes=int(peak * GIB), source="real", outcome="ok")
        for size, peak in peaks
    )
    return replace(memory(64), budget_bytes=8 * GIB, points=points)


def made(profile: MemoryProfile | None, *extra: Communication, devices: int = 2) -> Plan:
    """Large noise and a fast link: as many examples at a time as fit."""
    inputs = (throughput(sizes=(8, 16, 32, 64)), critical(1e6), facts(parameters=PARAMETERS))
    more = () if profile is None else (profile,)
    return plan(*inputs, *more, *extra, devices=devices, allreduce_gbps=400.0)


def test_no_room_for_the_copy_is_warned_of() -> None:
    result = made(verified((64, 7.9)))
    assert result.micro_batch_size == 64
    (warning,) = result.warnings
    assert warning == (
        "64 examples may not fit on each of 2 devices: alone 64 took 7.9 GiB of 8 GiB, and "
        "DistributedDataParallel keeps a copy of the gradients, 3.7 GiB. With "
        "gradient_as_bucket_view=True it keeps none."
    )


@pytest.mark.parametrize(
    ("profile", "extra", "devices"),
    [
        (verified((64, 4.2)), (), 2),  # 7.93 GiB with the copy
        (verified((64, 7.9)), (), 1),
        (verified((64, 7.9)), (WRAPPED,), 2),
        (verified(), (), 2),
        (None, (), 2),
    ],
)
def test_where_there_is_room_or_none_is_needed_or_known_nothing_is_said(
    profile: MemoryProfile | None, extra: tuple[Communication, ...], devices: int
) -> None:
    assert made(profile, *extra, devices=devices).warnings == ()


def test_a_bare_models_communication_says_nothing_of_the_copy() -> None:
    bare = replace(WRAPPED, sync_step_seconds=None, no_sync_step_seconds=None)
    assert len(made(verified((64, 7.9)), bare).warnings) == 1


def test_the_nearest_size_that_was_tried_decides() -> None:
    """32 examples at a time: 4.1 GiB and the copy fit, whatever 64 took."""
    roomy, tight = (
        replace(verified((16, 3.0), (32, at_32), (64, 7.9)), max_verified_batch_size=32)
        for at_32 in (4.1, 5.0)
    )
    assert made(roomy).warnings == ()
    assert "alone 32 took 5 GiB" in made(tight).warnings[0]
