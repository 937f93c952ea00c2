"""Rates by examples seen: closed forms, torch at one batch size, and laws over batch sizes."""

import copy
import gc
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Adam, Optimizer, lr_scheduler

import rightbatch as rb
from rightbatch.lr import Cosine, FromTorch, InverseSqrt, Linear, Sequence, Steps, Warmup

WARM_COSINE = Sequence(Warmup(640), Cosine(6400, end=0.1))


def optimizer_with(*rates: float | torch.Tensor) -> Optimizer:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    return SGD(groups, lr=1.0)


def rates_of(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def advance(scheduler: rb.ExampleLR, batch_sizes: list[int]) -> list[list[float]]:
    """Rates that each of these steps was made with."""
    rates = []
    for batch_size in batch_sizes:
        rates.append(rates_of(scheduler.optimizer))
        scheduler.optimizer.step()
        scheduler.step(batch_size)
    return rates


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 40), Cosine(40 * 64)),
        (lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, 25), Linear(25 * 64, 1.0, 0.1)),
        (lambda o: lr_scheduler.StepLR(o, 9, 0.3), Steps((9 * 64, 18 * 64, 27 * 64, 36 * 64), 0.3)),
        (
            lambda o: lr_scheduler.SequentialLR(
                o,
                [lr_scheduler.LinearLR(o, 0.2, 1.0, 10), lr_scheduler.CosineAnnealingLR(o, 30)],
                [10],
            ),
            Sequence(Warmup(10 * 64, 0.2), Cosine(30 * 64)),
        ),
    ],
    ids=["cosine", "linear", "steps", "warm-up then cosine"],
)
def test_at_one_batch_size_rates_are_torchs(
    make: Callable[[Optimizer], lr_scheduler.LRScheduler], shape: Callable[[float], float]
) -> None:
    theirs, ours = optimizer_with(0.3, 0.05), optimizer_with(0.3, 0.05)
    torchs, scheduler = make(theirs), rb.ExampleLR(ours, shape)
    for _ in range(40):
        assert rates_of(ours) == pytest.approx(rates_of(theirs), rel=1e-12, abs=1e-15)
        theirs.step()
        torchs.step()
        ours.step()
        scheduler.step(64)


@pytest.mark.parametrize("shape", [WARM_COSINE, InverseSqrt(500), Steps((1000, 3000))], ids=str)
def test_a_batch_that_grows_midway_follows_the_same_rates_at_the_same_examples(
    shape: Callable[[float], float],
) -> None:
    constant = advance(rb.ExampleLR(optimizer_with(0.3, 0.05), shape), [64] * 80)
    growing = advance(rb.ExampleLR(optimizer_with(0.3, 0.05), shape), [64] * 40 + [256] * 10)
    assert growing == constant[:40] + constant[40::4]


@given(
    sizes=st.lists(st.integers(1, 900), min_size=1, max_size=30),
    cut=st.integers(0, 29),
)
def test_only_the_examples_count(sizes: list[int], cut: int) -> None:
    """The rate is the first rate times the schedule, also after a stop at any step."""
    scheduler = rb.ExampleLR(optimizer_with(0.3, 0.05), WARM_COSINE)
    made = advance(scheduler, sizes)
    seen = [0, *accumulate(sizes)]
    assert made == [[rate * WARM_COSINE(place) for rate in (0.3, 0.05)] for place in seen[:-1]]
    assert scheduler.examples_seen == scheduler.last_epoch == seen[-1]
    assert scheduler.get_last_lr() == rates_of(scheduler.optimizer)

    first = rb.ExampleLR(optimizer_with(0.3, 0.05), WARM_COSINE)
    advance(first, sizes[:cut])
    resumed = rb.ExampleLR(optimizer_with(1.0, 1.0), WARM_COSINE)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert advance(resumed, sizes[cut:]) == made[cut:]
    assert resumed.state_dict() == scheduler.state_dict()


def trained(
    stop: int | None, *, optimizer_first: bool = False
) -> tuple[list[float], list[torch.Tensor]]:
    """Rates and weights of a run with Adam, whose batch grows; killed and resumed at a step."""
    sizes = [64] * 5 + [256] * 5
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(len(sizes), 3, generator=generator)

    def fresh() -> tuple[torch.Tensor, Optimizer, rb.ExampleLR]:
        weights = torch.ones(3, requires_grad=True)
        optimizer = Adam([weights], lr=0.1)
        return weights, optimizer, rb.ExampleLR(optimizer, Sequence(Warmup(200), Cosine(2000)))

    weights, optimizer, scheduler = fresh()
    rates, found = [], []
    for index, size in enumerate(sizes):
        if index == stop:
            saved = copy.deepcopy((weights.data, optimizer.state_dict(), scheduler.state_dict()))
            weights, optimizer, scheduler = fresh()
            weights.data.copy_(saved[0])
            loads = [(scheduler, saved[2]), (optimizer, saved[1])]
            for part, state in reversed(loads) if optimizer_first else loads:
                part.load_state_dict(state)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        (weights - targets[index]).square().sum().backward()
        optimizer.step()
        scheduler.step(size)
        found.append(weights.detach().clone())
    return rates, found


