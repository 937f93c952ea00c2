"""The ways to train that a plan weighs: their steps, their times, and the doubt in both.

time(b) = steps(b) x step_seconds(b)
steps(b) = S_min (1 + B_c / b)                                       statistics
step_seconds(b) = accumulated passes + all-reduce                    hardware, see `step_model`
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.hardware.step_curve import accumulated, interpolate, optimizer_seconds
from rightbatch.plan.step_model import FREE, Exchange, pass_curve
from rightbatch.results import CriticalBatchSize, MemoryProfile, Status, ThroughputProfile

Floats = NDArray[np.float64]

_ACCUMULATION = 64  # largest number of micro-batches per step that is considered
_UNKNOWN_SPAN = 1000.0  # an unbounded critical batch size is drawn from [low, low * span]
_NORMAL_95 = 2 * 1.959964  # width of a 95 % interval in standard deviations


@dataclass(frozen=True, slots=True)
class Way:
    """One batch size on so many devices, and the micro-batches that make it up."""

    batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    fits: bool
    devices: int = 1
    exchange: Exchange = FREE


def list_ways(
    throughput: ThroughputProfile,
    memory: MemoryProfile | None,
    *,
    devices: int,
    examples: int | None,
    current_batch_size: int | None,
    exchange: Exchange = FREE,
) -> tuple[Way, ...]:
    """List batch sizes from the smallest measured one upwards, each with its best micro-batch.

    Args:
        throughput: Seconds per step; no size outside its measured range is ever used.
        memory: Which micro-batches fit; without it, or where its search ran out of time, those
            that were timed do.
        devices: Devices that share a batch.
        examples: In one epoch: no batch exceeds it.
        current_batch_size: Listed whatever it is, if it can be made up of measured sizes; also
            in one pass, as it is trained with, if that lies in the measured range and fits.
        exchange: Of gradients, on so many devices.

    Returns:
        Ways in ascending order of batch size. The largest measured size that does not fit is
        listed too, marked.
    """
    measured = [point.batch_size for point in throughput.points]
    cap = measured[-1]  # what was timed was executed
    if memory is not None and memory.status not in (Status.OUT_OF_TIME, Status.LEAK):
        cap = memory.max_verified_batch_size
    micros = sorted({*_powers_of_two(measured[-1]), *measured})
    micros = [size for size in micros if size >= measured[0]]
    sizes = {micro * devices for micro in micros}
    sizes |= {power * devices for power in _powers_of_two(micros[-1] * _ACCUMULATION)}
    # What fits is rarely a power of two: several passes of it are no power either.
    passes = _powers_of_two(_ACCUMULATION)
    sizes |= {micro * k * devices for micro in measured if micro <= cap for k in passes}
    layouts: set[tuple[int, int]] = set()  # batch size, micro-batch size
    if current_batch_size is not None:
        sizes.add(current_batch_size)
        share, rest = divmod(current_batch_size, devices)
        if rest == 0 and measured[0] <= share <= min(cap, measured[-1]):
            layouts.add((current_batch_size, share))
    best = _best_micro_batch(throughput, micros, cap)
    for size in sizes:
        share, rest = divmod(size, devices)
        micro = best(share) if rest == 0 else None
        if micro is not None:
            layouts.add((size, micro))
    return tuple(
        Way(size, micro, size // (micro * devices), micro <= cap, devices, exchange)
        for size, micro in sorted(layouts)
        if examples is None or size <= examples
    )


def _best_micro_batch(
    throughput: ThroughputProfile, micros: list[int], cap: int
) -> Callable[[int], int | None]:
    """Answer which micro-batch makes up a device's share fastest: of those that fit, if any do."""
    seconds = dict(zip(micros, pass_curve(throughput).read(micros), strict=True))
    optimizer = optimizer_seconds(throughput)

    def best(share: int) -> int | None:
        splits = [m for m in micros if share % m == 0 and share // m <= _ACCUMULATION]
        fitting = [m for m in splits if m <= cap]
        # A larger micro-batch wins a tie: fewer passes, and less depends on the interpolation.
        return min(
            fitting or splits,
            key=lambda m: ((seconds[m] - optimizer) * (share // m), -m),
            default=None,
        )

    return best


def find_today(ways: tuple[Way, ...], today: int | None) -> int | None:
    """Find what is trained with today: its batch size on the fewest devices, in the fewest passes.

    Example:
        >>> ways = (Way(8, 8, 1, True), Way(16, 8, 2, True), Way(16, 16, 1, True))
        >>> find_today(ways, 16), find_today(ways, 24)
        (2, None)
    """
    here = min(way.devices for way in ways)
    same = [i for i, w in enumerate(ways) if (w.batch_size, w.devices) == (today, here)]
    return min(same, key=lambda i: ways[i].accumulation_steps, default=None)


def step_seconds(ways: tuple[Way, ...], throughput: ThroughputProfile) -> Floats:
    """Seconds of an optimizer step of each way."""
    passes = pass_curve(throughput).read(_column(ways, "micro_batch_size"))
    optimizer = optimizer_seconds(throughput)
    step = accumulated(passes, _column(ways, "accumulation_steps"), optimizer)
    return step + np.array([way.exchange.seconds for way in ways])


def draw_critical(
    critical: CriticalBatchSize, draws: int, generator: np.random.Generator
) -> Floats:
    """Draw critical batch sizes from what is known of it, shape [draws].

    Log-normal on either side of the value where the interval is closed. Where its upper end is
    open, the half above the value is as wide again as a thousandfold doubt; where there is no
    value, log-uniform from the lower end over that span.
    """
    value, low, high = critical.value, critical.low, critical.high
    if value is None or value <= 0:
        if high is not None:  # no noise to speak of: anything up to the upper end
            return generator.uniform(0, max(high, 1e-9), size=draws)
        return max(low, 1.0) * _UNKNOWN_SPAN ** generator.uniform(size=draws)
    sigmas = _NORMAL_95 / 2
    down = np.log(value / min(max(low, value / _UNKNOWN_SPAN), value)) / sigmas
    up = np.log(max(_UNKNOWN_SPAN if high is None else high / value, 1.0)) / sigmas
    z = generator.standard_normal(draws)
    return value * np.exp(np.maximum(z, 0) * up + np.minimum(z, 0) * down)


def draw_times(
    ways: tuple[Way, ...],
    throughput: ThroughputProfile,
    critical: Floats,
    generator: np.random.Generator,
) -> Floats:
    """Times to the same loss, over ``S_min``, in seconds, shape [draws, ways].

    Args:
        ways: Candidates.
        throughput: The intervals of its passes become their spread; loading adds none.
        critical: Draws of ``B_c``, shape [draws].
        generator: Of the draws.
    """
    curve = pass_curve(throughput)
    spread = np.log(curve.high / np.where(curve.low > 0, curve.low, curve.high))
    errors = generator.standard_normal((len(critical), len(spread))) * spread / _NORMAL_95
    micros = _column(ways, "micro_batch_size")
    seconds = interpolate(curve.sizes, curve.seconds * np.exp(errors), micros)
    optimizer = optimizer_seconds(throughput)
    step = accumulated(seconds, _column(ways, "accumulation_steps"), optimizer)
    step = step + _draw_exchanges(ways, len(critical), generator)
    return (1 + critical[:, None] / _column(ways, "batch_size")) * step


def _draw_exchanges(ways: tuple[Way, ...], draws: int, generator: np.random.Generator) -> Floats:
    """Seconds of adding up gradients, shape [draws, ways].

    Measured once, so one draw is for all ways. Normal on either side of the value, not log-normal:
    computing may hide it all, and zero has no logarithm.
    """
    table = [(way.exchange.low, way.exchange.seconds, way.exchange.high) for way in ways]
    low, middle, high = np.array(table).T
    if (low == high).all():
        return np.broadcast_to(middle, (draws, len(ways)))
    z = generator.standard_normal((draws, 1)) / (_NORMAL_95 / 2)
    spread = np.maximum(z, 0) * (high - middle) + np.minimum(z, 0) * (middle - low)
    return np.maximum(middle + spread, 0.0)


def _column(ways: tuple[Way, ...], name: str) -> Floats:
    return np.array([getattr(way, name) for way in ways], dtype=float)


def _powers_of_two(largest: int) -> list[int]:
    return [1 << k for k in range(largest.bit_length())]
