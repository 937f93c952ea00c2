"""Look before measuring: every check that would make a later number wrong in silence."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rightbatch.errors import NotRepeatable, RightBatchError, TaskError
from rightbatch.task.data import examples_in
from rightbatch.task.world import preserved

if TYPE_CHECKING:
    from rightbatch.task.task import Task

_LISTED = 5  # names in one message


def preflight(task: Task) -> tuple[str, ...]:
    """Check one batch of a task twice.

    Args:
        task: The task; left as it was.

    Returns:
        What the user should know, a sentence each: modules that mix examples, parameters
        that get no gradient or that no optimizer group trains.

    Raises:
        TaskError: If the batch has another size than asked for, the loss is not a finite
            scalar with a graph, or no parameter gets a gradient.
        NotRepeatable: If two passes at one random state give different losses.
    """
    _check_optimizer_needs_no_closure(task)
    size = min(task.default_batch_size, 8)
    with task.preserved(weights=False):
        names_without = _try_twice(task, size)
    mixing = _modules_that_mix_examples(task.model)
    trained = {id(p) for group in task.optimizer.param_groups for p in group["params"]}
    untrained = [
        name
        for name, p in task.model.named_parameters()
        if p.requires_grad and id(p) not in trained
    ]
    warnings = []
    if mixing:
        warnings.append(
            f"{_listed(mixing)} (BatchNorm in train mode) mixes the examples of a batch, so the "
            "smallest unit with a gradient of its own is the micro-batch: the noise is that of "
            f"micro-batches of {task.default_batch_size}, and accumulation changes the statistics."
        )
    if names_without:
        warnings.append(f"No gradient reaches {_listed(names_without)}: left out of the noise.")
    if untrained:
        warnings.append(f"No optimizer group trains {_listed(untrained)}: it stays as it is.")
    return tuple(warnings)


def _try_twice(task: Task, size: int) -> list[str]:
    """Compute one batch's loss twice, then its gradient; name the parameters that get none."""

    def alike() -> AbstractContextManager[None]:
        # What the loss keeps for itself goes on: two passes must agree all the same.
        return preserved(task.model, task.optimizer, weights=False)

    with alike(), _rule("`dataset` must yield a batch"):
        batch = next(task.batches(size, seed=0))
    _check_size(batch, size, has_weight=task._weight is not None)
    with alike(), _rule("`loss(model, batch)` must run on a batch"):
        first = task.loss(batch)[0].item()
    with alike(), _rule("the loss of a batch must have a gradient"):
        task.optimizer.zero_grad(set_to_none=True)
        loss = task.loss(batch)[0]
        _check_loss(first, loss.item())
        loss.backward()
        return _names_without_gradient(task, first)


def mixes_examples(model: nn.Module) -> bool:
    """Whether a module in train mode makes one example's loss depend on the others."""
    return bool(_modules_that_mix_examples(model))


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


def _check_optimizer_needs_no_closure(task: Task) -> None:
    parameters = list(inspect.signature(type(task.optimizer).step).parameters.values())[1:]
    if parameters and parameters[0].default is inspect.Parameter.empty:
        raise TaskError(
            f"`optimizer.step()` must work without a closure, got "
            f"{type(task.optimizer).__name__}, which asks for one. "
            "Line-search optimizers have no fixed batch size to plan."
        )


def _check_size(batch: Any, size: int, *, has_weight: bool) -> None:
    count = examples_in(batch)
    if count is not None and count != size and not has_weight:
        raise TaskError(
            f"a batch must hold the examples asked for, got {count} rows for {size} examples. "
            "If one example makes several rows, pass `weight=` to say how many units a batch has."
        )


@contextmanager
def _rule(rule: str) -> Iterator[None]:
    """Say which rule the user's code broke by raising; its own error stays visible as the cause."""
    try:
        yield
    except (RightBatchError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise TaskError(
            f"{rule}, got {type(error).__name__}: {error!s:.500}. "
            "Nothing can be measured before one training step runs: mend the task's own code."
        ) from error


def _check_loss(first: float, second: float) -> None:
    if not math.isfinite(first):
        raise TaskError(
            f"`loss(model, batch)` must be finite, got {first!r} at the present weights. "
            "Nothing can be measured from here: check the inputs for NaN, or lower the scale of "
            "the initial weights."
        )
    # Parallel sums may differ in the last bits; a forgotten seed differs in the first digits.
    if not math.isclose(first, second, rel_tol=1e-3, abs_tol=1e-7):
        raise NotRepeatable(
            f"two passes over one batch at one random state must agree, got {first!r} and "
            f"{second!r}. The loss draws from a random source of its own, or remembers past "
            "batches: draw with torch's global generator, and keep state out of the loss."
        )


def _names_without_gradient(task: Task, loss: float) -> list[str]:
    named = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    without = [name for name, p in named.items() if p.grad is None]
    if len(without) == len(named):
        raise TaskError(
            f"a gradient must reach the model's parameters, got none from a loss of {loss!r}. "
            "The loss does not depend on this model: check that it calls the model it is given."
        )
    for name, p in named.items():
        if p.grad is not None and not torch.isfinite(_numbers_of(p.grad)).all():
            raise TaskError(
                f"gradients must be finite, got NaN or infinity in {name!r} from a loss of "
                f"{loss!r}. Look for a division by zero or a square root at zero in the loss."
            )
    return without


def _numbers_of(grad: Tensor) -> Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad


def _modules_that_mix_examples(model: nn.Module) -> list[str]:
    return [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and (module.training or module.running_mean is None)
    ]
