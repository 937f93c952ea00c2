"""Averages of both parts over a run: stand-in until the real one lands."""

import math
from typing import Any, final

import numpy as np

from rightbatch.noise.estimators import NoiseEstimate


@final
class RunningNoise:
    def __init__(self, half_life: float | None = None) -> None:
        self._half_life = half_life
        self._weight = 0.0
        self._t: Any = 0.0
        self._g: Any = 0.0
        self._n = 0
        self._units = 0.0

    def add(self, trace_cov: Any, grad_sq: Any, *, examples: float) -> None:
        decay = 1.0 if self._half_life is None else 0.5 ** (examples / self._half_life)
        self._weight = self._weight * decay + 1.0
        self._t = np.asarray(self._t) * decay + trace_cov
        self._g = np.asarray(self._g) * decay + grad_sq
        self._n += 1
        self._units += examples

    def means(self) -> Any:
        return np.atleast_1d(self._t / self._weight), np.atleast_1d(self._g / self._weight)

    def estimate(self) -> NoiseEstimate:
        t, g = self.means()
        return NoiseEstimate(
            grad_sq=float(g[0]), trace_cov=float(t[0]), var_grad_sq=math.inf, var_trace_cov=0.0,
            covariance=0.0, quadratic_share=0.0, units=self._units, micro_batches=self._n,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"w": self._weight, "t": np.asarray(self._t).tolist(), "g": np.asarray(self._g).tolist(), "n": self._n, "u": self._units}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weight, self._n, self._units = state["w"], state["n"], state["u"]
        self._t, self._g = np.asarray(state["t"]), np.asarray(state["g"])
