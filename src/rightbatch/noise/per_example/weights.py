"""Which tensors stand for trainable parameters: themselves, views, and what is made of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from rightbatch.noise.per_example.uses import ThroughFunction, ThroughView, Use, wide

_RANDOM = ("dropout", "rand", "bernoulli", "normal", "uniform", "multinomial", "exponential")


@final
@dataclass(frozen=True, slots=True)
class Derived:
    """A tensor that was computed from parameters and constants alone, and how."""

    output: Tensor
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    part: int | None  # of a function that returns several


@final
class Weights:
    """Finds the parameters behind a tensor.

    Args:
        parameters: What is trained.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._index = {id(p): i for i, p in enumerate(parameters) if p.requires_grad}
        self._parameters = list(parameters)
        self._derived: dict[int, Derived] = {}

    def __contains__(self, value: Any) -> bool:
        """Whether gradients of a parameter flow through this tensor, as far as it is a weight."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return False
        return (
            id(value) in self._index or id(value._base) in self._index or id(value) in self._derived
        )

    def behind(self, value: Tensor) -> set[int]:
        """Return the indices of the parameters that a weight is made of."""
        for tensor in (value, value._base):
            if id(tensor) in self._index:
                return {self._index[id(tensor)]}
        made = self._derived[id(value)]
        inputs = tensors_in((made.args, made.kwargs))
        return set().union(*(self.behind(t) for t in inputs if t in self))

    def note(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], output: Any
    ) -> bool:
        """Note that a call made new weights of old ones; ``False`` where it cannot be repeated."""
        name = getattr(function, "__name__", "")
        in_place = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
        if in_place or any(word in name for word in _RANDOM):
            return False
        parts = list(output) if isinstance(output, tuple | list) else [output]
        several = isinstance(output, tuple | list)
        for part, tensor in enumerate(parts):
            if isinstance(tensor, Tensor) and tensor.requires_grad and tensor not in self:
                self._derived[id(tensor)] = Derived(
                    tensor, function, tuple(args), dict(kwargs), part if several else None
                )
        return True

    def uses(self, weight: Tensor, use: Use, examples: int) -> list[tuple[int, Use]]:
        """Turn a use of a weight into uses of the parameters that it is made of."""
        if id(weight) in self._index:
            return [(self._index[id(weight)], use)]
        if id(weight._base) in self._index:
            index = self._index[id(weight._base)]
            return [(index, ThroughView(use, weight, self._parameters[index], examples))]
        made = self._derived[id(weight)]
        found: list[tuple[int, Use]] = []
        for tensor in _distinct(t for t in tensors_in((made.args, made.kwargs)) if t in self):
            pulled = ThroughFunction(use, _pull(made, tensor), examples)
            found += self.uses(tensor, pulled, examples)
        return found


def _pull(made: Derived, tensor: Tensor) -> Callable[[Tensor], Tensor]:
    """Differentiate one recorded call, repeated on its own."""

    def pull(gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            twin = tensor.detach().requires_grad_()
            args, kwargs = _replaced((made.args, made.kwargs), tensor, twin)
            output = made.function(*args, **kwargs)
            output = output if made.part is None else output[made.part]
            if not torch.equal(output.detach(), made.output.detach()):
                return wide(torch.full_like(tensor, torch.nan))
            gradient = gradient.reshape(output.shape).to(output.dtype)
            (found,) = torch.autograd.grad(output, twin, gradient)
        return wide(found.detach())

    return pull


def _replaced(value: Any, tensor: Tensor, twin: Tensor) -> Any:
    if value is tensor:
        return twin
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _replaced(item, tensor, twin) for key, item in value.items()}
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(_replaced(item, tensor, twin) for item in value)
    return value


def _distinct(tensors: Any) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


def tensors_in(value: Any) -> list[Tensor]:
    """List the tensors in nested arguments."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
