"""Oracle: what a ring sends, by hand (rung 1)."""

from dataclasses import replace

import pytest

from rightbatch.plan import plan
from rightbatch.plan.step_model import is_trusted, measured_exchange
from rightbatch.results import Communication, Plan, Status
from tests.plan.made_up import critical, facts, throughput


def measured(world_size: int = 2, seconds: float = 0.02) -> Communication:
    return Communication(
        world_size=world_size,
        gradient_bytes=4 * 10**6,
        allreduce_seconds=seconds,
        low=seconds,
        high=seconds,
        no_sync_step_seconds=None,
        sync_step_seconds=None,
        gbps=1.6,
        status=Status.OK,
    )


def made(*extra: Communication, gbps: float | None = None, counts: list[int] | None = None) -> Plan:
    million = facts(parameters=10**6)
    counts = counts or [1, 2, 4, 8]
    return plan(throughput(), critical(1e4), million, *extra, devices=counts, allreduce_gbps=gbps)


def communication(plan: Plan) -> dict[int, float]:
    """Seconds of it on each number of devices; all candidates must agree."""
    seconds = {(c.devices or 0, c.communication_seconds) for c in plan.candidates}
    assert len(seconds) == len({devices for devices, _ in seconds})
    return dict(seconds)


def test_the_measured_time_is_used_and_scaled_as_a_ring_sends() -> None:
    found = communication(made(measured()))
    assert found == {
        1: 0.0,
        2: 0.02,
        4: pytest.approx(0.03),  # 2 x 3/4 gradients where 2 x 1/2 took 20 ms
        8: pytest.approx(0.035),
    }
    assert communication(made(measured(4, 0.03)))[2] == pytest.approx(0.02)


def test_steps_contain_it_once() -> None:
    for c in made(measured()).candidates:
        passes = c.accumulation_steps * (0.01 + 0.001 * c.micro_batch_size)
        assert c.step_seconds == pytest.approx(passes + c.communication_seconds, rel=1e-9)


def test_beyond_twice_the_measured_count_it_is_assumed_and_said_so() -> None:
    result = made(measured())
    assert {(c.devices, c.assumed) for c in result.candidates} == {
        (1, False),
        (2, False),
        (4, False),
        (8, True),
    }
    assert {(p.devices, p.assumed) for p in result.front} <= {
        (1, False), (2, False), (4, False), (8, True),
    }  # fmt: skip
    (warning,) = result.warnings
    assert "measured on 2 devices" in warning
    assert "on 8 devices it is assumed, from the measured time, carried over" in warning
    assert made(measured(), counts=[1, 2, 4]).warnings == ()


def test_a_named_bandwidth_counts_only_where_the_measured_time_does_not() -> None:
    found = communication(made(measured(), gbps=3.2))
    assert found[2] == 0.02
    assert found[4] == pytest.approx(0.03)
    assert found[8] == pytest.approx(2 * 7 / 8 * 0.01)  # 32 million bits at 3.2e9 a second
    (warning,) = made(measured(), gbps=3.2).warnings
    assert "from the named bandwidth" in warning


def test_without_a_measured_time_nothing_changes() -> None:
    assert set(communication(made()).values()) == {0.0}
    assert "counted as free" in made().warnings[0]
    assert all(c.assumed == (c.devices != 1) for c in made(gbps=1.0).candidates)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([2], "takes 20 ms of each step"),
        ([4], "carried over from 2 devices"),
        ([8], "is assumed to take 35 ms of each step"),
    ],
)
def test_the_reasons_say_where_the_time_is_from(counts: list[int], words: str) -> None:
    (reason,) = (r for r in made(measured(), counts=counts).reasons if "gradients of" in r)
    assert words in reason


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_scaling_back_gives_what_was_measured(world_size: int, devices: int) -> None:
    there = measured(world_size)
    if devices > 1:
        seconds = measured_exchange(there, devices).seconds
        moved = replace(there, world_size=devices, allreduce_seconds=seconds)
        assert measured_exchange(moved, world_size).seconds == pytest.approx(0.02)
    assert is_trusted(there, devices) == (devices <= 2 * world_size)
    assert not is_trusted(None, devices)
