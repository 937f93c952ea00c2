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

_RUN = 8  # channels from which on copying along them is faster than along space


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
            unfolded = self._unfolded(self._inputs[part], in_order=False).flatten(0, 1)
            found = form(unfolded, self._by_position(self._grads[part]).flatten(0, 1))
            squares.append(found.view(-1, self._groups).sum(1))
        return torch.cat(squares)

    def _by_position(self, grads: Tensor) -> Tensor:
        """Lay gradients out as [n, groups, repeats * T, q]."""
        grads = grads.unflatten(2, (self._groups, -1)).flatten(4)
        return grads.permute(0, 2, 1, 4, 3).flatten(2, 3)

    def _unfolded(self, inputs: Tensor, *, in_order: bool) -> Tensor:
        """Lay out what the kernel sees at each position: [n, groups, repeats * T, p].

        Args:
            inputs: [n, repeats, channels, *space].
            in_order: Whether the last dimension must run as the weight's elements do. Squares do
                not need it, and copies run faster along the channels.
        """
        count, repeats = inputs.shape[:2]
        images = F.pad(
            inputs.flatten(0, 1), [pad for pad in reversed(self._padding) for _ in range(2)]
        )
        dims = len(self._padding)
        along_channels = not in_order and self._groups == 1 and images.shape[1] >= _RUN
        if along_channels:
            images = images.movedim(1, -1).contiguous().movedim(-1, 1)
        for d, (kernel, stride, dilation) in enumerate(
            zip(self._shape[2:], self._stride, self._dilation, strict=True)
        ):
            images = images.unfold(2 + d, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
            images = images.narrow(2 + d, 0, self._grads.shape[3 + d])
        places, offsets = [*range(2, 2 + dims)], [*range(2 + dims, 2 + 2 * dims)]
        if along_channels:
            # Repeats of one example follow each other already.
            in_place = images.permute(0, *places, *offsets, 1)
            return in_place.reshape(count, 1, -1, self._width_in)
        columns = images.permute(0, 1, *offsets, *places).reshape(
            count, repeats, self._groups, self._width_in, -1
        )
        return columns.permute(0, 2, 1, 4, 3).flatten(2, 3)

    def gradient(self, index: int) -> Tensor:
        """Sum the outer products of one example."""
        part = slice(index, index + 1)
        unfolded = self._unfolded(self._inputs[part], in_order=True)[0]
        grads = self._by_position(self._grads[part])[0]
        return torch.bmm(grads.mT, unfolded).reshape(self._shape)
