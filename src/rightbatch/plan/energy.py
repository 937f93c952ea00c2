"""Joules of each way to train, where joules were measured.

joules of a run = steps(b) x devices x passes x joules of one pass at the micro-batch size
"""

import numpy as np
from numpy.typing import NDArray

from rightbatch.errors import CannotPlan
from rightbatch.hardware.step_curve import interpolate, never_falling
from rightbatch.plan.candidates import Way
from rightbatch.results import EnergyProfile

Floats = NDArray[np.float64]

_NORMAL_95 = 2 * 1.959964  # width of a 95 % interval in standard deviations


def check_energy(objective: str, energy: EnergyProfile | None) -> None:
    """Refuse to save joules that nobody measured.

    Raises:
        CannotPlan: If so.
    """
    if objective == "energy" and (energy is None or not energy.points):
        raise CannotPlan(
            "`objective` 'energy' needs measured joules, and none were. Plan for 'time' or 'cost', "
            "or measure them where the device has counters: rightbatch.measure_energy(task, sizes)."
        )


def joules_per_step(ways: tuple[Way, ...], energy: EnergyProfile) -> Floats:
    """Joules of an optimizer step of each way, on all its devices; infinite where not known.

    Between measured sizes they are interpolated as seconds are, and beyond them nothing is known.
    What devices draw while gradients are added up is not in it.

    Example:
        Three joules at 8 and five at 16; two devices take two passes of 12 each, then 32:

        >>> from rightbatch.results import EnergyPoint, Status
        >>> points = tuple(EnergyPoint(batch_size=b, joules_per_step=j, low=j, high=j)
        ...                for b, j in ((8, 3.0), (16, 5.0)))
        >>> energy = EnergyProfile(points=points, joules=1.0, joules_per_example=0.25,
        ...                        window_seconds=5.0, price_per_kwh=None, status=Status.OK)
        >>> ways = (Way(48, 12, 2, True, devices=2), Way(32, 32, 1, True))
        >>> joules_per_step(ways, energy).tolist()
        [16.0, inf]
    """
    return _joules_per_pass(ways, energy, 1.0) * _passes(ways) + _unknown(ways, energy)


def draw_energies(
    ways: tuple[Way, ...], energy: EnergyProfile, critical: Floats, generator: np.random.Generator
) -> Floats:
    """Joules to the same loss, over ``S_min``, shape [draws, ways].

    Args:
        ways: Candidates.
        energy: Its points' intervals become the spread of the joules.
        critical: Draws of ``B_c``, shape [draws].
        generator: Of the draws.
    """
    spread = np.array([np.log(max(p.high / p.low, 1.0)) for p in energy.points])
    errors = generator.standard_normal((len(critical), len(spread))) * spread / _NORMAL_95
    joules = _joules_per_pass(ways, energy, np.exp(errors)) * _passes(ways)
    sizes = np.array([way.batch_size for way in ways], dtype=float)
    return (1 + critical[:, None] / sizes) * joules + _unknown(ways, energy)


def _joules_per_pass(
    ways: tuple[Way, ...], energy: EnergyProfile, factors: Floats | float
) -> Floats:
    """Joules of one pass of each way, less what other work added; beyond the ends, those there.

    Args:
        ways: Candidates.
        energy: Measured.
        factors: Of the joules at the measured sizes, shape [draws, points].
    """
    sizes = np.array([point.batch_size for point in energy.points], dtype=float)
    joules = never_falling([point.joules_per_step for point in energy.points])
    micros = np.array([way.micro_batch_size for way in ways], dtype=float)
    return interpolate(sizes, joules * factors, np.clip(micros, sizes[0], sizes[-1]))


def _passes(ways: tuple[Way, ...]) -> Floats:
    return np.array([way.accumulation_steps * way.devices for way in ways], dtype=float)


def _unknown(ways: tuple[Way, ...], energy: EnergyProfile) -> Floats:
    """Infinity where the micro-batch lies beyond the measured sizes, else 0."""
    low, high = energy.points[0].batch_size, energy.points[-1].batch_size
    return np.array([0.0 if low <= way.micro_batch_size <= high else np.inf for way in ways])
