"""A run that is killed at any step and resumed ends bit for bit where it would have ended."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from rightbatch.batches import BatchSizeSampler, BatchSizeSchedule
from tests.ranks import on_two_ranks

EPOCHS = 2  # of 30 examples

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(3, (30,), generator=generator))


class Run:
    """A model with dropout, an optimizer with momentum, and a batch that changes on the way."""

    def __init__(
        self, *, by_hand: bool, workers: int, chunk_size: int | None = None, rank: int | None = None
    ) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        if rank is not None:
            torch.manual_seed(rank)  # each rank its own dropout
        self.model = model if rank is None else DistributedDataParallel(model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        size = 4 if by_hand else BatchSizeSchedule.table({0: 4, 10: 6, 34: 10})
        world = {} if rank is None else {"rank": rank, "world_size": 2}
        self.sampler = BatchSizeSampler(30, size, chunk_size=chunk_size, **world)
        self.loader = DataLoader(dataset(), batch_sampler=self.sampler, num_workers=workers)
        self.moves = {2: 6, 4: 2, 7: 10} if by_hand else {}

    def steps(self) -> Iterator[None]:
        for _ in range(self.sampler.epoch, EPOCHS):
            for inputs, labels in self.sampler.follow(self.loader):
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(inputs), labels).backward()
                self.optimizer.step()
                if self.sampler.delivered in self.moves:
                    self.sampler.set_batch_size(self.moves[self.sampler.delivered])
                yield

    def saved(self) -> io.BytesIO:
        buffer = io.BytesIO()
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "sampler": self.sampler.state_dict(),
                "random": torch.get_rng_state(),
            },
            buffer,
        )
        buffer.seek(0)
        return buffer

    def load(self, file: io.BytesIO) -> None:
        state: dict[str, Any] = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        torch.set_rng_state(state["random"])

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def ends_alike(killed_after: list[int], **options: Any) -> bool:
    """Whether runs killed after so many steps end as the whole one."""
    whole = Run(**options)
    steps = sum(1 for _ in whole.steps())
    assert steps > max(killed_after)
    expected = whole.weights()
    alike = True
    for stop in killed_after:
        first = Run(**options)
        going = first.steps()
        for _ in range(stop):
            next(going)
        file = first.saved()
        going.close()
        second = Run(**options)
        torch.rand(5)  # a new process is elsewhere in its random numbers
        second.load(file)
        rest = sum(1 for _ in second.steps())
        ended = all(map(torch.equal, second.weights(), expected))
        alike = alike and ended and stop + rest == steps
    return alike


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_killed_at_any_step(by_hand: bool, chunk_size: int | None) -> None:
    assert ends_alike(list(range(1, 9)), by_hand=by_hand, workers=0, chunk_size=chunk_size)


@pytest.mark.slow
@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_killed_with_workers(by_hand: bool, chunk_size: int | None) -> None:
    assert ends_alike([1, 3, 6], by_hand=by_hand, workers=2, chunk_size=chunk_size)


def killed_ranks(rank: int, by_hand: bool) -> bool:
    alike = ends_alike([2, 5], by_hand=by_hand, workers=0, rank=rank)
    dist.barrier()
    return alike


@pytest.mark.slow
@pytest.mark.parametrize("by_hand", [False, True])
def test_killed_on_two_ranks(by_hand: bool) -> None:
    assert on_two_ranks(killed_ranks, by_hand) == [True, True]
