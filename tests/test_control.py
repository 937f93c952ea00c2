"""Changing the batch size in a live loop. Oracles: the uninterrupted run, the whole batch's gradient.

Closed forms for rates: the linear rule of SGD, and the factors of schedules that say the rate.
"""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from rightbatch import BatchSizeController, BatchSizeSampler, BatchSizeSchedule, ExampleLR
from rightbatch.batches import Regrouped, nearest_valid
from rightbatch.control import Move
from rightbatch.control.accumulation import accumulation_for
from rightbatch.lr import Sequence, Steps, Warmup
from tests.ranks import on_two_ranks

EPOCHS, EXAMPLES = 2, 90  # so that each epoch ends with a smaller batch

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def weights_and_optimizer(lr: float = 0.1, **options: Any) -> tuple[Tensor, torch.optim.SGD]:
    weight = torch.zeros(1, requires_grad=True)
    return weight, torch.optim.SGD([weight], lr=lr, **options)


def controlled(schedule: BatchSizeSchedule, **options: Any) -> BatchSizeController:
    return BatchSizeController(weights_and_optimizer()[1], schedule, **options)


def rate(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


@dataclass
class FakeMonitor:
    """Measures what a test says; counts how often its result was asked for."""

    noise_scale: float | None = None
    averages: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(measured=0))
    asked: int = 0

    def measures(self, noise_scale: float | None) -> None:
        self.noise_scale = noise_scale
        self.averages.measured += 1

    def result(self) -> Any:
        self.asked += 1
        noise = self.noise_scale
        low, high = (0.0, None) if noise is None else (0.9 * noise, 1.1 * noise)
        return SimpleNamespace(noise_scale=noise, low=low, high=high)


@dataclass
class ManyRanks:
    """A world in which every rank holds what this one does."""

    world_size: int
    rank: int = 0

    def sum(self, values: Tensor) -> Tensor:
        return values * self.world_size


# Runs that are killed.


class Run:
    """A model with dropout that trains by a controller, with everything that it drives."""

    def __init__(self, *, kind: str = "table", workers: int = 0, rank: int | None = None) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        if rank is not None:
            torch.manual_seed(rank)  # each rank its own dropout
        self.model = model if rank is None else DistributedDataParallel(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, weight_decay=0.1)
        warmup = Sequence(Warmup(30, start=0.1), Steps([70, 120], 0.7))
        self.scheduler = ExampleLR(self.optimizer, warmup)
        self.monitor = FakeMonitor()
        schedules = {
            "table": BatchSizeSchedule.parse("0:8 40:16 100:32"),
            "seesaw": BatchSizeSchedule.seesaw(8, 2, [40, 100], max_batch_size=16),
            "noise": BatchSizeSchedule.noise(8, max_batch_size=32, dwell_examples=20),
        }
        world = {} if rank is None else {"rank": rank, "world_size": 2}
        self.sampler = BatchSizeSampler(EXAMPLES, 8, **world)
        generator = torch.Generator().manual_seed(7)
        inputs = torch.randn(EXAMPLES, 4, generator=generator, dtype=torch.float64)
        data = TensorDataset(inputs, torch.randint(3, (EXAMPLES,), generator=generator))
        self.loader = DataLoader(data, batch_sampler=self.sampler, num_workers=workers)
        self.logged: list[Move] = []
        self.controller = BatchSizeController(
            self.optimizer,
            schedules[kind],
            sampler=self.sampler,
            max_micro_batch_size=5,
            scheduler=self.scheduler,
            monitor=self.monitor if kind == "noise" else None,
            log=self.logged.append,
        )

    def steps(self) -> Iterator[int]:
        for _ in range(self.sampler.epoch, EPOCHS):
            for batch in self.sampler.follow(self.loader):
                self.optimizer.zero_grad()
                for (inputs, labels), weight in self.controller.micro_batches(batch):
                    (weight * F.cross_entropy(self.model(inputs), labels)).backward()
                self.optimizer.step()
                # A noise scale that is known by the count, as a resumed monitor's is.
                self.monitor.measures(8.0 + self.controller.examples_seen / 4)
                self.controller.step(len(batch[1]))
                yield len(batch[1])

    def parts(self) -> dict[str, Any]:
        return {
            "controller": self.controller,
            "sampler": self.sampler,
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }

    def saved(self) -> io.BytesIO:
        buffer = io.BytesIO()
        state = {name: part.state_dict() for name, part in self.parts().items()}
        torch.save({**state, "random": torch.get_rng_state()}, buffer)
        buffer.seek(0)
        return buffer

    def load(self, file: io.BytesIO, order: Callable[[list[str]], Any]) -> None:
        state: dict[str, Any] = torch.load(file, weights_only=True)
        parts = self.parts()
        for name in order(list(parts)):
            parts[name].load_state_dict(state[name])
        torch.set_rng_state(state["random"])

    def end(self) -> tuple[list[Tensor], tuple[Move, ...], float, Any]:
        weights = [parameter.detach().clone() for parameter in self.model.parameters()]
        return weights, self.controller.moves, rate(self.optimizer), self.scheduler.base_lrs


def ends_alike(
    kills: list[int] | None, order: Callable[[list[str]], Any] = list, **options: Any
) -> bool:
    """Whether runs killed after so many steps (each, by default) end as the whole one."""
    whole = Run(**options)
    sizes = list(whole.steps())
    expected, *others = whole.end()
    assert len(whole.controller.moves) == 2, "the run must cross both moves"
    alike = list(whole.controller.moves) == whole.logged
    for stop in range(1, len(sizes)) if kills is None else kills:
        first = Run(**options)
        going = first.steps()
        before = [next(going) for _ in range(stop)]
        file = first.saved()
        going.close()
        second = Run(**options)
        torch.rand(5)  # a new process is elsewhere in its random numbers
        second.load(file, order)
        after = list(second.steps())
        ended, *rest = second.end()
        alike = alike and before + after == sizes and rest == others
        alike = alike and all(map(torch.equal, ended, expected))
    return alike


@pytest.mark.parametrize("order", [list, reversed], ids=["in turn", "backwards"])
@pytest.mark.parametrize("kind", ["table", "seesaw", "noise"])
def test_a_run_killed_at_any_step_ends_as_it_would_have(
    kind: str, order: Callable[[list[str]], Any]
) -> None:
    assert ends_alike(None, order, kind=kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "noise"])
def test_killed_while_a_move_waits_for_workers(kind: str) -> None:
    assert ends_alike([4, 5, 6, 7, 8, 9], kind=kind, workers=2)


def killed_ranks(rank: int, kind: str) -> bool:
    alike = ends_alike([3, 6, 9], kind=kind, rank=rank)
    dist.barrier()
    return alike


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "seesaw", "noise"])
def test_killed_on_two_ranks(kind: str) -> None:
    assert on_two_ranks(killed_ranks, kind) == [True, True]
