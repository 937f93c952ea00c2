"""What a controller refuses, at once where it can, and what it takes from another world."""

from typing import Any

import pytest
import torch

from rightbatch import BatchSizeController, BatchSizeSampler, BatchSizeSchedule, ExampleLR
from rightbatch.batches import Regrouped
from rightbatch.control import controller
from tests.batches.loaders import Ahead
from tests.control.doubles import ManyRanks, controlled, weights_and_optimizer


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("0:8 100:97", {"max_micro_batch_size": 32}, "batch_size=97.* take 96 or 100"),
        ("0:8 100:9", {"comm": ManyRanks(4)}, "batch_size=9.* take 8 or 12"),
        ("0:8", {"max_micro_batch_size": 0}, "max_micro_batch_size=0"),
        ("0:8 100:64", {"sampler": BatchSizeSampler(50, 8)}, "50 examples, got batch_size=64"),
        ("0:8", {"sampler": BatchSizeSampler(50, BatchSizeSchedule.parse("0:8"))}, "pass a number"),
        (
            "0:8",
            {"sampler": BatchSizeSampler(50, 8), "comm": ManyRanks(2)},
            "the 2 .* world_size=1",
        ),
        ("0:8", {"sampler": Regrouped([], 8, world_size=2)}, "the 1 devices .* world_size=2"),
        ("0:8 100:64", {"rule": "saturating"}, "noise_scale"),
        ("0:8 100:64", {"edge": -1.0}, "edge=-1.0"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(
    text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        controlled(BatchSizeSchedule.parse(text), **options)


def test_ranks_talk_from_the_device_of_what_they_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each names its own: all would send from the first device otherwise."""
    named: list[torch.device | None] = []

    def group(device: torch.device | None = None) -> ManyRanks:
        named.append(device)
        return ManyRanks(2)

    monkeypatch.setattr(controller, "default_comm", group)
    weight = torch.nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    BatchSizeController(optimizer, BatchSizeSchedule.parse("0:8"))
    assert named == [torch.device("meta")]


def test_trying_every_size_changes_nothing() -> None:
    _, optimizer = weights_and_optimizer(momentum=0.9)
    sampler = BatchSizeSampler(50, 4)
    before = optimizer.state_dict()
    BatchSizeController(optimizer, BatchSizeSchedule.parse("0:8 100:32"), sampler=sampler)
    assert optimizer.state_dict() == before
    assert sampler.batch_size == 8


def test_a_scheduler_that_is_stepped_twice_is_found() -> None:
    _, optimizer = weights_and_optimizer()
    scheduler = ExampleLR(optimizer, lambda _: 1.0)
    controller = BatchSizeController(optimizer, BatchSizeSchedule.parse("0:8"), scheduler=scheduler)
    optimizer.step()
    scheduler.step(8)
    with pytest.raises(ValueError, match="after 8 examples where 0 were seen"):
        controller.step(8)
    assert controller.examples_seen == 0


def test_a_scheduler_that_counts_steps_is_refused() -> None:
    _, optimizer = weights_and_optimizer()
    scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    with pytest.raises(TypeError, match=r"ExampleLR, got StepLR.*FromTorch"):
        BatchSizeController(optimizer, BatchSizeSchedule.parse("0:8"), scheduler=scheduler)


@pytest.mark.parametrize(("told", "message"), [(None, "got 0 examples"), (7, "examples=7")])
def test_a_step_without_its_batch_is_found(told: int | None, message: str) -> None:
    sampler = BatchSizeSampler(60, 4)
    controller = controlled(BatchSizeSchedule.parse("0:8"), sampler=sampler)
    batches = sampler.follow(Ahead(sampler, 0))
    next(batches)
    if told is None:
        controller.step()
    with pytest.raises(ValueError, match=message):
        controller.step(told)


@pytest.mark.parametrize("examples", [None, 0, -3, 2.5, True])
def test_examples_must_be_told_without_a_sampler(examples: Any) -> None:
    controller = controlled(BatchSizeSchedule.parse("0:8"))
    with pytest.raises(ValueError, match="`examples` must be a whole number of at least 1"):
        controller.step(examples)


def test_another_schedule_is_refused_and_changes_nothing() -> None:
    saved = controlled(BatchSizeSchedule.parse("0:8 8:16"))
    saved.step(8)
    other = controlled(BatchSizeSchedule.parse("0:8 8:32"))
    with pytest.raises(ValueError, match="must be of this schedule"):
        other.load_state_dict(saved.state_dict())
    assert (other.examples_seen, other.batch_size, other.moves) == (0, 8, ())


def test_a_state_of_another_version_is_refused() -> None:
    controller = controlled(BatchSizeSchedule.parse("0:8"))
    with pytest.raises(ValueError, match="version 2, got 0"):
        controller.load_state_dict({**controller.state_dict(), "version": 0})


def test_a_sampler_whose_state_is_kept_elsewhere_gets_its_size_again() -> None:
    saved = controlled(BatchSizeSchedule.parse("0:8 8:16"))
    saved.step(8)
    sampler = BatchSizeSampler(60, 4)
    resumed = controlled(BatchSizeSchedule.parse("0:8 8:16"), sampler=sampler)
    resumed.load_state_dict(saved.state_dict())
    assert sampler.batch_size == 16


def test_another_number_of_devices_shares_the_same_batch() -> None:
    schedule = "0:8 8:32"
    alone = controlled(BatchSizeSchedule.parse(schedule), max_micro_batch_size=4)
    alone.step(8)
    state = alone.state_dict()
    four = controlled(BatchSizeSchedule.parse(schedule), max_micro_batch_size=4, comm=ManyRanks(4))
    four.load_state_dict(state)
    assert (alone.micro_batch_size, alone.accumulation_steps) == (4, 8)
    assert (four.batch_size, four.micro_batch_size, four.accumulation_steps) == (32, 4, 2)
    four.step(8)
    assert four.examples_seen == 40
