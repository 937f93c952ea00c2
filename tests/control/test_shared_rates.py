"""Oracle: one tensor as the rate of every group, as torch makes it, is one rate."""

import pytest
import torch
from torch.optim import SGD

from rightbatch import BatchSizeController, BatchSizeSchedule
from rightbatch.lr import ExampleLR


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_rate_that_groups_share_is_multiplied_once(scheduled: bool) -> None:
    rate = torch.tensor(0.4)
    groups = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(3)]
    optimizer = SGD(groups, lr=rate)
    scheduler = ExampleLR(optimizer, lambda _: 1.0) if scheduled else None
    schedule = BatchSizeSchedule.seesaw(8, 4, [16, 32, 64], max_batch_size=32)
    controller = BatchSizeController(optimizer, schedule, scheduler=scheduler)
    while controller.examples_seen < 96:
        optimizer.step()
        controller.step(controller.batch_size)
        factor = schedule.size_at(controller.examples_seen).rate_factor
        assert rate.item() == pytest.approx(0.4 * (factor or 0), rel=1e-12)
    assert [move.to_batch_size for move in controller.moves] == [32, 32, 32]
