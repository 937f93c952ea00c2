"""Tensors as a data set. Oracle: the definition, one row at a time."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, default_collate

from rightbatch.tasks.rows import Rows, correct, evaluate_rows, take

ROWS = Rows(torch.randn(11, 2, 3), torch.arange(11), torch.rand(11))


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_batch_is_its_rows_collated() -> None:
    indices = [4, 0, 4, 10]
    assert same(ROWS.__getitems__(indices), default_collate([ROWS[index] for index in indices]))


@pytest.mark.parametrize("size", [1, 4, 11])
def test_loader_gives_every_row_in_order(size: int) -> None:
    batches = list(DataLoader(ROWS, batch_size=size, collate_fn=take))
    assert [len(batch[0]) for batch in batches] == [size] * (11 // size) + [11 % size] * bool(
        11 % size
    )
    assert same([torch.cat(parts) for parts in zip(*batches, strict=True)], ROWS.columns)


def test_loader_asks_for_batches_and_never_for_single_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Rows, index: int) -> tuple[Tensor, ...]:
        raise AssertionError(f"asked for row {index}")

    monkeypatch.setattr(Rows, "__getitem__", refuse)
    assert len(list(DataLoader(ROWS, batch_size=4, collate_fn=take))) == 3


def test_a_subset_is_drawn_in_batches_too() -> None:
    batch = next(iter(DataLoader(Subset(ROWS, [9, 2, 5]), batch_size=2, collate_fn=take)))
    assert same(batch, ROWS.__getitems__([9, 2]))


def test_unequal_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equally long, got \[3, 2\]"):
        Rows(torch.zeros(3), torch.zeros(2))


class Shares(nn.Module):
    """Says the class that its one input names, unless dropout is on."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(p=1.0)
        self.frozen = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.scale * nn.functional.one_hot(x, 3).double())


@pytest.mark.parametrize("count", [1, 249, 250, 251, 601])
def test_accuracy_is_the_share_of_right_answers_over_all_rows(count: int) -> None:
    said = torch.arange(count) % 3
    truth = torch.where(torch.arange(count) % 5 == 0, (said + 1) % 3, said)
    slow = sum(int(a) == int(b) for a, b in zip(said, truth, strict=True)) / count
    assert evaluate_rows(Shares(), Rows(said, truth), correct) == pytest.approx(slow, rel=1e-15)


def test_every_module_gets_its_own_mode_back_and_no_graph_is_made() -> None:
    model = Shares()
    model.train()
    model.frozen.eval()
    seen = []

    def measure(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        seen.append((model.training, torch.is_grad_enabled()))
        return torch.ones(2)

    evaluate_rows(model, ROWS, measure)
    assert seen == [(False, False)]
    assert [m.training for m in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error() -> None:
    model = Shares().train()

    def fail(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        evaluate_rows(model, ROWS, fail)
    assert all(m.training for m in model.modules())
