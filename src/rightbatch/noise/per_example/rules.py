"""The registry of fast rules: which function's weights are understood, and how.

A rule reads one call of a function and says, for each of its weights, how the gradient of the
call's output makes a `Use`. It raises `NotUnderstood` where it cannot be sure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from rightbatch.noise.per_example.layout import FIRST, Kind, Layout, Layouts
from rightbatch.noise.per_example.uses import Use, wide


class NotUnderstood(Exception):
    """This use of a parameter has no exact rule; the message says why."""


@final
@dataclass(slots=True)
class Call:
    """One call of a function that has a rule."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Tensor
    batch_size: int
    examples: int
    layouts: Layouts
    tracked: Callable[[Any], bool]
    kept: list[tuple[Tensor, int]] = field(default_factory=list)  # with their versions
    anywhere: int | None = None  # how many last dimensions must be whole

    def bind(self, *names: str) -> list[Any]:
        """Return arguments by position or name, ``None`` where left out."""
        return [
            self.args[i] if i < len(self.args) else self.kwargs.get(name)
            for i, name in enumerate(names)
        ]

    def keep(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Keep the first examples of an input until the backward pass: [examples, rows, ...].

        A copy where they are a part, so that the whole batch's tensor can be freed; the tensor
        itself otherwise, as autograd keeps it.
        """
        rows = self.rows(tensor).detach()
        if self.examples < self.batch_size:
            rows = rows.clone()
        else:
            self.kept.append((tensor, tensor._version))
        return lambda: wide(rows) if rows.is_floating_point() else rows

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the first examples' rows of an input or of a gradient of the output."""
        return self.rows_by(self.layouts.of(tensor), tensor)

    def rows_by(self, layout: Layout, tensor: Tensor) -> Tensor:
        """Return the first examples' rows of a tensor whose layout is known."""
        whole = 0 if self.anywhere is None else self.anywhere
        if self.anywhere is None and layout.kind is Kind.AT and layout != FIRST:
            raise NotUnderstood("its input does not hold examples along dimension 0")
        rows = None
        if layout.dim < tensor.dim() - whole:
            rows = layout.rows(tensor, self.batch_size, self.examples)
        if rows is None:
            raise NotUnderstood(f"its input of shape {tuple(tensor.shape)} is not the batch's")
        return rows


Made = Callable[[Tensor], Use]  # of the output's gradient, [examples, rows, ...]
Wanted = list[tuple[Tensor, Made]]
Rule = Callable[[Call], Wanted]

_RULES: dict[Any, Rule] = {}


def norm_rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Register the rule of one function, or of several with the same arguments."""

    def register(rule: Rule) -> Rule:
        for function in functions:
            _RULES[function] = rule
        return rule

    return register


def rule_of(function: Any) -> Rule | None:
    """Return a function's rule, if it has one."""
    return _RULES.get(function)


def float_matrix(tensor: Tensor) -> Tensor:
    """Lay rows side by side: [examples, 1 group, positions, width]."""
    return tensor.reshape(tensor.shape[0], 1, -1, tensor.shape[-1])


def summed(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Sum over dimensions, or over none."""
    return torch.sum(tensor, dim=list(dims)) if dims else tensor
