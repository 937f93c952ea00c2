"""The exact noise scale, from the gradient of every example, one by one: the slow definition."""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

import rightbatch as rb
from rightbatch.studies.finder_ways import Parts

_AT_ONCE = 500  # examples; their gradients lie in memory together


def exact_noise(task: rb.Task, *, examples: int | None = None, seed: int = 0) -> Parts:
    r"""Return both parts of the noise scale over every example of a task's data set.

    ``|G|^2`` is the squared gradient of the mean loss, ``tr(Sigma)`` the sample variance of the
    examples' gradients. Of a part of the data set, ``|G|^2`` has the mean's own noise taken off.

    Args:
        task: Whose model treats each example alone (no BatchNorm), with a mean over examples as
            its loss, batches of tensors with the examples along dimension 0, and nothing random.
        examples: How many to look at; ``None``: all, which is exact.
        seed: Of the choice of a part.

    Example:
        >>> from rightbatch.testing import QuadraticTask
        >>> parts = exact_noise(QuadraticTask(grad_sq=2.0, trace_cov=50.0, examples=48).task)
        >>> round(parts.grad_sq, 4), round(parts.trace_cov * 47 / 48, 4)
        (2.0, 50.0)
    """
    of_each = _per_example_gradients(task)
    squares, total, count = 0.0, torch.zeros(0), 0
    for batch in task.batches(_AT_ONCE, seed=seed, epochs=1):
        left = _AT_ONCE if examples is None else examples - count
        found = of_each(tree_map(lambda part, n=left: part[:n], batch))
        rows = [g.flatten(1) for g in found.values()]
        # In the gradients' own precision within a chunk, in double precision over the chunks.
        squares += sum(r.square().sum(1).double().sum().item() for r in rows)
        summed = torch.cat([r.sum(0) for r in rows]).double()
        total = summed if count == 0 else total + summed
        count += len(rows[0])
        if examples is not None and count >= examples:
            break
    mean_sq = (total / count).square().sum().item()
    trace_cov = (squares - count * mean_sq) / (count - 1)
    seen_all = count == task.num_examples
    return Parts(grad_sq=mean_sq if seen_all else mean_sq - trace_cov / count, trace_cov=trace_cov)


def _per_example_gradients(task: rb.Task) -> Callable[[Any], Mapping[str, Tensor]]:
    losses = _LossOfOne(task)
    weights = {name: p.detach() for name, p in losses.named_parameters()}
    each = vmap(
        grad(lambda values, example: functional_call(losses, values, (example,))),
        in_dims=(None, 0),
    )
    return lambda batch: each(weights, batch)


@final
class _LossOfOne(nn.Module):
    """The task's loss on a batch of one example, as a function of the model's parameters."""

    def __init__(self, task: rb.Task) -> None:
        super().__init__()
        self.model = task.model
        self._loss = task.loss

    def forward(self, example: Any) -> Tensor:
        loss, _ = self._loss(tree_map(lambda part: part[None], example))
        return loss
