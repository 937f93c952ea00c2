"""Predicted peaks. Oracle: the same bytes counted while real steps run."""

import gc
import random
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from rightbatch.hardware import measure_memory
from rightbatch.hardware.fake import CannotPredict, fakes_of
from rightbatch.hardware.live_bytes import LiveBytes
from rightbatch.hardware.workload import held_bytes, host_batches, take_step
from rightbatch.task import Task, supervised
from tests.laws import assert_world_unchanged
from tests.zoo import WORKING, Specimen

pytestmark = pytest.mark.usefixtures("float32")
SIZES = (1, 5, 32)


def counted(task: Task, size: int, accumulation_steps: int = 1) -> int:
    """Peak of the second real step, with all that training holds."""
    batches = host_batches(task, size, seed=0)
    with task.preserved():
        take_step(task, lambda: next(batches), accumulation_steps)
        task.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        states = [t for state in task.optimizer.state.values() for t in state.values()]
        held = [*task.model.parameters(), *task.model.buffers(), *states]
        with LiveBytes([t for t in held if isinstance(t, Tensor)]) as alive:
            batch = [next(batches) for _ in range(accumulation_steps)]
            clones = iter([type(b)(t.clone() for t in b) for b in batch])
            del batch
            take_step(task, lambda: next(clones), accumulation_steps)
        return alive.peak_bytes


def predicted(task: Task, size: int, accumulation_steps: int = 1) -> int:
    def batch_of(count):
        return next(host_batches(task, count, seed=0))

    with fakes_of(task, batch_of, accumulation_steps=accumulation_steps) as fakes:
        fakes.peak_bytes(3)  # makes the optimizer's state
        return fakes.peak_bytes(size)


class Residual(nn.Module):
    def __init__(self, *, checkpointed: bool = False, bf16: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(20, 64), nn.Linear(64, 3)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.1)) for _ in range(4)
        )
        self.checkpointed, self.bf16 = checkpointed, bf16

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            x = self.first(inputs)
            for layer in self.layers:
                x = x + (
                    checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
                )
            return self.last(x)


def residual_task(optimizer=torch.optim.AdamW, clip=None, **options) -> Task:
    model = Residual(**options)
    data = [(torch.randn(20), torch.tensor(i % 3)) for i in range(64)]
    return Task(
        model,
        optimizer(model.parameters(), lr=0.01),
        data,
        supervised(lambda out, y: nn.functional.cross_entropy(out.float(), y)),
        clip_grad_norm=clip,
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": torch.optim.SGD},
        {"optimizer": torch.optim.Adagrad},
        {"clip": 1.0},
        {"checkpointed": True},
        {"bf16": True},
    ],
    ids=str,
)
def test_predicts_what_is_counted_on_real_steps(options, size) -> None:
    task = residual_task(**options)
    assert predicted(task, size) == pytest.approx(counted(task, size), rel=0.02)


def test_accumulation_holds_the_gradients_during_the_next_forward_pass() -> None:
    task = residual_task()
    alone, accumulated = predicted(task, 64), predicted(task, 64, 2)
    assert accumulated == pytest.approx(counted(task, 64, 2), rel=0.02)
    assert accumulated > alone


def test_checkpointing_shows() -> None:
    assert predicted(residual_task(checkpointed=True), 512) < 0.8 * predicted(residual_task(), 512)


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_every_working_task_is_left_as_it_was(specimen: Specimen) -> None:
    task = specimen.make()
    held = held_bytes(task)
    assert held > 0

    def look() -> None:
        def batch_of(count):
            return next(host_batches(task, count, seed=0))

        # Where it cannot be predicted, real steps are tried instead.
        with suppress(CannotPredict), fakes_of(task, batch_of) as fakes:
            assert held <= fakes.peak_bytes(2) <= fakes.peak_bytes(50)

    assert_world_unchanged(task, look, interrupt=False)  # an error there means: no prediction


