r"""Embedding tables, alone and tied to the layer that reads out.

An example's gradient has a row for each of its tokens: the sum over the positions of that token.
Tied to a read-out layer, the two parts overlap, and the exact cross term is

    2 sum_{t,s} d_s[id_t] <e_t, h_s>

with ``e_t`` the gradient of the embedded token ``t``, ``h_s`` the read-out's inputs and ``d_s``
the gradients of its outputs.
"""

from typing import final

import torch
from torch import Tensor

from rightbatch.noise.per_example.outer import Outer
from rightbatch.noise.per_example.uses import row_squares


@final
class Rows:
    """A use of a weight as a table.

    Args:
        ids: [examples, positions].
        grads: Of the looked-up rows, [examples, positions, width]; zero where nothing is learned.
        num_rows: Of the table.
    """

    path = "gathered"

    def __init__(self, ids: Tensor, grads: Tensor, num_rows: int) -> None:
        self.ids, self.grads, self._num_rows = ids, grads, num_rows

    def squares(self) -> Tensor:
        """Sum the gradients of equal tokens of one example, then square.

        Example:
            >>> ids, grads = torch.tensor([[0, 0], [0, 1]]), torch.ones(2, 2, 1)
            >>> Rows(ids, grads, num_rows=2).squares()  # (1 + 1)^2, 1^2 + 1^2
            tensor([4., 2.])
        """
        count, positions = self.ids.shape
        if positions == 1:
            return row_squares(self.grads)
        owner = torch.arange(count, device=self.ids.device)[:, None]
        keys, slots = (owner * self._num_rows + self.ids).flatten().unique(return_inverse=True)
        sums = self.grads.new_zeros(len(keys), self.grads.shape[-1])
        sums.index_add_(0, slots, self.grads.flatten(0, 1))
        squares = self.grads.new_zeros(count)
        return squares.index_add_(0, keys // self._num_rows, row_squares(sums))

    def gradient(self, index: int) -> Tensor:
        """Fill a table."""
        table = self.grads.new_zeros(self._num_rows, self.grads.shape[-1])
        return table.index_add_(0, self.ids[index], self.grads[index])


def tied_squares(table: Rows, read_out: Outer) -> Tensor:
    """Square the sum of a table's and a read-out layer's gradients, without building either."""
    hidden, grads = read_out.inputs[:, 0], read_out.grads[:, 0]
    count, positions = table.ids.shape
    overlap = torch.bmm(hidden, table.grads.mT)  # [examples, s, t]
    columns = table.ids[:, None, :].expand(count, hidden.shape[1], positions)
    cross = (grads.gather(2, columns) * overlap).sum((1, 2))
    return (table.squares() + read_out.squares() + 2 * cross).clamp_min(0)
