"""Shapes of schedules against closed forms, and against torch's schedulers at one batch size."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from rightbatch.lr import (
    Constant,
    Cosine,
    FromTorch,
    InverseSqrt,
    Linear,
    Sequence,
    Steps,
    Warmup,
)
from rightbatch.lr.shapes import describe_shape

FINITE = [Constant(80, 0.5), Linear(80, 1.0, 0.2), Warmup(80, 0.1), Cosine(80, 0.3)]
ENDLESS = [Steps((20, 90), 0.3), InverseSqrt(80)]


def test_a_line() -> None:
    assert [Linear(10, 2.0, 4.0)(seen) for seen in (0, 1, 5, 10, 11)] == [2.0, 2.2, 3.0, 4.0, 4.0]


@given(length=st.floats(1e-3, 1e15), share=st.floats(0, 3), end=st.floats(0, 1))
def test_a_cosine(length: float, share: float, end: float) -> None:
    """End + (1 - end) cos^2(pi/2 share): the half-angle form of the same curve."""
    expected = end + (1 - end) * math.cos(math.pi / 2 * min(share, 1)) ** 2
    assert Cosine(length, end)(share * length) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("shape", FINITE, ids=describe_shape)
def test_what_ends_is_level_after_its_end(shape: Callable[[float], float]) -> None:
    assert shape(81) == shape(80) == shape(1e9)


def test_milestones_count_from_where_they_are_reached() -> None:
    shape = Steps((10, 30), 0.5)
    assert [shape(seen) for seen in (0, 9.5, 10, 29, 30, 1e9)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert Steps([10, 30], 0.5) == shape  # any sequence will do


def test_a_warm_up_and_the_inverse_square_root_are_the_first_transformers_schedule() -> None:
    shape = Sequence(Warmup(400), InverseSqrt(400))
    for seen in (1, 100, 399, 400, 401, 1600, 10_000):
        expected = min(seen / 400, math.sqrt(400 / seen))
        assert shape(seen) == pytest.approx(expected, rel=1e-15)


def test_a_sequence_starts_each_shape_at_its_own_zero() -> None:
    shape = Sequence(Warmup(10), Constant(20), Linear(10, 1.0, 0.5), Steps((5,), 0.1))
    seen = (0, 5, 10, 29, 30, 35, 39.9, 40, 44, 45)
    expected = (0, 0.5, 1, 1, 1, 0.75, 0.505, 1, 1, 0.1)
    assert [shape(place) for place in seen] == pytest.approx(expected)


def test_a_sequence_of_sequences_and_functions() -> None:
    shape = Sequence(Warmup(10), Sequence(Constant(10), lambda seen: 1 / (1 + seen)))
    assert [shape(seen) for seen in (5, 10, 20, 21, 23)] == [0.5, 1.0, 1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.0), Cosine(50 * 64)),
        (lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, 20), Warmup(20 * 64, 0.25)),
        (lambda o: lr_scheduler.LinearLR(o, 1.0, 0.125, 20), Linear(20 * 64, 1.0, 0.125)),
        (lambda o: lr_scheduler.MultiStepLR(o, [7, 30], 0.5), Steps((7 * 64, 30 * 64), 0.5)),
        (lambda o: lr_scheduler.StepLR(o, 16, 0.5), Steps((16 * 64, 32 * 64, 48 * 64), 0.5)),
        (lambda o: lr_scheduler.ConstantLR(o, 0.5, 50), Constant(50 * 64, 0.5)),
    ],
    ids=["cosine", "warm-up", "linear", "milestones", "steps", "constant"],
)
def test_shapes_are_torchs_at_one_batch_size(
    make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler],
    shape: Callable[[float], float],
) -> None:
    of_torch = FromTorch(make, batch_size=64)
    for step in range(50):
        assert shape(step * 64) == pytest.approx(of_torch(step * 64), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=60),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
    ],
    ids=["one-cycle", "restarts"],
)
def test_a_scheduler_of_torch_is_read_by_examples(
    make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler],
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, shape = make(optimizer), FromTorch(make, batch_size=8, learning_rate=1.0)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [shape(8 * step + 7.5) for step in reversed(range(50))] == rates[::-1]
    assert shape(8 * 20) == rates[20]  # asked in any order


@pytest.mark.parametrize("shape", [*FINITE, *ENDLESS], ids=describe_shape)
def test_shapes_are_values(shape: object) -> None:
    again = eval(repr(shape))
    assert again == shape
    assert hash(again) == hash(shape)


def test_descriptions_do_not_depend_on_the_process() -> None:
    torchs = FromTorch(lambda o: lr_scheduler.StepLR(o, 10), batch_size=8)
    shape = Sequence(Warmup(10), Sequence(Cosine(5), torchs))
    assert describe_shape(shape) == (
        "Sequence(Warmup(examples=10, start=0.0), "
        "Sequence(Cosine(examples=5, end=0.0), FromTorch(batch_size=8)))"
    )
    assert describe_shape(lambda seen: 1.0) == "a function"
    assert repr(Sequence(Cosine(5))) == "Sequence(Cosine(examples=5, end=0.0))"


@pytest.mark.parametrize("kind", [Constant, Linear, Warmup, Cosine, InverseSqrt])
@pytest.mark.parametrize("examples", [0, -5, math.inf, math.nan])
def test_a_length_of_nothing_is_refused(kind: Callable[[float], object], examples: float) -> None:
    with pytest.raises(ValueError, match=f"`examples` must be positive.*examples={examples!r}"):
        kind(examples)


@pytest.mark.parametrize("factor", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize(
    ("kind", "name"),
    [(Constant, "factor"), (Linear, "start"), (Linear, "end"), (Warmup, "start"), (Cosine, "end")],
)
def test_factors_below_zero_are_refused(
    kind: Callable[..., object], name: str, factor: float
) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must not be negative, got {name}={factor!r}"):
        kind(10, **{name: factor})


@pytest.mark.parametrize("milestones", [(), (5, 3), (5, 5), (0, 5), (-1,)])
def test_milestones_must_ascend(milestones: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`milestones` must be positive and ascending, at least"):
        Steps(milestones)


def test_milestones_factor_is_checked() -> None:
    with pytest.raises(ValueError, match="`factor` must not be negative"):
        Steps((5,), -1.0)


def test_what_does_not_end_must_be_last() -> None:
    with pytest.raises(ValueError, match=r"got InverseSqrt\(examples=5\)\. What follows"):
        Sequence(Warmup(5), InverseSqrt(5), Cosine(5))
    with pytest.raises(ValueError, match="must be one that ends, got no shape"):
        Sequence()


def test_a_batch_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="`batch_size` must be positive, got batch_size=0"):
        FromTorch(lambda o: lr_scheduler.StepLR(o, 10), batch_size=0)


def settled(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.SequentialLR(
        optimizer,
        [
            lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5),
            lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=1e-4),
        ],
        [5],
    )


ABSOLUTE = {
    "max_lr": lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=30),
    "max_lrs": lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.4, 10),
    "eta_min": settled,
    "swa_lr": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05),
}


@pytest.mark.parametrize("name", ABSOLUTE)
def test_rates_that_a_scheduler_was_given_are_rates_and_no_factors(name: str) -> None:
    make, rates = ABSOLUTE[name], []
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, shape = make(optimizer), FromTorch(make, batch_size=8, learning_rate=0.1)
    for _ in range(25):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [0.1 * shape(8 * step) for step in range(25)] == pytest.approx(rates, rel=1e-12)
    match = f"got learning_rate=None and {type(scheduler).__name__} with {name}\\."
    with pytest.raises(ValueError, match=match):
        FromTorch(make, batch_size=8)


def test_a_cycle_is_level_after_its_end() -> None:
    shape = FromTorch(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10), 8, 0.1)
    assert shape(1000) == shape(72) == pytest.approx(0.04 / 1e4)


def test_what_does_not_count_steps_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="counts steps, got ReduceLROnPlateau"):
        FromTorch(lr_scheduler.ReduceLROnPlateau, batch_size=8)
    with pytest.raises(TypeError, match="counts steps, got float"):
        FromTorch(lambda optimizer: 0.5, batch_size=8)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must be positive, got learning_rate="):
        FromTorch(lambda o: lr_scheduler.StepLR(o, 10), batch_size=8, learning_rate=0.0)