@pytest.mark.parametrize("optimizer_first", [False, True])
@pytest.mark.parametrize("stop", range(10))
def test_a_run_that_is_resumed_has_the_same_bits(stop: int, optimizer_first: bool) -> None:
    rates, weights = trained(None)
    resumed_rates, resumed_weights = trained(stop, optimizer_first=optimizer_first)
    assert resumed_rates == rates
    assert all(torch.equal(a, b) for a, b in zip(resumed_weights, weights, strict=True))


def test_it_is_a_scheduler_of_torch() -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Linear(100))
    assert isinstance(scheduler, lr_scheduler.LRScheduler)
    advance(scheduler, [50])
    assert scheduler.get_last_lr() == scheduler.get_lr() == [0.2]
    assert scheduler.base_lrs == [0.4]
    assert repr(scheduler).endswith("end=0.0), examples_seen=50)")


def test_tokens_may_be_fractions_and_numbers_of_numpy() -> None:
    scheduler = rb.ExampleLR(optimizer_with(1.0), Linear(100))
    (before, after) = advance(scheduler, [12.5, torch.tensor([1]).numpy().sum()])
    assert (before, after) == ([1.0], [0.875])
    assert type(scheduler.examples_seen) is float


def test_rates_that_are_tensors_are_filled() -> None:
    rate = torch.tensor(0.4)
    scheduler = rb.ExampleLR(optimizer_with(rate), Linear(100))
    (first,) = scheduler.get_last_lr()
    advance(scheduler, [75])
    assert scheduler.optimizer.param_groups[0]["lr"] is rate
    assert (rate.item(), first.item()) == (pytest.approx(0.1), 0.4)
    scheduler.scale(2.0)
    assert rate.item() == pytest.approx(0.2)


def test_a_group_that_is_added_later_starts_from_its_own_rate() -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Linear(100))
    advance(scheduler, [50])
    group = {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.8}
    scheduler.optimizer.add_param_group(group)
    advance(scheduler, [25])
    assert rates_of(scheduler.optimizer) == [0.1, 0.2]


def test_scaling_keeps_the_shape_and_the_ratios_of_groups() -> None:
    plain = advance(rb.ExampleLR(optimizer_with(0.3, 0.05), WARM_COSINE), [64] * 20)
    scheduler = rb.ExampleLR(optimizer_with(0.3, 0.05), WARM_COSINE)
    advance(scheduler, [64] * 10)
    scheduler.scale(2.0)
    assert advance(scheduler, [64] * 10) == [[2 * rate for rate in rates] for rates in plain[10:]]
    assert scheduler.base_lrs == [0.6, 0.1]


def test_scaling_the_hyperparameters_moves_the_whole_schedule() -> None:
    plain = advance(rb.ExampleLR(optimizer_with(0.3, 0.05), WARM_COSINE), [64] * 20)
    scheduler = rb.ExampleLR(optimizer_with(0.3, 0.05), WARM_COSINE)
    advance(scheduler, [64] * 10)
    rb.scale_hyperparameters(scheduler.optimizer, 64, 128, rule="linear", scheduler=scheduler)
    found = advance(scheduler, [128] * 5)
    for rates, expected in zip(found, plain[10::2], strict=True):
        assert rates == pytest.approx([2 * rate for rate in expected], rel=1e-14)


TWICE = "without an optimizer step since the last call"


def test_twice_for_one_step_is_warned_of() -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Linear(1000))
    advance(scheduler, [50, 50])
    with pytest.warns(UserWarning, match=rf"ExampleLR\.step\(50\) {TWICE}"):
        scheduler.step(50)
    assert scheduler.examples_seen == 150


def test_before_the_first_step_is_warned_of() -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Linear(1000))
    with pytest.warns(UserWarning, match=TWICE):
        scheduler.step(50)


def test_a_step_that_a_gradient_scaler_skips_is_warned_of_and_counted(float32: None) -> None:
    weight = torch.ones(1, requires_grad=True)
    optimizer = SGD([weight], lr=0.4)
    scheduler = rb.ExampleLR(optimizer, Linear(1000))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for target, warns in ((math.inf, True), (1.0, False)):
        optimizer.zero_grad()
        scaler.scale(weight * target).sum().backward()
        scaler.step(optimizer)
        scaler.update()
        with pytest.warns(UserWarning, match=TWICE) if warns else nullcontext():
            scheduler.step(50)
    assert scheduler.examples_seen == 100
    assert weight.item() == pytest.approx(1 - 0.4 * 0.95)  # one step, after 50 examples


