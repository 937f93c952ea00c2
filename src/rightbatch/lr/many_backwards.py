"""One forward pass, and many backward passes and steps over parts of its batch.

It is here to be measured, not to be recommended: all gradients are those of the first weights.
"""

import inspect
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from rightbatch._comm import comm_for
from rightbatch.errors import TaskError


def one_forward_many_backwards(
    model: nn.Module,
    *,
    optimizer: Optimizer,
    batch: Any,
    losses: Callable[[nn.Module, Any], Tensor],
    num_parts: int,
) -> list[float]:
    """Compute the losses of a batch once, then take one step for each part of it.

    Autograd rightly refuses to go back through weights that a step has changed, since gradients
    would mix old activations with new weights. The forward pass therefore runs on copies of the
    weights: every part's gradient is that of the weights *before* the first step. With plain
    gradient descent and parts of one size, ``k`` such steps add up to one step on the whole batch
    at ``k`` times the rate. Each backward pass runs through the whole batch's graph, in which the
    other parts have gradient 0, so that ``k`` of them take about ``k`` times as long as one.

    Traps: this is no replacement for ``k`` batches. With momentum or Adam the sum is not that of
    one larger step either. Hooks on parameters are not called, gradients are not clipped. A step
    leaves the gradient of the last part in ``.grad``.

    Args:
        model: On one device, not wrapped for several.
        optimizer: Of the model's parameters alone; stepped ``num_parts`` times.
        batch: What ``losses`` takes.
        losses: ``losses(model, batch)`` -> one loss for each example, with a graph.
        num_parts: Parts of the batch, consecutive, whose sizes differ by one at most.

    Returns:
        Mean loss of each part at the weights before the first step.

    Raises:
        TaskError: If other ranks train the model too, the optimizer trains what is not in the
            model or has to compute losses itself, or the losses are not one for each of at least
            ``num_parts`` examples.
        ValueError: If ``num_parts`` is not a whole number of at least 1.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(1.0)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> one_forward_many_backwards(
        ...     model,
        ...     optimizer=optimizer,
        ...     batch=torch.tensor([[1.0], [2.0]]),
        ...     losses=lambda model, inputs: model(inputs).square().flatten(),
        ...     num_parts=2,
        ... )
        [1.0, 4.0]
        >>> round(model.weight.item(), 4)  # 1 - 0.1 (2 * 1 + 2 * 4), both gradients at 1
        0.0
    """
    if not isinstance(num_parts, int) or isinstance(num_parts, bool) or num_parts < 1:
        raise ValueError(
            f"`num_parts` must be a whole number of at least 1, got num_parts={num_parts!r}. "
            "There is one backward pass and one step for each part: use 1 for an ordinary step."
        )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _check_step(optimizer)
    _check_scope(model, optimizer, trained)
    before = {name: p.detach().clone().requires_grad_() for name, p in trained.items()}
    swapped = {f"model.{name}": copy for name, copy in before.items()}
    each = functional_call(_Losses(model, losses), swapped, (batch,))
    _check_losses(each, num_parts)
    means = []
    for index, part in enumerate(each.tensor_split(num_parts), 1):
        mean = part.mean()
        gradients = torch.autograd.grad(
            mean, list(before.values()), retain_graph=index < num_parts, allow_unused=True
        )
        for parameter, gradient in zip(trained.values(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        means.append(mean.detach())
    return torch.stack(means).tolist()


@final
class _Losses(nn.Module):
    """The model inside a module whose call is the loss, so that all of it meets other weights."""

    def __init__(self, model: nn.Module, losses: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._losses = losses

    def forward(self, batch: Any) -> Tensor:
        return self._losses(self.model, batch)


def _check_step(optimizer: Optimizer) -> None:
    """Refuse an optimizer such as LBFGS, whose step calls back for losses at other weights."""
    arguments = inspect.signature(optimizer.step).parameters.values()
    if any(
        argument.name == "closure" and argument.default is inspect.Parameter.empty
        for argument in arguments
    ):
        raise TaskError(
            f"`optimizer` must step by gradients alone, got {type(optimizer).__name__}, whose step "
            "computes losses at weights of its choice. The one forward pass has none there: use "
            "one such as SGD or Adam."
        )


def _check_scope(model: nn.Module, optimizer: Optimizer, trained: dict[str, nn.Parameter]) -> None:
    world_size = comm_for(model).world_size
    if world_size > 1:
        raise TaskError(
            f"`model` must be trained by one rank, got one that {world_size} ranks train together. "
            "Its gradients are averaged by hooks that copies of the weights do not have: pass the "
            "model inside the wrapper, on one device."
        )
    owned = {id(parameter) for parameter in trained.values()}
    groups = optimizer.param_groups
    others = sum(
        p.requires_grad and id(p) not in owned for group in groups for p in group["params"]
    )
    if others:
        raise TaskError(
            f"`optimizer` must train the model's parameters alone, got {others} that are not in "
            f"{type(model).__name__}. They would get no gradient: put them into one module with it."
        )


def _check_losses(losses: Any, num_parts: int) -> None:
    if not isinstance(losses, Tensor) or losses.dim() != 1:
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise TaskError(
            f"`losses` must return one loss for each example, got {shape}. A mean cannot be taken "
            "apart: use reduction='none', and average over what is not the batch."
        )
    if len(losses) < num_parts:
        raise TaskError(
            f"`num_parts` must not exceed the examples of the batch, got {num_parts} parts of "
            f"{len(losses)} examples. A part without examples has no gradient: use fewer."
        )