def test_an_interrupt_puts_everything_back() -> None:
    task = residual_task()
    task.check()
    parameters, random = list(task.parameters), torch.get_rng_state()
    values = [p.clone() for p in parameters]

    def interrupted(model, batch):
        raise KeyboardInterrupt("stop")

    task._loss = interrupted
    with (
        pytest.raises(KeyboardInterrupt, match="stop"),
        fakes_of(task, lambda n: next(host_batches(task, n, seed=0))) as fakes,
    ):
        fakes.peak_bytes(4)
    assert all(a is b for a, b in zip(parameters, task.parameters, strict=True))
    assert all(a is b for a, b in zip(parameters, task.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(parameters, values, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert not task.optimizer.state


def test_a_cache_in_the_model_holds_no_fakes_afterwards() -> None:
    class Caching(nn.Linear):
        seen = None

        def forward(self, inputs: Tensor) -> Tensor:
            self.seen = super().forward(inputs)
            return self.seen

    model = Caching(3, 1)
    task = Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.zeros(9, 3),
        lambda m, x: m(x).mean(),
    )
    before = dict(vars(model))
    predicted(task, 8)
    assert vars(model).keys() == before.keys()
    assert type(model.weight) is nn.Parameter
    assert model.weight.untyped_storage().data_ptr() != 0


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(20, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.linear(inputs)
        if torch.isnan(out).any():
            raise FloatingPointError("NaN")
        return out * (1 / max(out.abs().max().item(), 1.0))


def test_numbers_that_a_step_asks_for_are_made_up_and_told() -> None:
    model = Asking()
    data = [(torch.randn(20), torch.tensor(i % 3)) for i in range(64)]
    task = Task(
        model,
        torch.optim.AdamW(model.parameters()),
        data,
        supervised(nn.functional.cross_entropy),
    )
    with fakes_of(task, lambda n: next(host_batches(task, n, seed=0))) as fakes:
        fakes.peak_bytes(4)
        assert fakes.guarded
    with fakes_of(
        plain := residual_task(), lambda n: next(host_batches(plain, n, seed=0))
    ) as fakes:
        fakes.peak_bytes(4)
        assert not fakes.guarded  # AdamW reads its own step counter, which does not count


def test_what_depends_on_values_cannot_be_predicted() -> None:
    model = nn.Linear(20, 3)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        out = model(batch[0])
        return out[out > 0].sum() / len(out)

    data = [(torch.randn(20), torch.tensor(i % 3)) for i in range(64)]
    task = Task(model, torch.optim.SGD(model.parameters(), lr=0.1), data, loss)
    with (
        fakes_of(task, lambda n: next(host_batches(task, n, seed=0))) as fakes,
        pytest.raises(CannotPredict, match="without numbers to predict its memory"),
    ):
        fakes.peak_bytes(4)


@pytest.mark.parametrize("follows", ["chance", "examples"])
def test_batches_whose_width_varies_cannot_be_predicted(follows: str) -> None:
    """Two and three examples of another width look as if examples added to the width."""

    def collate(examples: list[Tensor]) -> Tensor:
        by_content = 24 + 8 * (int(examples[0].sum()) % 3)
        width = random.choice((24, 32, 40)) if follows == "chance" else by_content
        return torch.stack(examples)[:, None].expand(-1, width)

    random.seed(0)
    model = nn.Linear(1, 1)
    task = Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.arange(64.0),
        lambda model, batch: model(batch[..., None]).mean(),
        collate_fn=collate,
    )
    profile = measure_memory(task, budget_bytes=2**28, time_budget_seconds=60)
    assert {point.source for point in profile.points} == {"real"}
    assert any("must have one shape, got [(2, " in note for note in profile.notes)


def test_a_model_with_batch_norm_is_predicted() -> None:
    model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    data = [(torch.randn(20), torch.tensor(i % 3)) for i in range(64)]
    loss = supervised(nn.functional.cross_entropy)
    task = Task(model, torch.optim.SGD(model.parameters(), lr=0.1), data, loss)
    profile = measure_memory(task, budget_bytes=2**28)
    assert profile.notes == ()
    assert {point.source for point in profile.points} == {"fake", "real"}


def test_an_average_of_the_model_kept_beside_it_is_untouched() -> None:
    task = residual_task()
    average = AveragedModel(task.model)
    task.optimizer.register_step_post_hook(lambda *_: average.update_parameters(task.model))
    before = [p.clone() for p in average.parameters()]
    with fakes_of(task, lambda n: next(host_batches(task, n, seed=0))) as fakes:
        fakes.peak_bytes(4)
    assert all(torch.equal(a, b) for a, b in zip(before, average.parameters(), strict=True))
    assert average.n_averaged.item() == 0
