"""Data sets that sit in memory as tensors, and measuring a model on one of them.

Drawing a batch is one gather, not a Python loop over its examples: at thousands of examples
a batch the loop would cost more than the training step, and the loader would be measured
instead of the model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

Batch = tuple[Tensor, ...]

_ROWS_AT_ONCE = 250  # of an evaluation: bounds its memory


@final
class Rows(Dataset[Any]):
    """Examples as rows of equally long tensors.

    PyTorch's loader asks ``__getitems__`` for a whole batch where there is one; `take` is the
    collate function that passes it on.

    Args:
        columns: One tensor per part of an example, each with the examples along dimension 0.

    Example:
        >>> rows = Rows(torch.arange(4) * 10, torch.arange(4))
        >>> rows[2]
        (tensor(20), tensor(2))
        >>> rows.__getitems__([3, 1])
        (tensor([30, 10]), tensor([3, 1]))
    """

    def __init__(self, *columns: Tensor) -> None:
        lengths = {len(column) for column in columns}
        if len(lengths) != 1:
            raise ValueError(f"`columns` must be equally long, got {[len(c) for c in columns]}.")
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> Batch:
        return tuple(column[index] for column in self.columns)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return the rows of a whole batch, stacked."""
        picked = torch.tensor(indices, dtype=torch.int64, device=self.columns[0].device)
        return tuple(column.index_select(0, picked) for column in self.columns)


def take(batch: Any) -> Any:
    """Pass on a batch that `Rows` has stacked already (a collate function)."""
    return batch


def evaluate_rows(
    model: nn.Module, rows: Rows, measure: Callable[[nn.Module, Batch], Tensor]
) -> float:
    """Sum a measure over all rows, in eval mode and without a graph; divide once at the end.

    Args:
        model: Is left in the train or eval mode of each of its modules.
        rows: What to measure on.
        measure: ``measure(model, batch)`` -> a tensor ``[sum, count]``, on the model's device.

    Returns:
        The sum over the count.
    """
    device = next(model.parameters()).device
    total = torch.zeros(2, dtype=torch.float64, device="cpu")
    with _eval_mode(model), torch.no_grad():
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            batch = tuple(c[start : start + _ROWS_AT_ONCE].to(device) for c in rows.columns)
            total += measure(model, batch).cpu().double()  # not all accelerators know float64
    return (total[0] / total[1]).item()


def correct(model: nn.Module, batch: Batch) -> Tensor:
    """Count the right answers of a classifier, for `evaluate_rows`."""
    inputs, labels = batch
    hits = (model(inputs).argmax(dim=1) == labels).sum()
    return torch.stack([hits, hits.new_tensor(len(labels))])


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
