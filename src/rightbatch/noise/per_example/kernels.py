"""Convolutions of any dimension, grouped, strided, dilated, and transposed ones.

Unfolded, a convolution is a linear map at each position of its output, so the forms of linear
maps apply, group by group. A transposed convolution is the same with inputs and
gradients of outputs in each other's places.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from rightbatch.noise.per_example.outer import (
    cheaper_form,
    chunk_elements,
    explicit_squares,
    gram_squares,
)


@final
class Convolved:
    """A use of a weight as the kernel of a convolution.

    Args:
        inputs: [examples, repeats, channels, *space], padded already where padding is uneven.
        grads: Of the outputs, [examples, repeats, out channels, *space].
        shape: Of the weight, [out channels, channels per group, *kernel].
    """

    def __init__(
        self,
        inputs: Tensor,
        grads: Tensor,
        shape: torch.Size,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        self._inputs, self._grads, self._shape = inputs, grads, shape
        self._stride, self._padding, self._dilation = stride, padding, dilation
        self._groups = groups
        positions = grads.shape[1] * grads.shape[3:].numel()
        self._width_in, self._width_out = shape[1:].numel(), shape[0] // groups
        self.path = cheaper_form(positions, self._width_in, self._width_out)

    def squares(self) -> Tensor:
        """Unfold some examples at a time and square by the cheaper form."""
        form = explicit_squares if self.path == "explicit" else gram_squares
        repeats, positions = self._grads.shape[1], self._grads.shape[3:].numel()
        elements = self._groups * repeats * positions * self._width_in
        size = max(1, 4 * chunk_elements(self._inputs.device) // elements)
        squares = []
        for start in range(0, len(self._inputs), size):
            part = slice(start, start + size)
            unfolded = self._unfolded(self._inputs[part])  # [n, groups, repeats * T, p]
            grads = self._grads[part].unflatten(2, (self._groups, -1)).flatten(4)
            grads = grads.permute(0, 2, 1, 4, 3).flatten(2, 3)  # [n, groups, repeats * T, q]
            found = form(unfolded.flatten(0, 1), grads.flatten(0, 1))
            squares.append(found.view(len(grads), self._groups).sum(1))
        return torch.cat(squares)

    def _unfolded(self, inputs: Tensor) -> Tensor:
        """Lay out what the kernel sees at each position: [n, groups, repeats * T, p]."""
        count, repeats = inputs.shape[:2]
        images = inputs.flatten(0, 1)
        if images.dim() == 4:
            columns = F.unfold(
                images,
                self._shape[2:],
                dilation=tuple(self._dilation),
                padding=tuple(self._padding),
                stride=tuple(self._stride),
            )
            columns = self._cropped(columns, images.shape[2:])
        else:
            columns = self._windows(images)
        columns = columns.view(count, repeats, self._groups, self._width_in, -1)
        return columns.permute(0, 2, 1, 4, 3).flatten(2, 3)

    def _cropped(self, columns: Tensor, space: torch.Size) -> Tensor:
        """Drop windows beyond the gradients: a transposed convolution's extra output rows."""
        wanted = self._grads.shape[3:]
        found = [
            (n + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for n, pad, dilation, kernel, stride in zip(
                space, self._padding, self._dilation, self._shape[2:], self._stride, strict=True
            )
        ]
        if found == list(wanted):
            return columns
        return columns.unflatten(2, found)[..., : wanted[0], : wanted[1]].flatten(2)

    def _windows(self, images: Tensor) -> Tensor:
        """Unfold in any number of dimensions: [n, channels * kernel, T]."""
        images = F.pad(images, [pad for pad in reversed(self._padding) for _ in range(2)])
        dims = len(self._padding)
        for d, (kernel, stride, dilation) in enumerate(
            zip(self._shape[2:], self._stride, self._dilation, strict=True)
        ):
            images = images.unfold(2 + d, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
            images = images.narrow(2 + d, 0, self._grads.shape[3 + d])
        order = [0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims)]
        return images.permute(order).flatten(2 + dims).flatten(1, 1 + dims)

    def gradient(self, index: int) -> Tensor:
        """Sum the outer products of one example."""
        part = slice(index, index + 1)
        unfolded = self._unfolded(self._inputs[part])[0]
        grads = self._grads[part].unflatten(2, (self._groups, -1)).flatten(4)
        grads = grads.permute(0, 2, 1, 4, 3).flatten(2, 3)[0]
        return torch.bmm(grads.mT, unfolded).reshape(self._shape)
