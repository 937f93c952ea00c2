"""Steps to a target against the batch size, from runs that were tuned at each size.

E(b) = b S(b) = E_min (1 + b / B_c), fitted to log E; every size counts the same.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import (  # pyright: ignore[reportMissingTypeStubs]
    brentq,  # pyright: ignore[reportUnknownVariableType]
    minimize_scalar,  # pyright: ignore[reportUnknownVariableType]
)
from scipy.special import fdtri  # pyright: ignore[reportMissingTypeStubs]

from rightbatch.results import CriticalBatchSize, Status, StepsFit

Floats = NDArray[np.float64]

_SPAN = math.log(1e4)  # B_c this far beyond the sizes is as good as infinite, or zero
_GRID = 400
_PARAMETERS = 2
_ROUNDING = 1e-20  # a sum of squares of logarithms below this is none


def fit_steps(
    batch_sizes: Sequence[float], examples: Sequence[float], *, level: float = 0.95
) -> StepsFit:
    r"""Fit ``E(b) = E_min (1 + b / B_c)`` to the examples that reaching a target took.

    Examples (or epochs, or ``b`` times the steps) at each batch size, in log space: an error of
    10 % weighs the same at every size. The interval of ``B_c`` holds all values that an F-test
    does not reject beside the best one, the scatter taken from the fit itself.

    Trap: the law holds for runs tuned at each size. A rate that suits one size only bends the
    curve, and the fit puts that down to the batch size.

    Args:
        batch_sizes: Examples per step, positive, at least two different ones.
        examples: Needed at each size, positive, in any unit.
        level: Coverage of the interval, in (0, 1).

    Returns:
        The fit. Where the data do not determine ``B_c``, its interval has an open end, 0 or
        ``None``, the other end is the bound, and the status says so. Two sizes fit exactly and
        bound nothing.

    Raises:
        ValueError: If there are too few sizes, the lengths differ, or a number is out of range.

    Example:
        Twice the examples at 300, and 4/3 of them at 100: E_min = 6, B_c = 300.

        >>> fit = fit_steps([100, 300, 900], [8.0, 12.0, 24.0])
        >>> round(fit.critical_batch_size.value, 3), round(fit.minimal_examples, 3)
        (300.0, 6.0)

        As many examples at every size: any large enough ``B_c`` will do.

        >>> fit_steps([100, 300, 900], [8.0, 8.1, 8.0]).status.value
        'not_determined'

    References:
        McCandlish et al. (2018), https://arxiv.org/abs/1812.06162, equation 2.11.
    """
    sizes, logs = _checked(batch_sizes, examples, level)
    # Where the curve bends anywhere near the sizes, this range of log B_c contains it.
    first, last = math.log(sizes.min()) - _SPAN, math.log(sizes.max()) + _SPAN
    grid = np.linspace(first, last, _GRID)
    squares = np.array([_sum_of_squares(x, sizes, logs) for x in grid])
    near = int(squares.argmin())
    bracket = (grid[max(near - 1, 0)], grid[min(near + 1, _GRID - 1)])
    found: Any = minimize_scalar(  # pyright: ignore[reportUnknownVariableType]
        _sum_of_squares,
        args=(sizes, logs),
        bounds=bracket,
        method="bounded",
        options={"xatol": 1e-10},
    )
    best = float(found.x)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    least = _sum_of_squares(best, sizes, logs)
    inside = 0 < near < _GRID - 1
    low, high = _interval(grid, squares, best, least, sizes, logs, level)
    value = math.exp(best) if inside else None
    closed = value is not None and low > 0 and high is not None
    status = Status.OK if closed else Status.NOT_DETERMINED
    return StepsFit(
        minimal_examples=math.exp(_log_minimal(best, sizes, logs)) if inside else None,
        critical_batch_size=CriticalBatchSize(
            value=value, low=low, high=high, source="sweep", status=status
        ),
        residual=math.sqrt(least / len(sizes)),
        num_sizes=len(sizes),
        status=status,
    )


def _checked(
    batch_sizes: Sequence[float], examples: Sequence[float], level: float
) -> tuple[Floats, Floats]:
    sizes, needed = np.asarray(batch_sizes, dtype=float), np.asarray(examples, dtype=float)
    if sizes.shape != needed.shape or sizes.ndim != 1:
        raise ValueError(
            f"`batch_sizes` and `examples` must be of one length, got {sizes.size} and "
            f"{needed.size}. Give one number for each size."
        )
    if len(set(sizes.tolist())) < _PARAMETERS:
        raise ValueError(
            f"`batch_sizes` must hold at least two different sizes, got {sizes.tolist()[:5]}. "
            "One size says nothing about others."
        )
    for name, numbers in (("batch_sizes", sizes), ("examples", needed)):
        wrong = numbers[~(np.isfinite(numbers) & (numbers > 0))]
        if len(wrong):
            raise ValueError(
                f"`{name}` must be positive and finite, got {wrong[0]}. "
                "Leave out runs that did not reach the target."
            )
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie in (0, 1), got {level}. 0.95 is usual.")
    return sizes, np.log(needed)


def _log_minimal(log_critical: float, sizes: Floats, logs: Floats) -> float:
    """The best log E_min for this B_c: the mean of what the law leaves over."""
    return float((logs - np.log1p(sizes * math.exp(-log_critical))).mean())


def _sum_of_squares(log_critical: float, sizes: Floats, logs: Floats) -> float:
    left = logs - np.log1p(sizes * math.exp(-log_critical))
    return float(((left - left.mean()) ** 2).sum())


def _interval(
    grid: Floats,
    squares: Floats,
    best: float,
    least: float,
    sizes: Floats,
    logs: Floats,
    level: float,
) -> tuple[float, float | None]:
    """Ends of the B_c that an F-test does not reject; 0 and ``None`` where it rejects none."""
    degrees = len(sizes) - _PARAMETERS
    if degrees == 0:
        return 0.0, None
    allowed = max(least, _ROUNDING) * (1 + float(fdtri(1, degrees, level)) / degrees)

    def excess(log_critical: float) -> float:
        return _sum_of_squares(log_critical, sizes, logs) - allowed

    # The sum of squares rises on both sides of the best, so there is one crossing on each.
    low = 0.0 if squares[0] <= allowed else math.exp(_crossing(excess, grid[0], best))
    high = None if squares[-1] <= allowed else math.exp(_crossing(excess, best, grid[-1]))
    return low, high


def _crossing(function: Callable[[float], float], left: float, right: float) -> float:
    root = cast(float, brentq(function, left, right))
    return float(root)
