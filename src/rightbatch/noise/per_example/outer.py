"""Weights of linear maps: an example's gradient is a sum of outer products over its positions.

    gradient = sum_t d_t a_t'      a_t: inputs, d_t: gradients of outputs, T positions

    one       T = 1: |a|^2 |d|^2
    gram      sum over t, s of <a_t, a_s> <d_t, d_s>: T^2 (p + q) operations, no gradient
    explicit  the gradient, for some examples at a time: T p q operations

References:
    Goodfellow (2015), Efficient per-example gradient computations, https://arxiv.org/abs/1510.01799.
    Li et al. (2021), https://arxiv.org/abs/2110.05679 (Gram form).
    Gray et al. (2024), https://arxiv.org/abs/2411.00999 (explicit form).
"""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from rightbatch.noise.per_example.uses import row_squares

_ELEMENTS = {"cpu": 1 << 17}  # of intermediate results at a time: about a core's cache
_ELEMENTS_ELSEWHERE = 1 << 25
_OVERHEAD = 1.2  # a Gram form runs two products and a sum over both


def chunk_elements(device: torch.device) -> int:
    """Return how many elements of intermediate results to hold at a time."""
    return _ELEMENTS.get(device.type, _ELEMENTS_ELSEWHERE)


def cheaper_form(positions: int, width_in: int, width_out: int) -> str:
    """Choose between the forms by operations.

    Example:
        >>> cheaper_form(1, 4, 4), cheaper_form(16, 512, 512), cheaper_form(512, 64, 64)
        ('one', 'gram', 'explicit')
    """
    if positions == 1:
        return "one"
    gram = _OVERHEAD * positions * (width_in + width_out)
    return "gram" if gram < width_in * width_out else "explicit"


@final
class Outer:
    """A use of a weight as a matrix.

    Args:
        inputs: ``a``, [examples, groups, positions, p].
        grads: ``d``, [examples, groups, positions, q].
        shape: Of the weight; its elements are those of [groups, q, p] in order, or of
            [groups, p, q] where ``transposed``.
        transposed: Whether the weight is stored with its inputs first.
    """

    def __init__(
        self, inputs: Tensor, grads: Tensor, shape: torch.Size, *, transposed: bool = False
    ) -> None:
        self.inputs, self.grads, self.shape, self.transposed = inputs, grads, shape, transposed
        self.path = cheaper_form(inputs.shape[2], inputs.shape[3], grads.shape[3])

    def squares(self) -> Tensor:
        """Square by the form that needs the fewest operations."""
        if self.path == "one":
            squares = self.inputs.square().sum(-1) * self.grads.square().sum(-1)
            return squares.sum((1, 2))
        form = gram_squares if self.path == "gram" else explicit_squares
        return (
            form(self.inputs.flatten(0, 1), self.grads.flatten(0, 1))
            .view(self.inputs.shape[:2])
            .sum(1)
        )

    def gradient(self, index: int) -> Tensor:
        """Sum the outer products of one example."""
        left, right = self.grads[index], self.inputs[index]
        if self.transposed:
            left, right = right, left
        return torch.bmm(left.mT, right).reshape(self.shape)


def gram_squares(inputs: Tensor, grads: Tensor) -> Tensor:
    """Square by inner products between positions; tiled where ``T^2`` is large.

    Args:
        inputs: [n, T, p].
        grads: [n, T, q].

    Example:
        >>> a, d = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0], [4.0]]])
        >>> gram_squares(a, d), explicit_squares(a, d)  # (1*3 + 2*4)^2
        (tensor([121.]), tensor([121.]))
    """
    count, positions, _ = inputs.shape
    tile = max(1, min(positions, chunk_elements(inputs.device) // positions))
    squares = []
    for part in _parts(count, positions * tile, inputs.device):
        a, d = inputs[part], grads[part]
        total: Tensor | None = None
        for start in range(0, positions, tile):
            rows = slice(start, start + tile)
            between = torch.bmm(a[:, rows], a.mT).mul_(torch.bmm(d[:, rows], d.mT)).sum((1, 2))
            total = between if total is None else total + between
        assert total is not None
        squares.append(total)
    return torch.cat(squares).clamp_min(0)


def explicit_squares(inputs: Tensor, grads: Tensor) -> Tensor:
    """Square the gradients themselves, some examples at a time.

    Args:
        inputs: [n, T, p].
        grads: [n, T, q].
    """
    parts = _parts(len(inputs), inputs.shape[2] * grads.shape[2], inputs.device)
    return torch.cat([row_squares(torch.bmm(grads[part].mT, inputs[part])) for part in parts])


def _parts(count: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Cut ``count`` examples into parts whose results fit into a small buffer."""
    size = max(1, chunk_elements(device) // max(1, elements))
    for start in range(0, count, size):
        yield slice(start, start + size)


def joined(uses: list[Outer]) -> Outer:
    """Make one use of several by laying their positions side by side."""
    first = uses[0]
    inputs, grads = ([getattr(use, name) for use in uses] for name in ("inputs", "grads"))
    return Outer(
        torch.cat(inputs, dim=2), torch.cat(grads, dim=2), first.shape, transposed=first.transposed
    )
