"""A controlled run that is killed at any step and resumed ends bit for bit as it would have.

Oracle: the run that was not killed.
"""

import io
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from rightbatch import (
    BatchSizeController,
    BatchSizeSampler,
    BatchSizeSchedule,
    ExampleLR,
    NoiseMonitor,
)
from rightbatch.control import Move
from rightbatch.lr import Sequence, Steps, Warmup
from tests.control.doubles import FakeMonitor, rate
from tests.ranks import on_two_ranks

EPOCHS, EXAMPLES = 2, 90  # so that each epoch ends with a smaller batch

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def wants_more(noise_scale: float) -> float:
    """Grow with any noise, so that a short run moves twice."""
    return 1000.0 + noise_scale


class Run:
    """A model with dropout that trains by a controller, with everything that it drives.

    Of the kind "averages" it has BatchNorm and a model average, which follow the batch size.
    """

    def __init__(self, *, kind: str = "table", workers: int = 0, rank: int | None = None) -> None:
        torch.manual_seed(0)
        self.has_averages = has_averages = kind == "averages"
        middle = nn.BatchNorm1d(8) if has_averages else nn.ReLU()
        model = nn.Sequential(nn.Linear(4, 8), middle, nn.Dropout(0.3), nn.Linear(8, 3))
        self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        if rank is not None:
            torch.manual_seed(rank)  # each rank its own dropout
        self.model = model if rank is None else DistributedDataParallel(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, weight_decay=0.1)
        warmup = Sequence(Warmup(30, start=0.1), Steps((70, 120), 0.7))
        self.scheduler = ExampleLR(self.optimizer, warmup)
        self.monitor = FakeMonitor()
        self.real = NoiseMonitor(self.model, self.optimizer, every=2)
        if kind == "monitor":
            self.real.__enter__()
        schedules = {
            "table": BatchSizeSchedule.parse("0:8 40:16 100:32"),
            "averages": BatchSizeSchedule.parse("0:8 40:16 100:32"),
            "seesaw": BatchSizeSchedule.seesaw(8, 2, [40, 100], max_batch_size=16),
            "monitor": BatchSizeSchedule.noise(
                8, max_batch_size=32, dwell_examples=20, policy=wants_more
            ),
            "noise": BatchSizeSchedule.noise(8, max_batch_size=32, dwell_examples=20),
        }
        world_size = 1 if rank is None else 2
        self.sampler = BatchSizeSampler(
            EXAMPLES,
            8,
            rank=rank or 0,
            world_size=world_size,
            drop_last=has_averages,  # BatchNorm cannot normalise the one example left for a rank
        )
        generator = torch.Generator().manual_seed(7)
        inputs = torch.randn(EXAMPLES, 4, generator=generator, dtype=torch.float64)
        data = TensorDataset(inputs, inputs[:, :3].argmax(1))
        self.loader = DataLoader(data, batch_sampler=self.sampler, num_workers=workers)
        self.logged: list[Move] = []
        self.controller = BatchSizeController(
            self.optimizer,
            schedules[kind],
            sampler=self.sampler,
            max_micro_batch_size=None if has_averages else 5,
            scheduler=self.scheduler,
            model=self.model if has_averages else None,
            model_ema=self.ema if has_averages else None,
            monitor={"noise": self.monitor, "monitor": self.real}.get(kind),
            log=self.logged.append,
        )

    def steps(self) -> Generator[int]:
        for _ in range(self.sampler.epoch, EPOCHS):
            for batch in self.sampler.follow(self.loader):
                self.optimizer.zero_grad()
                for (inputs, labels), weight in self.controller.micro_batches(batch):
                    (weight * F.cross_entropy(self.model(inputs), labels)).backward()
                    self.real.observe(len(labels), factor=weight)
                self.optimizer.step()
                if self.has_averages:
                    self.ema.update_parameters(getattr(self.model, "module", self.model))
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
            "monitor": self.real,
            "ema": self.ema,
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
        ended = [*self.model.state_dict().values(), *self.ema.state_dict().values()]
        return (
            [tensor.clone() for tensor in ended],
            self.controller.moves,
            rate(self.optimizer),
            self.scheduler.base_lrs,
        )


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


@pytest.mark.parametrize(
    "order",
    [list, pytest.param(reversed, marks=pytest.mark.slow)],
    ids=["in turn", "backwards"],
)
@pytest.mark.parametrize("kind", ["table", "seesaw", "noise", "monitor", "averages"])
def test_a_run_killed_at_any_step_ends_as_it_would_have(
    kind: str, order: Callable[[list[str]], Any]
) -> None:
    assert ends_alike(None, order, kind=kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "noise"])
def test_killed_while_a_move_waits_for_workers(kind: str) -> None:
    assert ends_alike([5, 7], kind=kind, workers=2)


def killed_ranks(rank: int, kind: str) -> bool:
    alike = ends_alike([3, 6, 9], kind=kind, rank=rank)
    dist.barrier()
    return alike


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "seesaw", "noise", "averages"])
def test_killed_on_two_ranks(kind: str) -> None:
    assert on_two_ranks(killed_ranks, kind) == [True, True]