def test_once_for_several_steps_is_fine() -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Linear(1000))
    scheduler.optimizer.step()
    scheduler.optimizer.step()
    scheduler.step(100)
    assert scheduler.examples_seen == 100


def test_a_copy_counts_the_steps_of_its_own_optimizer() -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Linear(1000))
    twin = copy.deepcopy(scheduler)
    assert twin.optimizer is not scheduler.optimizer
    assert advance(twin, [50, 50]) == advance(scheduler, [50, 50])
    with pytest.warns(UserWarning, match=TWICE):
        twin.step(50)


def test_no_hook_outlives_the_scheduler() -> None:
    optimizer = optimizer_with(0.4)
    scheduler = rb.ExampleLR(optimizer, Linear(1000))
    assert len(optimizer._optimizer_step_post_hooks) == 1
    del scheduler
    gc.collect()
    assert len(optimizer._optimizer_step_post_hooks) == 0


@pytest.mark.parametrize("examples", [0, -64, 0.0, math.nan, math.inf, None, True, "64"])
def test_no_examples_are_refused_and_nothing_is_counted(examples: Any) -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Linear(1000))
    scheduler.optimizer.step()
    with pytest.raises(ValueError, match=f"positive and finite, got examples={examples!r}"):
        scheduler.step(examples)
    scheduler.step(10)  # the step is still there to be counted
    assert scheduler.examples_seen == 10


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_scaling_by_nothing_is_refused(factor: float) -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Linear(1000))
    with pytest.raises(ValueError, match=f"`factor` must be positive and finite, got .*{factor!r}"):
        scheduler.scale(factor)
    assert scheduler.base_lrs == [0.4]


@pytest.mark.parametrize("factor", [-0.5, math.nan, math.inf])
def test_a_factor_that_is_no_share_is_refused_and_nothing_is_counted(factor: float) -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), lambda seen: factor if seen > 60 else 1.0)
    advance(scheduler, [50])
    scheduler.optimizer.step()
    with pytest.raises(ValueError, match=f"at least 0, got {factor!r} after 100 examples"):
        scheduler.step(50)
    assert scheduler.examples_seen == 50


def test_what_is_not_an_optimizer_or_a_schedule_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a torch optimizer, got Linear"):
        rb.ExampleLR(torch.nn.Linear(1, 1), Linear(100))  # pyright: ignore
    with pytest.raises(TypeError, match="must be a function of examples, got 100"):
        rb.ExampleLR(optimizer_with(0.4), 100)  # pyright: ignore


def state_after(schedule: Callable[[float], float], *rates: float) -> dict[str, Any]:
    scheduler = rb.ExampleLR(optimizer_with(*rates), schedule)
    advance(scheduler, [640, 640])
    return scheduler.state_dict()


@pytest.mark.parametrize(
    ("saved", "resumed", "message"),
    [
        (Cosine(5000), Cosine(6000), r"got one of Cosine\(examples=5000.*this is .*6000"),
        (Cosine(5000), lambda seen: 1.0, "got one of Cosine.* and this is a function"),
        (lambda seen: 1.0, lambda seen: 1 / (1 + seen), r"factor after 80 examples was 1\.0"),
        (Steps((1280, 2000)), Steps((1280, 3000)), "2000.*3000"),
        (
            FromTorch(lambda o: lr_scheduler.StepLR(o, 10), batch_size=64),
            FromTorch(lambda o: lr_scheduler.StepLR(o, 5), batch_size=64),
            r"factor after 320 examples was 1\.0, and this one's is 0\.1",
        ),
    ],
    ids=["length", "kind", "function", "milestone to come", "torch's"],
)
def test_another_schedule_is_refused_and_nothing_changes(
    saved: Callable[[float], float], resumed: Callable[[float], float], message: str
) -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), resumed)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict(state_after(saved, 0.1))
    assert scheduler.state_dict() == before


def test_the_same_function_is_recognised_by_its_values() -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), lambda seen: 1 / (1 + seen))
    scheduler.load_state_dict(state_after(lambda seen: (1 + seen) ** -1, 0.4))
    assert scheduler.examples_seen == 1280


def test_state_of_other_groups_and_other_schedulers_is_refused() -> None:
    scheduler = rb.ExampleLR(optimizer_with(0.4), Cosine(5000))
    with pytest.raises(ValueError, match="rate for each parameter group, got 2 for 1 groups"):
        scheduler.load_state_dict(state_after(Cosine(5000), 0.1, 0.2))
    other = lr_scheduler.CosineAnnealingLR(optimizer_with(0.4), 100).state_dict()
    with pytest.raises(ValueError, match="got one without samples, schedule"):
        scheduler.load_state_dict(other)
    assert scheduler.examples_seen == 0
