"""Watch a model for the time of one forward and backward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from rightbatch.noise.geometry import Preconditioner
from rightbatch.noise.per_example.capture import ExampleSquares
from rightbatch.noise.per_example.layout import CONSTANT, LOST
from rightbatch.noise.per_example.weights import tensors_in

# Modules with a fused way of their own for evaluation, which they leave when they are watched: with
# rounding of its own, so the step would not be bit for bit the same.
_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


@final
class _Watching(TorchFunctionMode):
    """Hands every call to the record while it runs."""

    def __init__(self, record: ExampleSquares) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_compiling():  # a compiled function inside: nothing to see
            return func(*args, **(kwargs or {}))
        return self._record.see(func, args, kwargs or {})


@contextmanager
def example_squares(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    *,
    examples: int,
    batch_size: int,
    metrics: Sequence[Preconditioner] | None = None,
) -> Iterator[ExampleSquares]:
    """Watch one forward and backward pass; afterwards, square each example's contribution.

    Dimension 0 of what the model is given must run over the examples. Nothing in the step is
    changed, bit for bit. Squares are of *contributions* to the loss that was differentiated: of a
    mean over ``B`` examples, ``|g_i / B|^2``. Uses of parameters in a loss outside the
    model's forward pass are not seen.

    Args:
        model: Its call is watched.
        parameters: Whose gradients to square.
        examples: Only the first so many, at a cost in proportion.
        batch_size: Examples in the batch.
        metrics: A preconditioner for each parameter, for squares in three metrics.

    Yields:
        Its ``squares()`` and ``uncovered()`` are to be called after the backward pass.

    Raises:
        ValueError: If ``1 <= examples <= batch_size`` does not hold.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> with example_squares(layer, [layer.weight], examples=2, batch_size=3) as watched:
        ...     layer(torch.tensor([[1.0], [2.0], [5.0]])).sum().backward()
        >>> watched.squares()[0].tolist()
        [[1.0], [4.0]]
    """
    if not 1 <= examples <= batch_size:
        raise ValueError(
            f"`examples` must lie between 1 and `batch_size`, got examples={examples}, "
            f"batch_size={batch_size}. It counts the first examples of the batch to look at."
        )
    record = ExampleSquares(parameters, examples=examples, batch_size=batch_size, metrics=metrics)
    handles = [
        parameter.register_hook(lambda _, index=index: record.arrived(index))
        for index, parameter in enumerate(parameters)
        if parameter.requires_grad
    ]
    if _compiled(model):
        for index in range(len(parameters)):
            record.reasons[index] = "the model is compiled"
    else:
        handles += _watch(model, record)
    try:
        yield record
    finally:
        record.running = False
        for handle in [*handles, *record.handles]:
            handle.remove()


def _watch(model: nn.Module, record: ExampleSquares) -> list[RemovableHandle]:
    modes: list[_Watching | None] = []  # one for each call of the model that is under way

    def enter(module: nn.Module, args: Any) -> None:
        if not torch.is_grad_enabled():
            modes.append(None)
            return
        for buffer in model.buffers():
            record.layouts.set(buffer, CONSTANT)
        mode = _Watching(record)
        mode.__enter__()
        record.running = True
        modes.append(mode)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode = modes.pop() if modes else None
        if mode is not None:
            mode.__exit__(None, None, None)

    handles = [
        model.register_forward_pre_hook(enter),
        model.register_forward_hook(leave, always_call=True),
    ]
    for part in model.modules():
        frozen = not any(p.requires_grad for p in part.parameters())
        if isinstance(part, _FUSED) and frozen and part is not model:
            handles += _look_away(part, record)
    return handles


def _look_away(module: nn.Module, record: ExampleSquares) -> list[RemovableHandle]:
    """Leave a module that has nothing for us to its own ways."""
    guards: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        guard = torch._C.DisableTorchFunction()
        guard.__enter__()
        guards.append(guard)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if not guards:
            return
        guards.pop().__exit__(None, None, None)
        inputs = tensors_in(args)
        for tensor in tensors_in(output):
            record.layouts.set(tensor, record.layouts.of(inputs[0]) if inputs else LOST)

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]


def _compiled(model: nn.Module) -> bool:
    """Whether any part runs as one compiled function, into which we cannot see."""
    return any(
        type(part).__name__ == "OptimizedModule" or part._compiled_call_impl is not None
        for part in model.modules()
    ) or isinstance(model, torch.jit.ScriptModule)
