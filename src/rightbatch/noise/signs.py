r"""The noise scale of a step of signs: ``(sum_i sigma_i)^2 / |G|_1^2``.

``|G|_1`` has no unbiased estimate, so it is put between two: the norm of the mean of all
gradients is too large, since noise does not cancel under ``|.|``; the inner product of
each gradient with the signs of the mean of those before it is too small, since some signs are
wrong. Both need single coordinates, so at most 16,384 of each tensor are looked at.

References:
    Non-Euclidean gradient noise scales, https://arxiv.org/abs/2602.03001.
"""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from rightbatch.noise.precision import sum_dtype
from rightbatch.results import GeometryNoise, Status

_COORDINATES = 1 << 14  # of each tensor; their sums then err by less than 1 %


@final
class Signs:
    """Sums over coordinates, taken while gradients are accumulated.

    Call `begin` before each backward pass, `take` for each parameter's gradient in it, and
    `noise` at the end.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._steps = [max(1, p.numel() // _COORDINATES) for p in parameters]
        self._squares: list[Tensor | None] = [None] * len(self._parameters)  # sum_k w_k g_k^2
        device = parameters[0].device
        self._agreement = torch.zeros((), dtype=sum_dtype(device), device=device)
        self._weight = self._before = self._pairs = 0.0  # w_k, W_k = sum_{j<k} w_j, sum w_k W_k
        self._count = 0

    def begin(self, weight: float) -> None:
        """Begin a micro-batch of this weight (any unit)."""
        self._before += self._weight
        self._weight = weight
        self._pairs += weight * self._before
        self._count += 1

    def take(self, index: int, gradient: Tensor, before: Tensor | None) -> None:
        """Note ``w_k g_k`` of one parameter, and the sum of all before it."""
        sample = self._sample(index, gradient)
        square = sample.square() / self._weight
        known = self._squares[index]
        self._squares[index] = square if known is None else known + square
        if before is not None:
            signs = self._sample(index, before).sign()
            agreement = torch.dot(sample, signs) * (self._before * self._steps[index])
            self._agreement += agreement.to(self._agreement.device)

    def noise(self, examples_per_weight: float, *, fits: bool) -> GeometryNoise:
        """Put the noise scale between its two estimates; ``.grad`` holds ``sum_k w_k g_k``.

        Args:
            examples_per_weight: How many examples a weight of 1 stands for.
            fits: Whether the task's optimizer takes steps of signs.

        Returns:
            The geometric mean of the two; they are its interval.
        """
        total = self._before + self._weight
        deviations, norm = 0.0, 0.0
        for index, parameter in enumerate(self._parameters):
            squares = self._squares[index]
            if squares is None or parameter.grad is None:
                continue
            mean = self._sample(index, parameter.grad) / total
            scatter = (squares - total * mean.square()).clamp_min(0) / (self._count - 1)
            deviations += self._steps[index] * scatter.sqrt().sum().item()
            norm += self._steps[index] * mean.abs().sum().item()
        # The root of a variance from few micro-batches is too small on average.
        deviations *= 1 + 1 / (4 * (self._count - 1))
        largest, smallest = norm, self._agreement.item() / self._pairs
        scale = deviations**2 * examples_per_weight
        ends = [scale / norm**2 for norm in (largest, smallest) if norm > 0]
        bounded = len(ends) == 2  # both err at random too, so they may come out crossed
        return GeometryNoise(
            geometry="sign",
            noise_scale=math.sqrt(ends[0] * ends[1]) if bounded else None,
            low=min(ends, default=0.0),
            high=max(ends) if bounded else None,
            fits=fits,
            status=Status.BRACKET,
        )

    def _sample(self, index: int, tensor: Tensor) -> Tensor:
        if tensor.is_sparse:
            tensor = tensor.to_dense()
        sample = tensor.detach().reshape(-1)[:: self._steps[index]]
        return sample if sample.dtype == torch.float64 else sample.float()
