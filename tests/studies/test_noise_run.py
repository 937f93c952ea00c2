"""Following runs, on the quadratic whose gradients are known. Oracle: the same run by hand."""

import pytest
import torch

import rightbatch as rb
from rightbatch.studies.finder_ways import (
    ConsecutiveBatches,
    MovingSquare,
    from_two_sizes,
    stored_gradients,
)
from rightbatch.studies.noise_run import (
    FULL,
    QUICK,
    Course,
    Look,
    follow_runs,
    stored_name,
    tensors_kept,
)
from rightbatch.testing import QuadraticTask

COURSE = Course(
    steps=(0, 6, 12),
    compare_from=6,
    runs=2,
    batch_size=16,
    group=3,
    stored=(3, 8),
    exact_examples=None,
    probe_examples=64,
    monitor_every=2,
    monitor_examples=8,
    window=5,
    window_every=2,
    window_examples=96,
)


def quadratic() -> QuadraticTask:
    return QuadraticTask(grad_sq=4.0, trace_cov=9.0, examples=96, learning_rate=0.05)


def follow(seed: int = 0) -> tuple[QuadraticTask, list[Look], list[float]]:
    fractions: list[float] = []
    task = quadratic()
    looks = follow_runs(
        task.task, COURSE, seed=seed, progress=lambda fraction, note: fractions.append(fraction)
    )
    return task, looks, fractions


def test_every_run_is_looked_at_everywhere_and_leaves_no_trace() -> None:
    task, looks, fractions = follow()
    assert [(k.run, k.step) for k in looks] == [(r, s) for r in (0, 1) for s in (0, 6, 12)]
    assert torch.equal(task.task.model.theta, torch.zeros(8))
    assert task.task.model.theta.grad is None
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0


def test_the_exact_value_is_that_of_the_weights_at_that_step() -> None:
    _, looks, _ = follow()
    sample = 9.0 * 96 / 95
    for k in looks:
        assert k.exact.trace_cov == pytest.approx(sample, rel=1e-9)
        assert k.probe.low < (k.exact.noise_scale or 0.0)
    first = [k.exact.grad_sq for k in looks if k.step == 0]
    assert first == pytest.approx([4.0, 4.0], rel=1e-9)
    last = [k.exact.grad_sq for k in looks if k.step == 12]
    assert max(last) < 3.0  # it has learnt
    assert last[0] != last[1]  # in another order of the data


def test_the_same_seed_repeats_and_another_does_not() -> None:
    assert follow(3)[1] == follow(3)[1]
    assert follow(3)[1] != follow(4)[1]


def trained_by_hand(seed: int, size: int, steps: int) -> list[torch.Tensor]:
    task = quadratic()
    batches, found = task.task.batches(size, seed=seed), []
    theta = torch.zeros(8)
    for _ in range(steps):
        gradient = theta - next(batches).mean(0)
        found.append(gradient)
        theta = theta - 0.05 * gradient
    return found


@pytest.mark.parametrize("run", [0, 1])
def test_every_way_sees_the_run_that_it_should(run: int) -> None:
    looks = {k.step: k for k in follow(2)[1] if k.run == run}
    own = 2000 + 10 * run
    single = trained_by_hand(own + 2, 16, 12)
    double = trained_by_hand(own + 1, 32, 6)
    for step in (6, 12):
        small, big = MovingSquare(0.99), MovingSquare(0.99**2)
        groups = ConsecutiveBatches(16, group=3, decay=0.99)
        for gradient in single[:step]:
            small.see(gradient)
            groups.see(gradient)
        for gradient in double[: step // 2]:
            big.see(gradient)
        assert small.value is not None
        assert big.value is not None
        expected = from_two_sizes(small_sq=small.value, big_sq=big.value, small=16, big=32)
        found = looks[step].estimates["two_runs"]
        assert found is not None
        assert found.grad_sq == pytest.approx(expected.grad_sq, rel=1e-9)
        assert found.trace_cov == pytest.approx(expected.trace_cov, rel=1e-9)
        in_groups, wanted = looks[step].estimates["consecutive"], groups.parts()
        assert in_groups is not None
        assert wanted is not None
        assert in_groups.grad_sq == pytest.approx(wanted.grad_sq, rel=1e-9)


def test_the_monitor_goes_on_over_the_looks_in_between() -> None:
    """Two stretches of training give what one monitor over both would."""
    looks = follow(2)[1]
    task = quadratic().task
    batches = task.batches(16, seed=2002)
    with rb.NoiseMonitor(
        task.model,
        task.optimizer,
        every=2,
        examples=8,
    ) as monitor:
        for _ in range(12):
            batch = next(batches)
            task.optimizer.zero_grad()
            task.loss(batch)[0].backward()
            monitor.observe(16)
            task.optimizer.step()
    expected, found = monitor.result(), looks[2].estimates["monitor"]
    assert expected.steps_measured == 6
    assert found is not None
    assert found.trace_cov == pytest.approx(expected.trace_cov, rel=1e-9)
    assert found.grad_sq == pytest.approx(expected.grad_sq, rel=1e-9)


def test_what_averages_is_judged_by_the_steps_before_the_look() -> None:
    """Of the window of 5 before step 12: steps 8, 10 and 12. The whole data set is looked at."""
    look = follow(2)[1][2]
    single = trained_by_hand(2002, 16, 12)
    data = quadratic().points
    theta, squares = torch.zeros(8), {}
    for step, gradient in enumerate(single, start=1):
        theta = theta - 0.05 * gradient
        squares[step] = (theta - data.mean(0)).square().sum().item()
    expected = (squares[8] + squares[10] + squares[12]) / 3
    assert look.recent.grad_sq == pytest.approx(expected, rel=1e-9)
    assert look.exact.grad_sq == pytest.approx(squares[12], rel=1e-9)


def test_stored_gradients_are_fresh_batches_at_the_weights_of_the_step() -> None:
    look = follow(2)[1][0]  # run 0, step 0: the weights are 0
    task = quadratic()
    batches = task.task.batches(16, seed=2000 + 2 + 3 + 2)
    kept = torch.stack([-next(batches).mean(0) for _ in range(8)])
    for count in COURSE.stored:
        expected = stored_gradients(kept[:count], batch_size=16)
        found = look.estimates[stored_name(count)]
        assert found is not None
        assert found.trace_cov == pytest.approx(expected.trace_cov, rel=1e-9)
        assert found.grad_sq == pytest.approx(expected.grad_sq, rel=1e-9)


def test_nothing_is_told_before_anything_was_seen() -> None:
    look = follow()[1][0]
    unseen = ("average", "average_adam", "consecutive", "consecutive_slow", "two_runs", "monitor")
    assert [look.estimates[name] for name in unseen] == [None] * 6


@pytest.mark.parametrize("course", [FULL, QUICK])
def test_the_courses_can_be_judged_or_say_that_they_cannot(course: Course) -> None:
    assert course.steps == tuple(sorted(course.steps))
    assert all(step % 2 == 0 for step in course.steps)  # the twin at 2B takes half the steps
    assert course.stored[-1] >= course.group
    compared = course.runs * sum(step >= course.compare_from for step in course.steps)
    assert (compared >= 10) == (course is FULL)
    assert course.compare_from >= course.group


def test_memory_is_that_of_the_tensors_kept() -> None:
    kept = tensors_kept(COURSE)
    assert kept["average"] == kept["average_adam"] == 2
    assert kept["consecutive"] == kept["consecutive_frozen"] == 3
    assert kept["stored_8"] == 8
    assert kept["two_runs"] == kept["probe"] == kept["monitor"] == 0
