"""Squared norms of gradients, per parameter and metric, without a copy of any gradient."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from rightbatch._comm import local_part
from rightbatch.errors import TaskError
from rightbatch.noise.geometry import EUCLIDEAN, PRECONDITIONED, Preconditioner
from rightbatch.noise.precision import sum_dtype, widened

_CHUNK = 1 << 17  # elements weighted or upcast at a time, so that no gradient-sized copy exists


def inner_products(left: Tensor, right: Tensor, metric: Preconditioner | None = None) -> Tensor:
    """Compute ``<left, W right>`` in each metric, accumulated in at least float32.

    Args:
        left: A gradient, of any layout and precision.
        right: Another one of the same shape.
        metric: Where given, the metrics are `PRECONDITIONED`, else only the Euclidean one.

    Returns:
        Shape [1] or [3], on the gradients' device, in its `sum_dtype`.

    Example:
        >>> g = torch.tensor([1.0, 2.0])
        >>> p = Preconditioner(torch.tensor([1.0, 4.0]), mean=None, correction=1.0, eps=0.0)
        >>> inner_products(g, g, p).tolist()  # 1 + 4, 1/1 + 4/4, 1/1 + 4/2
        [5.0, 2.0, 3.0]
    """
    if left.is_sparse or right.is_sparse:
        left, right = left.to_dense(), right.to_dense()
    # The same permutation of dimensions on both sides leaves the sum as it is; the one that makes
    # them contiguous (channels_last gradients) spares flatten() a copy.
    order = sorted(range(left.dim()), key=lambda d: -left.stride(d))
    left, right = (t.detach().permute(order).flatten() for t in (left, right))
    if metric is not None:
        return _weighted(left, right, metric, order)
    if left.dtype in (torch.float32, torch.float64):
        return widened(torch.dot(left, right))[None]
    total = torch.zeros(1, dtype=sum_dtype(left.device), device=left.device)
    for start in range(0, left.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        total += torch.dot(left[part].float(), right[part].float())
    return total


def _weighted(left: Tensor, right: Tensor, metric: Preconditioner, order: list[int]) -> Tensor:
    moments = local_part(metric.second_moment).permute(order).flatten()
    means = None if metric.mean is None else local_part(metric.mean).permute(order).flatten()
    total = torch.zeros(len(PRECONDITIONED), dtype=sum_dtype(left.device), device=left.device)
    for start in range(0, left.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        weight = metric.of(_wide(moments[part]), None if means is None else _wide(means[part]))
        product = left[part].to(weight.dtype) * right[part].to(weight.dtype)
        weighted = product * weight
        total += torch.stack([product.sum(), torch.dot(weighted, weight), weighted.sum()])
    return total


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@final
class Squares:
    """What one backward pass gave, as numbers that stay on the device until they are read.

    Args:
        parameters: Whose gradients are squared.
        metrics: One preconditioner per parameter, or ``None`` for the Euclidean metric alone.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], metrics: Sequence[Preconditioner] | None
    ) -> None:
        self.parameters, self.metrics = list(parameters), metrics
        self.names = EUCLIDEAN if metrics is None else PRECONDITIONED
        self._device = parameters[0].device
        self.clear()

    def clear(self) -> None:
        """Forget the last backward pass."""
        shape = (len(self.parameters), len(self.names))
        dtype = sum_dtype(self._device)
        self.squares = torch.zeros(shape, dtype=dtype, device=self._device)
        self.inner = torch.zeros(len(self.names), dtype=dtype, device=self._device)
        self._taken: set[int] = set()

    def take(self, index: int, gradient: Tensor, before: Tensor | None) -> None:
        """Note the gradient of one parameter, and ``before``: what was accumulated before it.

        Raises:
            TaskError: If a gradient comes in two parts, so that its square is not theirs.
        """
        if index in self._taken:
            raise TaskError(
                "each parameter must get its gradient in one part, got two for one of shape "
                f"{tuple(self.parameters[index].shape)}. Either two backward passes came before "
                "one `observe`: call it after each; or a parameter is shared between "
                "checkpointed parts: use checkpoint(..., use_reentrant=False)."
            )
        self._taken.add(index)
        metric = self.metrics[index] if self.metrics else None
        self.squares[index] += inner_products(gradient, gradient, metric).to(self._device)
        if before is not None:
            self.inner += inner_products(gradient, before, metric).to(self._device)

    def of_accumulated(self) -> Tensor:
        """Square what is in ``.grad`` now: of sharded parameters, this rank's part.

        Returns:
            Shape [parameters, metrics].
        """
        found = torch.zeros_like(self.squares)
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                metric = self.metrics[index] if self.metrics else None
                gradient = local_part(parameter.grad)
                found[index] = inner_products(gradient, gradient, metric)
        return found


def named_parameters(
    model: nn.Module, parameters: Sequence[nn.Parameter]
) -> list[tuple[str, nn.Parameter]]:
    """Name parameters as the model does, without the prefixes of wrappers around it.

    A parameter that the model does not own (a temperature in the loss) is named after its place.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> [name for name, _ in named_parameters(model, [model.bias, nn.Parameter(model.weight)])]
        ['bias', '(outside the model 1)']
    """
    inner = (
        m.module for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)
    )
    model = next(inner, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        (_unwrapped(names.get(id(parameter), f"(outside the model {index})")), parameter)
        for index, parameter in enumerate(parameters)
    ]


def _unwrapped(name: str) -> str:
    """Drop what `torch.compile` and checkpointing wrappers put into names."""
    wrappers = ("_orig_mod", "_checkpoint_wrapped_module")
    return ".".join(part for part in name.split(".") if part not in wrappers)
