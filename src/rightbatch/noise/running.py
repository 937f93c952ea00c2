r"""Averages of both parts over a run that forgets, and what they are worth.

Every measured step adds one unbiased estimate of both parts. Their weighted sums are carried, and
divided once: the mean of noisy ratios would be wrong exactly where noise dominates. Forgetting
multiplies all sums by a factor below 1, so the sum of weights debiases itself.

The interval comes from how blocks of consecutive steps scatter around the mean, since steps that
follow each other are not quite independent. With block sums ``a_b`` of weight ``w_b``,

    Var[sum a_b / sum w_b] = n/(n-1) sum (a_b - w_b mean)^2 / (sum w_b)^2,  n = (sum w)^2 / sum w^2

and the square is expanded, so that three decayed sums replace the list of blocks.
"""

import math
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from rightbatch.noise.estimators import NoiseEstimate

Floats = NDArray[np.float64]

_BLOCK = 4  # measured steps in a block
_FEWEST_BLOCKS = 3.0  # below it their scatter says nothing


@final
class RunningNoise:
    """Averages both parts, of the whole and of any further cells.

    Args:
        cells: How many pairs of parts every step adds. The first is the whole: it gets an
            interval, the others (layers) their averages alone.

    Example:
        >>> running = RunningNoise()
        >>> for trace_cov, grad_sq in [(9.0, 1.0), (11.0, 3.0)]:
        ...     running.add([trace_cov], [grad_sq], weight=1.0)
        >>> running.estimate().ratio
        5.0
    """

    def __init__(self, cells: int = 1) -> None:
        self._weight = 0.0  # sum of weights, all steps
        self._parts = np.zeros((2, cells))  # sum of weight * (trace_cov, grad_sq)
        self._open_weight, self._open = 0.0, np.zeros(2)  # of the block that is being filled
        self._open_steps = 0
        self._squared_weights = 0.0  # sum w_b^2 over closed blocks
        self._crossed = np.zeros(2)  # sum w_b a_b
        self._squares = np.zeros((2, 2))  # sum a_b a_b'

    def add(self, trace_cov: Any, grad_sq: Any, *, weight: float, keep: float = 1.0) -> None:
        """Add one measured step.

        Args:
            trace_cov: ``tr(Sigma)`` of every cell, shape [cells].
            grad_sq: ``|G|^2`` of every cell, shape [cells]; may be negative.
            weight: Of this step, positive: the examples in it. It must not depend on the
                estimates, or their errors would choose their own weight.
            keep: What all that was known before counts now, in (0, 1].

        Raises:
            ValueError: If a number is not finite.
        """
        parts = np.array([trace_cov, grad_sq], dtype=np.float64)
        if not np.isfinite(parts).all():
            raise ValueError(
                f"`trace_cov` and `grad_sq` must be finite, got {parts[:, 0].tolist()}. "
                "One infinity would stay in the average for ever: leave that step out."
            )
        self._forget(keep)
        self._weight += weight
        self._parts += weight * parts
        self._open_weight += weight
        self._open += weight * parts[:, 0]
        self._open_steps += 1
        if self._open_steps == _BLOCK:
            self._squared_weights, self._crossed, self._squares = self._blocks()
            self._open_weight, self._open, self._open_steps = 0.0, np.zeros(2), 0

    def _forget(self, keep: float) -> None:
        self._weight *= keep
        self._parts *= keep
        self._open_weight *= keep
        self._open *= keep
        self._squared_weights *= keep**2
        self._crossed *= keep**2
        self._squares *= keep**2

    def _blocks(self) -> tuple[float, Floats, Floats]:
        """The three sums over blocks, the open one included."""
        return (
            self._squared_weights + self._open_weight**2,
            self._crossed + self._open_weight * self._open,
            self._squares + np.outer(self._open, self._open),
        )

    def means(self) -> tuple[Floats, Floats]:
        """Return the averages of ``tr(Sigma)`` and ``|G|^2``, each of shape [cells]."""
        trace_cov, grad_sq = self._parts / self._weight
        return trace_cov, grad_sq

    def estimate(self) -> NoiseEstimate:
        """Return the averages of the whole, with their variances.

        Before there are three blocks the variance of ``|G|^2`` is infinite: no interval.
        """
        mean = self._parts[:, 0] / self._weight
        squared_weights, crossed, squares = self._blocks()
        blocks = self._weight**2 / squared_weights
        covariance = np.full((2, 2), math.inf)
        if blocks >= _FEWEST_BLOCKS:
            scatter = (
                squares
                - np.outer(mean, crossed)
                - np.outer(crossed, mean)
                + np.outer(mean, mean) * squared_weights
            )
            covariance = blocks / (blocks - 1) * scatter / self._weight**2
        known = bool(np.isfinite(covariance).all())
        return NoiseEstimate(
            grad_sq=float(mean[1]),
            trace_cov=float(mean[0]),
            var_grad_sq=max(0.0, float(covariance[1, 1])),
            var_trace_cov=max(0.0, float(covariance[0, 0])),
            covariance=float(covariance[0, 1]) if known else 0.0,
            quadratic_share=0.0,
            units=self._weight,
            micro_batches=0,
            degrees=max(1.0, blocks - 1),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            "weight": self._weight,
            "parts": self._parts.tolist(),
            "open": [self._open_steps, self._open_weight, *self._open.tolist()],
            "squared_weights": self._squared_weights,
            "crossed": self._crossed.tolist(),
            "squares": self._squares.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another one stood."""
        self._weight, self._parts = float(state["weight"]), np.array(state["parts"])
        self._open_steps, self._open_weight, *rest = state["open"]
        self._open = np.array(rest)
        self._squared_weights = float(state["squared_weights"])
        self._crossed, self._squares = np.array(state["crossed"]), np.array(state["squares"])
