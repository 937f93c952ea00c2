"""The four published ways, with their flaws. Oracles: closed forms, every draw enumerated."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rightbatch.studies.finder_ways import (
    ConsecutiveBatches,
    MovingAverages,
    MovingSquare,
    Parts,
    from_two_sizes,
    group_parts,
    stored_gradients,
)
from rightbatch.testing import QuadraticTask

EXACT = {"rel": 1e-9, "abs": 1e-12}


def quadratic(examples: int = 4) -> QuadraticTask:
    return QuadraticTask(grad_sq=2.0, trace_cov=5.0, examples=examples, dimension=3)


def gradients(task: QuadraticTask) -> Tensor:
    return task.task.model.theta.detach() - task.points


def mean_parts(found: list[Parts]) -> Parts:
    count = len(found)
    return Parts(
        grad_sq=sum(p.grad_sq for p in found) / count,
        trace_cov=sum(p.trace_cov for p in found) / count,
    )


def test_a_part_that_is_not_positive_leaves_no_answer() -> None:
    assert Parts(grad_sq=-1.0, trace_cov=1.0).noise_scale is None
    assert Parts(grad_sq=1.0, trace_cov=-1.0).noise_scale is None
    assert Parts(grad_sq=0.0, trace_cov=1.0).noise_scale is None


def test_two_sizes_solve_their_two_equations() -> None:
    small = 7.0 + 30.0 / 3
    big = 7.0 + 30.0 / 20
    parts = from_two_sizes(small_sq=small, big_sq=big, small=3, big=20)
    assert (parts.grad_sq, parts.trace_cov) == pytest.approx((7.0, 30.0))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_stored_gradients_over_every_draw(count: int) -> None:
    """The variance is unbiased; the squared mean holds tr(Sigma)/N more until it is taken off."""
    task = quadratic()
    each = gradients(task)
    draws = [each[list(draw)] for draw in product(range(4), repeat=count)]
    plain = mean_parts([stored_gradients(g, batch_size=1) for g in draws])
    mended = mean_parts([stored_gradients(g, batch_size=1, corrected=True) for g in draws])
    assert plain.trace_cov == pytest.approx(task.trace_cov, **EXACT)
    assert plain.grad_sq == pytest.approx(task.grad_sq + task.trace_cov / count, **EXACT)
    assert mended.grad_sq == pytest.approx(task.grad_sq, **EXACT)
    assert mended.trace_cov == pytest.approx(task.trace_cov, **EXACT)


def test_stored_gradients_converge_from_below() -> None:
    """Batches of 2 drawn with replacement; few of them cannot see beyond N B."""
    task = QuadraticTask(grad_sq=0.05, trace_cov=10.0, examples=64, dimension=32)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(64, (20_000, 2), generator=generator)
    kept = gradients(task)[drawn].mean(1)
    answers = []
    for count in (20, 200):
        squares = torch.tensor(
            [stored_gradients(g, batch_size=2).grad_sq for g in kept.split(count)]
        )
        error = squares.std().item() / len(squares) ** 0.5
        expected = task.grad_sq + task.trace_cov / (2 * count)
        assert squares.mean().item() == pytest.approx(expected, abs=4 * error)
        answers.append(task.trace_cov / squares.mean().item())
    whole = stored_gradients(kept, batch_size=2).noise_scale
    assert whole == pytest.approx(task.noise_scale, rel=0.1)
    assert answers[0] < answers[1] / 2 < task.noise_scale / 2


@pytest.mark.parametrize("group", [2, 3])
def test_a_group_is_unbiased_where_the_weights_stand_still(group: int) -> None:
    task = quadratic()
    each = gradients(task)
    found = mean_parts(
        [group_parts(each[list(draw)], batch_size=1) for draw in product(range(4), repeat=group)]
    )
    assert found.grad_sq == pytest.approx(task.grad_sq, **EXACT)
    assert found.trace_cov == pytest.approx(task.trace_cov, **EXACT)


@pytest.mark.parametrize("group", [2, 3, 4])
@pytest.mark.parametrize("rate", [0.01, 0.3, 1.5])
def test_consecutive_batches_are_biased_exactly_as_computed(rate: float, group: int) -> None:
    r"""Gradient descent at the rate r shrinks the distance to the optimum by q = 1 - r a step.

    The mean of n gradients is the way gone, over n r; the last one has shrunk by q^(n-1) and
    carries the noise of all steps before.
    """
    task = quadratic()
    start = task.task.model.theta.detach()
    found = []
    for draw in product(range(4), repeat=group):
        way = ConsecutiveBatches(1, group=group, decay=0.99)
        theta = start.clone()
        for index in draw:
            gradient = theta - task.points[index]
            way.see(gradient)
            theta = theta - rate * gradient
        parts = way.parts()
        assert parts is not None
        found.append(parts)

    q, n, s = 1 - rate, group, task.trace_cov
    noise = rate**2 * sum(q ** (2 * j) for j in range(n)) * s
    big = ((1 - q**n) ** 2 * task.grad_sq + noise) / (n * rate) ** 2
    small = q ** (2 * (n - 1)) * task.grad_sq
    small += s * (1 + rate**2 * sum(q ** (2 * j) for j in range(n - 1)))
    expected = from_two_sizes(small_sq=small, big_sq=big, small=1, big=n)
    mean = mean_parts(found)
    assert mean.grad_sq == pytest.approx(expected.grad_sq, **EXACT)
    assert mean.trace_cov == pytest.approx(expected.trace_cov, **EXACT)
    assert abs(mean.grad_sq / task.grad_sq - 1) > 0.1 * rate  # a bias, not a rounding error


def test_consecutive_batches_average_groups_and_divide_once() -> None:
    generator = torch.Generator().manual_seed(1)
    seen = torch.randn(7, 3, generator=generator)
    way = ConsecutiveBatches(4, group=2, decay=0.9)
    assert way.parts() is None
    for gradient in seen:  # the seventh waits for its partner
        way.see(gradient)
    groups = [group_parts(seen[i : i + 2], batch_size=4) for i in (0, 2, 4)]
    weights = [0.9**2, 0.9, 1.0]
    parts = way.parts()
    assert parts is not None
    for name in ("grad_sq", "trace_cov"):
        expected = sum(w * getattr(g, name) for w, g in zip(weights, groups, strict=True))
        assert getattr(parts, name) == pytest.approx(expected / sum(weights), **EXACT)


def averaged(seen: list[float], decay: float) -> float:
    weights = [decay ** (len(seen) - 1 - k) for k in range(len(seen))]
    return sum(w * x for w, x in zip(weights, seen, strict=True)) / sum(weights)


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=20),
    st.floats(0, 0.999),
    st.floats(0, 0.999),
)
def test_moving_averages_are_weighted_averages(
    seen: list[float], mean_decay: float, square_decay: float
) -> None:
    way = MovingAverages(3, mean_decay=mean_decay, square_decay=square_decay)
    assert way.parts() is None
    for value in seen:
        way.see(torch.tensor([value], dtype=torch.float64))
    mean = averaged(seen, mean_decay)
    square = averaged([x * x for x in seen], square_decay)
    parts = way.parts()
    assert parts is not None
    scale = max(x * x for x in seen)
    assert parts.grad_sq == pytest.approx(mean**2, rel=1e-9, abs=1e-9 * scale)
    assert parts.trace_cov == pytest.approx(3 * (square - mean**2), rel=1e-9, abs=1e-8 * scale)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20), st.floats(0, 0.999))
def test_one_decay_for_both_is_never_negative(seen: list[float], decay: float) -> None:
    way = MovingAverages(1, mean_decay=decay)
    for value in seen:
        way.see(torch.tensor([value], dtype=torch.float64))
    parts = way.parts()
    assert parts is not None
    assert parts.trace_cov >= -1e-9 * max(x * x for x in seen)


def test_two_decays_are_negative_where_the_gradient_grows() -> None:
    way = MovingAverages(1, mean_decay=0.9, square_decay=0.999)
    for value in [1.0] * 100 + [10.0] * 20:
        way.see(torch.tensor([value]))
    parts = way.parts()
    assert parts is not None
    assert parts.trace_cov < 0
    assert parts.noise_scale is None


def test_moving_averages_count_their_own_noise_as_gradient() -> None:
    """Over every draw, weights standing still: the squared weights of the average say how much."""
    task = quadratic()
    each = gradients(task)
    found = []
    for draw in product(range(4), repeat=3):
        way = MovingAverages(1, mean_decay=0.5)
        for index in draw:
            way.see(each[index])
        parts = way.parts()
        assert parts is not None
        found.append(parts)
    share = (1 + 4 + 16) / 49  # weights 1/7, 2/7, 4/7
    mean = mean_parts(found)
    assert mean.grad_sq == pytest.approx(task.grad_sq + share * task.trace_cov, **EXACT)
    assert mean.trace_cov == pytest.approx((1 - share) * task.trace_cov, **EXACT)


def test_a_moving_square_is_the_weighted_average_of_squares() -> None:
    average = MovingSquare(0.7)
    assert average.value is None
    for value in (3.0, 1.0, 2.0):
        average.see(torch.tensor([value, value]))
    assert average.value == pytest.approx(averaged([18.0, 2.0, 8.0], 0.7))


def test_two_squares_of_unrelated_batches_may_come_out_negative() -> None:
    parts = from_two_sizes(small_sq=3.0, big_sq=3.1, small=64, big=128)
    assert parts.trace_cov < 0
    assert parts.noise_scale is None


def test_every_way_says_how_many_tensors_it_keeps() -> None:
    size = 11

    def held(way: object) -> int:
        found = 0
        for value in vars(way).values():
            items = value if isinstance(value, list | tuple) else [value]
            found += sum(isinstance(item, Tensor) and item.numel() == size for item in items)
        return found

    averages = MovingAverages(1, mean_decay=0.9)
    groups = ConsecutiveBatches(1, group=5, decay=0.9)
    square = MovingSquare(0.9)
    assert averages.tensors_kept == 0
    for _ in range(4):
        for way in (averages, groups, square):
            way.see(torch.randn(size))
    assert held(averages) == averages.tensors_kept == 2
    assert held(groups) + 1 == groups.tensors_kept == 5  # the fifth completes the group
    assert held(square) == 0
    assert not math.isnan(square.value or math.nan)
