"""The three tasks that batch size finders are compared on, and their budgets."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import rightbatch as rb
from benchmarks.monitor import Transformer
from benchmarks.per_example import resnet18

MIB = 2**20
EXAMPLES = 2**17  # never the limit


class Drawn(Dataset[tuple[Tensor, Tensor]]):
    """Examples made when they are asked for: no finder is charged for a data set."""

    def __init__(self, make: Callable[[], tuple[Tensor, Tensor]], examples: int) -> None:
        self._make, self._examples = make, examples

    def __len__(self) -> int:
        return self._examples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._make()


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def digit() -> tuple[Tensor, Tensor]:
    return torch.zeros(784), torch.tensor(1)


def image() -> tuple[Tensor, Tensor]:
    return torch.zeros(3, 32, 32), torch.tensor(1)


def text() -> tuple[Tensor, Tensor]:
    return torch.zeros(128, dtype=torch.long), torch.zeros(128, dtype=torch.long)


def gpt() -> nn.Module:
    return Transformer(4, 128, 4, 128, 4000)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = batch
    outputs = model(inputs)
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "MLP": (perceptron, digit),
    "ResNet-18": (resnet18, image),
    "small GPT": (gpt, text),
}
BUDGETS = {  # MiB: for tens of examples at least, but for thousands where they are small
    "MLP": (150, 300, 450),
    "ResNet-18": (300, 450, 600),
    "small GPT": (300, 450, 600),
}


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-6)


def make(name: str, examples: int = EXAMPLES) -> rb.Task:
    """Build one of the tasks."""
    torch.manual_seed(0)
    build, draw = MODELS[name]
    model = build()
    return rb.Task(model, optimizer_for(model), Drawn(draw, examples), loss, name=name)
