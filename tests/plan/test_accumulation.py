"""Micro-batches at the edge of memory, several times over. Oracle: every layout (rung 2)."""

import pytest

from rightbatch.plan import plan
from rightbatch.results import Plan
from tests.plan.made_up import critical, facts, memory, throughput

DEVICES, B_C, PARAMETERS, GBPS = 8, 5000.0, 10**8, 10.0


def made(sizes: tuple[int, ...], cap: int, beta: float) -> Plan:
    """A slow link: the all-reduce takes several passes' time, so accumulation pays."""
    return plan(
        throughput(0.1, beta, sizes),
        critical(B_C),
        facts(parameters=PARAMETERS, batch_size=None, examples=None),
        memory(cap),
        devices=DEVICES,
        allreduce_gbps=GBPS,
    )


@pytest.mark.parametrize(
    ("sizes", "cap", "beta"),
    [
        ((1, 2, 4, 7), 7, 0.002),
        ((1, 2, 4, 6), 6, 0.002),
        ((1, 2, 3), 3, 0.002),
        ((4, 8, 16, 32, 37), 37, 0.001),
        ((4, 8, 16, 32, 48), 48, 0.001),
        ((4, 8, 16, 32), 16, 0.001),
    ],
)
def test_what_is_taken_is_near_the_best_of_all_layouts(
    sizes: tuple[int, ...], cap: int, beta: float
) -> None:
    """1.6 times the best where only powers of two could be accumulated."""
    exchange = 2 * (DEVICES - 1) / DEVICES * PARAMETERS * 32 / (GBPS * 1e9)

    def time(micro: int, passes: int) -> float:
        step = passes * (0.1 + beta * micro) + exchange
        return (1 + B_C / (DEVICES * micro * passes)) * step

    result = made(sizes, cap, beta)
    best = min(time(m, k) for m in sizes if m <= cap for k in range(1, 65))
    taken = time(result.micro_batch_size, result.accumulation_steps)
    assert taken <= 1.1 * best  # a tie, and what lies between powers of two


def test_what_does_not_fit_is_not_accumulated() -> None:
    sizes = {c.batch_size for c in made((1, 2, 3, 7), 3, 0.002).candidates}
    assert sizes >= {3 * DEVICES * 2**k for k in range(7)}
    assert not sizes & {7 * DEVICES * 2**k for k in range(1, 7)}


def test_passes_stay_within_what_is_considered() -> None:
    result = made((1, 2, 4, 7), 7, 0.002)
    assert max(c.accumulation_steps for c in result.candidates) == 64
    assert {c.batch_size for c in result.candidates} >= {7 * DEVICES * 2**k for k in range(7)}
