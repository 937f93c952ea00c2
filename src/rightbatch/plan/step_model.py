"""Seconds of one optimizer step on several devices.

step = accumulation_steps x (seconds(micro) - optimizer) + optimizer + all-reduce
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.hardware.step_curve import StepCurve
from rightbatch.results import Communication, ThroughputProfile

Floats = NDArray[np.float64]

BYTES_PER_GRADIENT = 4  # float32, as torch's data parallel training adds them up
_BITS_PER_BYTE = 8
_TRUSTED = 2  # times the devices that were measured; beyond, other links and latencies begin


@dataclass(frozen=True, slots=True)
class Exchange:
    """Seconds of an optimizer step for adding up gradients, with the ends of their interval."""

    seconds: float = 0.0
    low: float = 0.0
    high: float = 0.0


FREE = Exchange()


def allreduce_seconds(parameters: int, devices: int, gbps: float | None) -> float:
    r"""Time to add up the gradients of all devices, in a ring.

    Every device sends and receives ``2 (G - 1) / G`` times the gradient: once around the ring to
    add, once to hand out the sums.

    Trap: an upper bound where the exchange overlaps the backward pass, and a lower one where
    latency counts (small models, many devices). Measured times beat it.

    Args:
        parameters: Trainable ones; 4 bytes of gradient each.
        devices: In the ring.
        gbps: Gigabits per second that a device sends, and receives. ``None``: counted as free.

    Returns:
        Seconds per optimizer step; 0 on one device.

    Example:
        A billion bytes (250 million parameters) on two devices, 8 gigabits a second: each sends
        the gradient once, a gigabyte at a gigabyte a second.

        >>> allreduce_seconds(250_000_000, devices=2, gbps=8.0)
        1.0
        >>> allreduce_seconds(250_000_000, devices=1, gbps=8.0)
        0.0

    References:
        Patarasuk and Yuan (2009), Bandwidth optimal all-reduce algorithms for clusters of
        workstations, https://doi.org/10.1016/j.jpdc.2008.09.002.
    """
    if gbps is None:
        return 0.0
    gradient_bits = parameters * BYTES_PER_GRADIENT * _BITS_PER_BYTE
    return _sent_over_gradient(devices) * gradient_bits / (gbps * 1e9)


def measured_exchange(measured: Communication, devices: int) -> Exchange:
    """Time to average the gradients of all devices, from what was measured on some.

    What a step with averaging took beyond one without, where both were timed: computing hid the
    rest, and other micro-batches may hide less, down to nothing. Else the averaging alone. On
    other counts what a ring sends grows or shrinks.

    Example:
        A ring of two sends the gradient once, one of four 1.5 times:

        >>> from dataclasses import replace
        >>> from rightbatch.results import Status
        >>> measured = Communication(world_size=2, gradient_bytes=80, allreduce_seconds=0.5,
        ...     low=0.25, high=1.0, no_sync_step_seconds=2.0, sync_step_seconds=2.125, gbps=1.0,
        ...     status=Status.OK)
        >>> measured_exchange(measured, 2)
        Exchange(seconds=0.125, low=0.125, high=0.5)
        >>> measured_exchange(replace(measured, sync_step_seconds=None), 4)
        Exchange(seconds=0.75, low=0.375, high=1.5)
    """
    ratio = _sent_over_gradient(devices) / _sent_over_gradient(measured.world_size)
    alone = measured.allreduce_seconds
    exposed = exposed_seconds(measured)
    if exposed is None:
        return Exchange(alone * ratio, measured.low * ratio, measured.high * ratio)
    return Exchange(exposed * ratio, min(exposed, alone) * ratio, max(exposed, alone) * ratio)


def exposed_seconds(measured: Communication) -> float | None:
    """What averaging adds to a step beside computing; ``None``: such steps were not timed."""
    if measured.sync_step_seconds is None or measured.no_sync_step_seconds is None:
        return None
    return max(0.0, measured.sync_step_seconds - measured.no_sync_step_seconds)


def is_trusted(measured: Communication | None, devices: int) -> bool:
    """Whether a measured time may be carried over: to at most twice as many devices."""
    return measured is not None and devices <= _TRUSTED * measured.world_size


def _sent_over_gradient(devices: int) -> float:
    """What a device of a ring sends, in gradients."""
    return 2 * (devices - 1) / devices


def pass_curve(throughput: ThroughputProfile) -> StepCurve:
    """Seconds of one pass: what a training loop pays, loading included, never falling."""
    return StepCurve.training(throughput.points)
