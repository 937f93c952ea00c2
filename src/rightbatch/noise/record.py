"""What a frozen probe writes down, and what follows from it: floats, never a gradient."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rightbatch.noise.estimators import NoiseEstimate, estimate_noise
from rightbatch.results import GeometryNoise, LayerNoise, Status

Floats = NDArray[np.float64]


@final
@dataclass(slots=True)
class Record:
    """Three floats of every micro-batch in each metric, its loss, and sums per parameter."""

    micro_batch_size: int
    metrics: tuple[str, ...] = ("euclidean",)
    squares: list[list[float]] = field(default_factory=list[list[float]])  # [K][metrics]
    inner_products: list[list[float]] = field(default_factory=list[list[float]])  # [K][metrics]
    weights: list[float] = field(default_factory=list[float])  # units
    losses: list[float] = field(default_factory=list[float])
    by_parameter: Floats | None = None  # sum_k w_k |g_k|^2, [parameters, metrics]
    examples: int = 0

    @property
    def loss(self) -> float:
        """Mean loss over all units seen."""
        return float(np.average(self.losses, weights=self.weights))

    @property
    def units_per_example(self) -> float:
        """Mean units per example: 1, or the tokens of a sequence."""
        return sum(self.weights) / self.examples

    def add(
        self, squares: Floats, inner_products: Sequence[float], weight: float, loss: float
    ) -> None:
        """Write down one micro-batch: ``|g_k|^2`` [parameters, metrics] and the rest."""
        weighted = weight * squares
        self.by_parameter = weighted if self.by_parameter is None else self.by_parameter + weighted
        self.squares.append(squares.sum(0).tolist())
        self.inner_products.append(list(inner_products))
        self.weights.append(weight)
        self.losses.append(loss)

    def estimates(
        self, mean_squares: Floats, *, population: float | None
    ) -> dict[str, NoiseEstimate]:
        """Estimate both parts in each metric, per *example*.

        Args:
            mean_squares: ``M`` of each parameter in each metric, [parameters, metrics].
            population: See `estimate_noise`.
        """
        weights = np.array(self.weights) / self.units_per_example
        squares, inner = np.array(self.squares), np.array(self.inner_products)
        return {
            name: estimate_noise(
                squares[:, i],
                inner[:, i],
                weights,
                float(mean_squares[:, i].sum()),
                population=population,
            )
            for i, name in enumerate(self.metrics)
        }

    def layers(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        mean_squares: Floats,
        whole: NoiseEstimate,
        *,
        population: float | None,
    ) -> tuple[LayerNoise, ...]:
        """Split both parts over layers; the estimate is linear, so they add up exactly.

        Args:
            named: Name and parameter, in the order of ``mean_squares``.
            mean_squares: As in `estimates`.
            whole: The Euclidean estimate of all of them.
            population: As in `estimates`.
        """
        assert self.by_parameter is not None
        examples, count = float(self.examples), len(self.weights)
        small = self.by_parameter[:, 0] / sum(self.weights)
        trace_cov = examples * (small - mean_squares[:, 0]) / (count - 1)
        grad_sq = (count * mean_squares[:, 0] - small) / (count - 1)
        if population is not None:
            grad_sq = grad_sq + trace_cov / population
        return split_by_layer(named, trace_cov, grad_sq, whole.trace_cov, whole.grad_sq)


def split_by_layer(
    named: Sequence[tuple[str, nn.Parameter]],
    trace_cov: Floats,
    grad_sq: Floats,
    whole_trace_cov: float,
    whole_grad_sq: float,
) -> tuple[LayerNoise, ...]:
    """Gather parameters under the modules that own them, in the model's order.

    Args:
        named: Name and parameter.
        trace_cov: Of each parameter.
        grad_sq: Of each parameter.
        whole_trace_cov: Of all of them.
        whole_grad_sq: Of all of them.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> named = [(f"head.{name}", p) for name, p in layer.named_parameters()]
        >>> split = split_by_layer(named, np.array([6.0, 2.0]), np.array([1.0, 1.0]), 8.0, 2.0)
        >>> [(x.layer, x.parameters, x.noise_scale, x.noise_share) for x in split]
        [('head', 3, 4.0, 1.0)]
    """
    members: dict[str, list[int]] = {}
    for index, (name, _) in enumerate(named):
        members.setdefault(name.rpartition(".")[0] or name, []).append(index)
    layers = []
    for layer, indices in members.items():
        noise, signal = float(trace_cov[indices].sum()), float(grad_sq[indices].sum())
        layers.append(
            LayerNoise(
                layer=layer,
                parameters=sum(named[i][1].numel() for i in indices),
                grad_sq=signal,
                trace_cov=noise,
                noise_scale=noise / signal if signal > 0 else None,
                noise_share=noise / whole_trace_cov if whole_trace_cov else 0.0,
                gradient_share=signal / whole_grad_sq if whole_grad_sq else 0.0,
            )
        )
    return tuple(layers)


def by_geometry(
    estimates: dict[str, NoiseEstimate], fitting: str, *, adaptive: bool
) -> tuple[GeometryNoise, ...]:
    """Show the noise scale in each metric, and which one fits the optimizer.

    Args:
        estimates: One per metric.
        fitting: The geometry that fits.
        adaptive: Whether the optimizer has second moments that may not be warm yet.
    """
    shown = [
        GeometryNoise(
            geometry=name,
            noise_scale=estimate.ratio,
            low=(interval := estimate.interval())[0],
            high=interval[1],
            fits=name == fitting,
            status=interval_status(interval),
        )
        for name, estimate in estimates.items()
    ]
    if adaptive and fitting not in estimates:
        shown.append(
            GeometryNoise(
                geometry=fitting,
                noise_scale=None,
                low=0.0,
                high=None,
                fits=True,
                status=Status.NOT_YET,
            )
        )
    return tuple(shown)


def interval_status(interval: tuple[float, float | None]) -> Status:
    """Say what an interval is worth by itself."""
    low, high = interval
    if high is not None:
        return Status.OK
    return Status.AT_LEAST if low > 0 else Status.UNRESOLVED
