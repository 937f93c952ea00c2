"""What a monitor has measured so far: averages of both parts, and how much they rest on."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from torch import nn

from rightbatch.noise.estimators import NoiseEstimate
from rightbatch.noise.measured_step import Solved
from rightbatch.noise.record import by_geometry, interval_status, split_by_layer
from rightbatch.noise.running import RunningNoise
from rightbatch.results import NoiseScale, Status


@final
class Averages:
    """Both parts, in each metric and of each parameter, averaged over measured steps.

    Args:
        named: Name and parameter, in the order of the steps' columns.
        half_life_examples: Examples after which a step counts half; ``None``: set later, until
            then nothing is forgotten.
    """

    def __init__(
        self, named: Sequence[tuple[str, nn.Parameter]], half_life_examples: float | None
    ) -> None:
        self.named = list(named)
        self.half_life_examples = half_life_examples
        self.covered = [True] * len(self.named)
        self.measured = self.skipped = 0  # steps
        self._examples = self._small_examples = 0.0  # in measured steps
        self._examples_then = 0.0  # seen by all ranks when the last step was measured
        self._running: dict[str, RunningNoise] = {}

    def add(self, solved: Solved, metrics: Sequence[str], uncovered: Sequence[int]) -> None:
        """Add one measured step.

        Args:
            solved: Its estimates.
            metrics: What its columns are.
            uncovered: Parameters that are left out.
        """
        self.covered = [index not in uncovered for index in range(len(self.named))]
        self.measured += 1
        self._examples += solved.examples
        self._small_examples += solved.small_examples
        keep = self._keep(solved.examples_seen)
        kept = np.array(self.covered)[:, None]
        trace_cov, grad_sq = solved.trace_cov * kept, solved.grad_sq * kept
        for index, name in enumerate(metrics):
            noise, signal = trace_cov[:, index], grad_sq[:, index]
            cells = 1 + len(noise) if name == "euclidean" else 1  # the whole, then parameters
            running = self._running.setdefault(name, RunningNoise(cells))
            running.add(
                np.concatenate([[noise.sum()], noise])[:cells],
                np.concatenate([[signal.sum()], signal])[:cells],
                weight=solved.examples,
                keep=keep,
            )

    def _keep(self, examples_seen: float) -> float:
        """Return what earlier measurements count now, by the examples seen since the last."""
        elapsed = examples_seen - self._examples_then
        self._examples_then = examples_seen
        return 0.5 ** (elapsed / self.half_life_examples) if self.half_life_examples else 1.0

    def estimates(self) -> dict[str, NoiseEstimate]:
        """Return both parts with their variances, in each metric that was measured."""
        return {name: running.estimate() for name, running in self._running.items()}

    def result(self, *, small_gradients: str, ghost: bool, fitting: str) -> NoiseScale:
        """Lay out the averages.

        Args:
            small_gradients: Where they came from.
            ghost: Whether BatchNorm makes the micro-batch the unit.
            fitting: The geometry that fits the optimizer.
        """
        estimates = self.estimates()
        whole = estimates.get("euclidean")
        interval = (0.0, None) if whole is None else whole.interval()
        sizes = np.array([parameter.numel() for _, parameter in self.named])
        micro = round(self._small_examples / self.measured) if self.measured else 0
        layers = ()
        if whole is not None:
            trace_cov, grad_sq = (part[1:] for part in self._running["euclidean"].means())
            layers = split_by_layer(self.named, trace_cov, grad_sq, whole.trace_cov, whole.grad_sq)
        return NoiseScale(
            noise_scale=None if whole is None else whole.ratio,
            low=interval[0],
            high=interval[1],
            grad_sq=0.0 if whole is None else whole.grad_sq,
            trace_cov=0.0 if whole is None else whole.trace_cov,
            examples_used=round(self._examples),
            geometry="euclidean",
            loss=None,
            micro_batch_size=micro,
            status=Status.NOT_YET if whole is None else interval_status(interval),
            small_gradients=small_gradients,
            ghost_batch_size=micro if ghost else None,
            coverage=float(sizes[self.covered].sum() / sizes.sum()),
            uncovered=tuple(
                name
                for (name, _), covered in zip(self.named, self.covered, strict=True)
                if not covered
            ),
            geometries=by_geometry(estimates, fitting, adaptive=fitting == "adam"),
            layers=layers,
            steps_measured=self.measured,
            steps_skipped=self.skipped,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            "half_life_examples": self.half_life_examples,
            "covered": list(self.covered),
            "steps": [self.measured, self.skipped],
            "examples": [self._examples, self._small_examples, self._examples_then],
            "running": {name: running.state_dict() for name, running in self._running.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another one stood."""
        self.half_life_examples = state["half_life_examples"]
        self.covered = list(state["covered"])
        self.measured, self.skipped = state["steps"]
        self._examples, self._small_examples, self._examples_then = state["examples"]
        self._running = {}
        for name, saved in state["running"].items():
            self._running[name] = RunningNoise()
            self._running[name].load_state_dict(saved)
