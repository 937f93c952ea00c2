"""One use of a parameter in a forward pass, and what its uses add up to for each example.

A use knows the part of the parameter's gradient that came through it, restricted to each of the
first ``k`` examples: its square by a fast rule, and the gradient itself for one example at a
time. The gradients of several uses must be added *before* they are squared.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol, final

import torch
from torch import Tensor

Gradients = Callable[[int], Tensor]


class Use(Protocol):
    """What one operation contributes to the gradient of one of its weights."""

    path: str  # how `squares` works, for `explain`

    def squares(self) -> Tensor:
        """Square the contribution of each example: [examples]."""
        ...

    def gradient(self, index: int) -> Tensor:
        """Build the contribution of one example, in the weight's shape."""
        ...


def wide(tensor: Tensor) -> Tensor:
    """Cast to float32 unless it is wider: squares of half precision overflow."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def row_squares(matrix: Tensor) -> Tensor:
    """Square and sum everything but the first dimension.

    Example:
        >>> row_squares(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        tensor([5., 9.])
    """
    flat = matrix.flatten(1) if matrix.dim() > 1 else matrix[:, None]
    return torch.linalg.vector_norm(flat, dim=1).square()


@final
class Dense:
    """Gradients that are as small as what they are computed from: biases and scales.

    Args:
        gradients: [examples, *weight shape].
    """

    path = "direct"

    def __init__(self, gradients: Tensor) -> None:
        self.gradients = gradients

    def squares(self) -> Tensor:
        """Square what is there."""
        return row_squares(self.gradients)

    def gradient(self, index: int) -> Tensor:
        """Pick one."""
        return self.gradients[index]


@final
class OneRow:
    """A weight with a row for each example, of which an example's gradient fills its own.

    Args:
        gradients: [examples, *rest].
        rows: Rows of the weight.
    """

    path = "direct"

    def __init__(self, gradients: Tensor, rows: int) -> None:
        self._gradients, self._rows = gradients, rows

    def squares(self) -> Tensor:
        """Square the rows."""
        return row_squares(self._gradients)

    def gradient(self, index: int) -> Tensor:
        """Put the row in its place."""
        whole = self._gradients.new_zeros(self._rows, *self._gradients.shape[1:])
        whole[index] = self._gradients[index]
        return whole


@final
class ThroughView:
    """A use of a view of the parameter: a slice, a transpose, an expansion.

    Args:
        use: Of the view.
        view: The view of a parameter; only its geometry is read.
        parameter: What it is a view of.
        examples: How many.
    """

    def __init__(self, use: Use, view: Tensor, parameter: Tensor, examples: int) -> None:
        self.use, self.path, self._examples = use, use.path, examples
        self._sizes, self._strides = list(view.shape), list(view.stride())
        self._parameter = parameter
        first = view.storage_offset() - parameter.storage_offset()
        self.span = (
            first,
            first + sum((n - 1) * s for n, s in zip(self._sizes, self._strides, strict=True)),
        )
        self._repeats = [
            d for d, (n, s) in enumerate(zip(self._sizes, self._strides, strict=True)) if not s
        ]
        self.one_to_one = all(self._sizes[d] == 1 for d in self._repeats)

    def squares(self) -> Tensor:
        """Take the view's squares where each of its elements is one of the parameter's."""
        if self.one_to_one:
            return self.use.squares()
        return one_at_a_time([self.gradient], self._examples)

    def gradient(self, index: int) -> Tensor:
        """Put the view's gradient where the view lies."""
        gradient = self.use.gradient(index).reshape(self._sizes)
        sizes = [1 if d in self._repeats else n for d, n in enumerate(self._sizes)]
        if self._repeats:
            gradient = gradient.sum(self._repeats, keepdim=True)
        whole = torch.empty_strided(
            self._parameter.shape,
            self._parameter.stride(),
            dtype=gradient.dtype,
            device=gradient.device,
        ).zero_()
        whole.as_strided(sizes, self._strides, self.span[0]).copy_(gradient)
        return whole


@final
class ThroughFunction:
    """A use of what was computed from parameters alone, pulled back to one of them.

    Args:
        use: Of the computed tensor.
        pull: Maps a gradient with respect to that tensor to one with respect to the parameter.
        examples: How many.
    """

    path = "pulled back"

    def __init__(self, use: Use, pull: Callable[[Tensor], Tensor], examples: int) -> None:
        self._use, self._pull, self._examples = use, pull, examples

    def squares(self) -> Tensor:
        """Pull back and square, an example at a time."""
        return one_at_a_time([self.gradient], self._examples)

    def gradient(self, index: int) -> Tensor:
        """Pull one gradient back."""
        return self._pull(self._use.gradient(index))


def one_at_a_time(parts: Sequence[Gradients], examples: int) -> Tensor:
    """Square the sum of several uses' gradients, holding one example's at a time."""
    squares = []
    for index in range(examples):
        total = parts[0](index)
        for part in parts[1:]:
            total = total + part(index)
        squares.append(torch.linalg.vector_norm(total).square())
    return torch.stack(squares)


def disjoint(uses: Sequence[Use]) -> bool:
    """Whether all uses are of different regions of the parameter, so that squares add up."""
    views = [use for use in uses if isinstance(use, ThroughView)]
    spans = sorted(view.span for view in views)
    apart = all(left[1] < right[0] for left, right in pairwise(spans))
    return len(views) == len(uses) and apart
