"""Running averages that follow the batch size. Oracles: decay ** kappa, by hand; the start."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from rightbatch import BatchSizeController, BatchSizeSchedule
from tests.control.doubles import ManyRanks


def two_norms() -> nn.Sequential:
    norms = nn.BatchNorm1d(4, momentum=0.1), nn.BatchNorm1d(4, momentum=0.5)
    forgets_nothing = nn.BatchNorm1d(4, momentum=None)
    return nn.Sequential(norms[0], nn.Linear(4, 4), norms[1], forgets_nothing)


def momenta(model: nn.Module) -> list[float | None]:
    return [layer.momentum for layer in model.modules() if isinstance(layer, nn.BatchNorm1d)]


def averaged(model: nn.Module, kind: str, decay: float) -> Any:
    if kind == "multi_avg_fn":
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    if kind == "avg_fn":
        return AveragedModel(model, avg_fn=get_ema_avg_fn(decay))
    return SimpleNamespace(decay=decay)


def stays_per_update(model_ema: Any) -> float:
    """What one update leaves of the average, found by making one."""
    if isinstance(model_ema, SimpleNamespace):
        return model_ema.decay
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    probe = AveragedModel(model, avg_fn=model_ema.avg_fn, multi_avg_fn=model_ema.multi_avg_fn)
    probe.update_parameters(model)  # the first is a copy
    nn.init.zeros_(model.weight)
    probe.update_parameters(model)
    return next(probe.parameters()).item()


def controlled(text: str, model: nn.Module, **options: Any) -> BatchSizeController:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return BatchSizeController(optimizer, BatchSizeSchedule.parse(text), model=model, **options)


@pytest.mark.parametrize("kind", ["multi_avg_fn", "avg_fn", "object"])
def test_memories_stay_in_examples_and_come_back_to_the_bit(kind: str) -> None:
    model = two_norms()
    ema = averaged(model, kind, 0.99)
    controller = controlled("0:8 8:24 32:8 40:4096 4136:8", model, model_ema=ema)
    found = []
    for _ in range(4):
        controller.step(controller.batch_size)
        found.append((stays_per_update(ema), *momenta(model)[:2]))
    assert found[0] == pytest.approx((0.99**3, 1 - 0.9**3, 1 - 0.5**3), rel=1e-14)
    # At 4096 the larger share is 1 in floating point: only memory of the start leads back.
    assert found[2][2] == 1.0
    assert found[1] == found[3] == (stays_per_update(averaged(model, kind, 0.99)), 0.1, 0.5)
    assert momenta(model)[2] is None
    assert "batch_norm_momentum" in controller.moves[0].scaling
    assert "model_ema" in controller.moves[0].scaling


def test_accumulation_leaves_what_a_forward_pass_sees() -> None:
    model = two_norms()
    ema = averaged(model, "object", 0.99)
    controller = controlled("0:8 8:16 24:64", model, model_ema=ema, max_micro_batch_size=16)
    for _ in range(2):
        controller.step(controller.batch_size)
    # 64 examples are four passes of 16: BatchNorm sees twice as many as at first, not eight times.
    assert controller.accumulation_steps == 4
    assert momenta(model)[0] == pytest.approx(1 - 0.9**2, rel=1e-14)
    assert ema.decay == pytest.approx(0.99**8, rel=1e-14)


def test_another_number_of_devices_sees_other_passes() -> None:
    alone, four = two_norms(), two_norms()
    first = controlled("0:8 8:32", alone)
    first.step(8)
    second = controlled("0:8 8:32", four, comm=ManyRanks(4))
    second.load_state_dict(first.state_dict())
    # 8 examples on one device at the start, and 32 over four devices now: as many a pass.
    assert momenta(four) == [0.1, 0.5, None]


def test_a_choice_of_somebody_else_is_taken_as_it_is() -> None:
    model, resumed = two_norms(), two_norms()
    controller = controlled("0:8 8:16 24:32", model)
    controller.step(8)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d) and layer.momentum is not None:
            layer.momentum = 0.25
    again = controlled("0:8 8:16 24:32", resumed)
    again.load_state_dict(controller.state_dict())
    for one, which in ((controller, model), (again, resumed)):
        one.step(16)
        assert momenta(which)[:2] == [1 - 0.75**2] * 2


def test_they_follow_also_where_the_schedule_says_the_rate() -> None:
    model = two_norms()
    ema = averaged(model, "object", 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = BatchSizeSchedule.smith(8, 2, [8, 24], max_batch_size=16)
    controller = BatchSizeController(optimizer, schedule, model=model, model_ema=ema)
    for _ in range(2):
        controller.step(controller.batch_size)
    assert ema.decay == pytest.approx(0.81, rel=1e-14)
    assert [move.scaling for move in controller.moves] == [
        "the schedule says the rate: times 1, model_ema from 0.9 to 0.81, "
        "batch_norm_momentum from 0.1 to 0.19, batch_norm_momentum from 0.5 to 0.75, nothing else",
        "the schedule says the rate: times 0.5, nothing else",
    ]


def test_left_out_they_stay() -> None:
    model = two_norms()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = BatchSizeController(optimizer, BatchSizeSchedule.parse("0:8 8:32"))
    controller.step(8)
    assert momenta(model) == [0.1, 0.5, None]
    assert "batch_norm" not in controller.moves[0].scaling


@pytest.mark.parametrize(
    ("model_ema", "message"),
    [
        (0.99, "model_ema=0.99.* pass the object that averages"),
        (SimpleNamespace(decay=1.5), r"decay in \[0, 1\], got 1.5"),
        (AveragedModel(nn.Linear(1, 1)), "got an AveragedModel with another function"),
        ("model", "got str"),
    ],
)
def test_averages_whose_decay_cannot_be_set_are_refused(model_ema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        controlled("0:8", two_norms(), model_ema=model_ema)


def test_a_state_of_other_averages_is_refused_and_changes_nothing() -> None:
    saved = controlled("0:8 8:16", two_norms())
    saved.step(8)
    model = nn.Linear(4, 4)
    other = controlled("0:8 8:16", model)
    with pytest.raises(ValueError, match="2 settings of batch_norm for 0"):
        other.load_state_dict(saved.state_dict())
    assert (other.examples_seen, other.batch_size, other.moves) == (0, 8, ())
