"""Rented bikes by the hour: a table with categories, the kind of task that is not images."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.task import Task
from rightbatch.tasks.bike_table import (
    CATEGORIES,
    NUMBERS,
    BikeTable,
    bike_table_sha256,
    read_bike_table,
)
from rightbatch.tasks.building import default_device, seeded_float32, split_rows
from rightbatch.tasks.data_files import DataFile, locate
from rightbatch.tasks.rows import Batch, Rows, evaluate_rows, take


def _table_digest(path: Path) -> str:
    return bike_table_sha256(read_bike_table(path))


BIKES_FILE = DataFile(
    name="bike_sharing_hour.csv",
    url="https://archive.ics.uci.edu/static/public/275/bike+sharing+dataset.zip",
    member="hour.csv",
    sha256="11e08374c448229649b93e64c7442558b93d516a008804bd70bdb8c82333c434",
    digest=_table_digest,
)
_TRAIN_SHARE = 0.8
_EMBEDDING_WIDTH = 8


def bikes(*, seed: int = 0, device: torch.device | str | None = None) -> Task:
    """Build the bikes task: 13,903 hours, a perceptron on embedded categories and the weather.

    17,609 parameters; AdamW with learning rate 0.001 and weight decay 0.01; batch size 64. The
    loss is the mean squared error of ``log(1 + count)``, standardised. `Task.evaluate` is the
    root-mean-square error of ``log(1 + count)`` on the 3,476 held-out hours, about the relative
    error of the count: lower is better.

    Args:
        seed: Of the initial weights. The split into training and held-out hours never changes.
        device: Where to train; the accelerator if there is one.

    Raises:
        DataUnavailable: If ``bike_sharing_hour.csv`` cannot be found, downloaded or read.
    """
    categories, numbers, targets = _columns(read_bike_table(locate(BIKES_FILE)))
    train, test = split_rows(len(targets), round(_TRAIN_SHARE * len(targets)))
    numbers = _standardised(numbers, train)
    scale = targets[train].std(correction=0).item()
    targets = _standardised(targets, train)
    held_out = Rows(categories[test], numbers[test], targets[test])
    with seeded_float32(seed):
        model = _EmbeddedTable().to(device or default_device())
    return Task(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01),
        Rows(categories[train], numbers[train], targets[train]),
        _loss,
        collate_fn=take,
        evaluate=lambda trained: (
            scale * math.sqrt(evaluate_rows(trained, held_out, _squared_error))
        ),
        batch_size=64,
        name="bikes",
    )


class _EmbeddedTable(nn.Module):
    """A vector for every category of every column, then a perceptron of two hidden layers.

    The vectors are rows of one table, each column's after the last one's: one look-up instead
    of eight.
    """

    first_row: Tensor

    def __init__(self) -> None:
        super().__init__()
        counts = torch.tensor([count for _, count in CATEGORIES.values()])
        self.register_buffer("first_row", counts.cumsum(0) - counts)
        self.embedding = nn.Embedding(int(counts.sum()), _EMBEDDING_WIDTH)
        self.layers = nn.Sequential(
            nn.Linear(len(CATEGORIES) * _EMBEDDING_WIDTH + len(NUMBERS), 128),
            nn.ReLU(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, 1),
        )

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        embedded = self.embedding(categories + self.first_row).flatten(start_dim=1)
        return self.layers(torch.cat([embedded, numbers], dim=1)).squeeze(1)


def _columns(table: BikeTable) -> tuple[Tensor, Tensor, Tensor]:
    categories = [torch.tensor(table[name]) - low for name, (low, _) in CATEGORIES.items()]
    numbers = [torch.tensor(table[name], dtype=torch.float32) for name in NUMBERS]
    counts = torch.tensor(table["cnt"], dtype=torch.float32)
    return torch.stack(categories, dim=1), torch.stack(numbers, dim=1), counts.log1p()


def _standardised(values: Tensor, train: Tensor) -> Tensor:
    """Shift and scale columns by what the training rows alone say."""
    spread, mean = torch.std_mean(values[train], dim=0, correction=0)
    return (values - mean) / spread.clamp_min(1e-6)  # a constant column has no spread


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    categories, numbers, targets = batch
    return F.mse_loss(model(categories, numbers), targets)


def _squared_error(model: nn.Module, batch: Batch) -> Tensor:
    categories, numbers, targets = batch
    error = F.mse_loss(model(categories, numbers), targets, reduction="sum")
    return torch.stack([error, error.new_tensor(len(targets))])
