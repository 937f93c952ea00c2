"""When the size moves, and what moves with it. Oracles: the rules' closed forms, by hand."""

from typing import Any

import pytest
import torch

from rightbatch import BatchSizeController, BatchSizeSampler, BatchSizeSchedule, ExampleLR
from rightbatch.batches import Regrouped
from rightbatch.control import Move
from rightbatch.control.evidence import Evidence
from rightbatch.lr import Steps
from tests.batches.loaders import Ahead
from tests.control.doubles import FakeMonitor, ManyRanks, controlled, rate, weights_and_optimizer
from tests.ranks import on_two_ranks


def test_moves_are_logged_with_their_reasons() -> None:
    logged: list[Move] = []
    _, optimizer = weights_and_optimizer(momentum=0.9)
    schedule = BatchSizeSchedule.parse("0:8 16:16 32:32")
    controller = BatchSizeController(
        optimizer,
        schedule,
        max_micro_batch_size=8,
        noise_scale=1000.0,
        rule="linear",
        log=logged.append,
    )
    while controller.examples_seen < 64:
        controller.step(controller.batch_size)
    assert logged == list(controller.moves)
    assert [str(move) for move in logged] == [
        "after 16 examples 8 -> 16 (8 x 2 a device): the table says 16 from 16 examples on",
        "after 32 examples 16 -> 32 (8 x 4 a device): the table says 32 from 32 examples on",
    ]
    assert logged[1].scaling.startswith("SGD: batch size 16 -> 32 (rule linear)")
    assert [move.valid for move in logged] == [True, True]
    assert rate(optimizer) == pytest.approx(0.4, rel=1e-15)


def test_the_edge_caps_every_move() -> None:
    _, optimizer = weights_and_optimizer()
    schedule = BatchSizeSchedule.parse("0:8 8:32 40:8")
    controller = BatchSizeController(optimizer, schedule, edge=0.25)
    rates = [rate(optimizer)]
    for examples in (8, 32):
        controller.step(examples)
        rates.append(rate(optimizer))
    assert rates == [0.1, 0.25, 0.1]


def test_the_rate_schedule_keeps_its_shape_and_moves_its_base() -> None:
    _, optimizer = weights_and_optimizer(lr=0.1)
    scheduler = ExampleLR(optimizer, Steps((48,), 0.5))
    schedule = BatchSizeSchedule.parse("0:8 16:32")
    controller = BatchSizeController(optimizer, schedule, scheduler=scheduler)
    rates = []
    for examples in (8, 8, 32):
        optimizer.step()
        controller.step(examples)
        rates.append(rate(optimizer))
    assert rates == pytest.approx([0.1, 0.4, 0.2], rel=1e-15)
    assert "Pass `scheduler`" not in controller.moves[0].scaling
    assert scheduler.examples_seen == controller.examples_seen == 48


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_schedule_that_says_the_rate_is_taken_at_its_word(scheduled: bool) -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    scheduler = ExampleLR(optimizer, lambda _: 1.0) if scheduled else None
    schedule = BatchSizeSchedule.seesaw(8, 4, [16, 32, 64], max_batch_size=32)
    controller = BatchSizeController(optimizer, schedule, scheduler=scheduler)
    while controller.examples_seen < 96:
        optimizer.step()
        controller.step(controller.batch_size)
        factor = schedule.size_at(controller.examples_seen).rate_factor
        assert rate(optimizer) == pytest.approx(0.1 * (factor or 0), rel=1e-14)
    # The batch is at its cap from 32 examples on, so the later moves are of the rate alone.
    assert [move.to_batch_size for move in controller.moves] == [32, 32, 32]
    assert "nothing else" in controller.moves[0].scaling
    group = optimizer.param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.999), 0.01)


def test_it_follows_the_noise_and_asks_once_per_measurement() -> None:
    monitor = FakeMonitor()
    schedule = BatchSizeSchedule.noise(8, max_batch_size=32, dwell_examples=16)
    controller = controlled(schedule, monitor=monitor)
    sizes = []
    for measured in (None, 8.0, None, 30.0, None):
        if measured is not None:
            monitor.measures(measured)
        controller.step(8)
        sizes.append(controller.batch_size)
    # 30 is measured after 32 examples: it moves at once, and again after 16 more.
    assert sizes == [8, 8, 8, 16, 16]
    controller.step(16)
    assert controller.batch_size == 32
    assert monitor.asked == 2
    assert "30 is wanted" in controller.moves[0].reason


def test_the_measured_noise_scale_takes_the_place_of_the_given_one() -> None:
    rates = []
    for measured in (None, 24.0):
        monitor = FakeMonitor()
        monitor.measures(measured)
        _, optimizer = weights_and_optimizer()
        schedule = BatchSizeSchedule.parse("0:8 8:24")
        controller = BatchSizeController(optimizer, schedule, monitor=monitor, noise_scale=8.0)
        controller.step(8)
        rates.append(rate(optimizer))
    # Saturating: (1 + B/8) / (1 + B/24).
    assert rates == pytest.approx([0.1 * 2 / (4 / 3), 0.1 * 4 / 2], rel=1e-14)


def test_a_move_waits_for_its_first_batch() -> None:
    sampler = BatchSizeSampler(60, 4, shuffle=False)
    _, optimizer = weights_and_optimizer()
    controller = BatchSizeController(
        optimizer, BatchSizeSchedule.parse("0:4 8:8"), sampler=sampler, rule="linear"
    )
    arrived = []
    for batch in sampler.follow(Ahead(sampler, 3)):
        assert controller.batch_size == len(batch) or len(batch) == 60 % 8
        arrived.append((len(batch), rate(optimizer)))
        controller.step()
    # Two of four, and three more that were drawn by then.
    assert arrived[:6] == [(4, 0.1)] * 5 + [(8, 0.2)]
    assert controller.moves[0].examples_seen == 20


def test_chunks_move_at_once() -> None:
    _, optimizer = weights_and_optimizer()
    batches = Regrouped([torch.arange(40)], 4)
    controller = BatchSizeController(
        optimizer, BatchSizeSchedule.parse("0:4 8:16"), sampler=batches
    )
    sizes = []
    for batch in batches:
        sizes.append((len(batch), controller.batch_size))
        controller.step(len(batch))
    assert sizes == [(4, 4), (4, 4), (16, 16), (16, 16)]


def test_what_another_rank_measured_does_not_count() -> None:
    monitor = FakeMonitor()
    monitor.measures(32.0)
    assert Evidence(monitor, ManyRanks(2, rank=1)).noise() is None
    alone = Evidence(monitor, ManyRanks(1)).noise()
    assert alone is not None
    assert (alone.noise_scale, alone.low, alone.high) == (32.0, 0.9 * 32.0, 1.1 * 32.0)


def moves_of_ranks(rank: int) -> list[Any]:
    monitor = FakeMonitor()
    schedule = BatchSizeSchedule.noise(8, max_batch_size=64, dwell_examples=0)
    controller = controlled(schedule, monitor=monitor)
    for _ in range(4):
        if rank == 0:
            monitor.measures(32.0)  # rank 1 measures nothing, and moves all the same
        controller.step(controller.batch_size // 2)
    return [controller.examples_seen, [str(move) for move in controller.moves]]


@pytest.mark.slow
def test_all_ranks_move_together() -> None:
    first, second = on_two_ranks(moves_of_ranks)
    assert first == second
    assert first[0] == 8 + 16 + 32 + 32
    assert len(first[1]) == 2
