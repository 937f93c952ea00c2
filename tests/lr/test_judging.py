"""Oracles: closed form on hand-made tracks; laws (units, order, weights); enumeration for plans."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from rightbatch.lr.judging import (
    Mark,
    affordable_steps,
    compare,
    loss_interval,
    mean_loss,
    rate_grid,
    scores,
    settling,
    survivor_counts,
)

WEIGHTS = (1.0, 3.0, 2.0, 2.0)
STEPS = (0, 4, 6, 8, 11, 16, 23, 32)


def track(
    loss: Callable[[int], float], steps: tuple[int, ...] = STEPS, seed: int = 0
) -> list[Mark]:
    """Held-out losses of four batches that scatter by 10 % about a curve."""
    generator = torch.Generator().manual_seed(seed)
    scatter = (1 + 0.1 * torch.randn(len(WEIGHTS), generator=generator)).tolist()
    return [Mark(step, tuple(loss(step) * s for s in scatter)) for step in steps]


def flat(level: float) -> list[Mark]:
    return [Mark(step, (level,) * 4) for step in STEPS]


def test_the_score_is_the_mean_log_loss_over_the_marks_from_an_eighth_on() -> None:
    losses = {0: 9.0, 4: 8.0, 8: 4.0, 16: 2.0, 32: 1.0}
    marks = [Mark(step, (loss,) * 4) for step, loss in losses.items()]
    assert scores([marks], 32, WEIGHTS) == pytest.approx([np.log([8, 4, 2, 1]).mean()])
    assert scores([marks], 16, WEIGHTS) == pytest.approx([np.log([8, 4, 2]).mean()])


def test_units_that_batches_stand_for_are_weights() -> None:
    marks = [Mark(8, (1.0, 2.0, 3.0, 4.0))]
    mean = (1 + 6 + 6 + 8) / 8
    assert mean_loss(marks[0], WEIGHTS) == mean
    assert scores([marks], 8, WEIGHTS) == pytest.approx([math.log(mean)])


@pytest.mark.parametrize("unit", [1e-6, 7.0])
def test_the_unit_of_the_loss_changes_no_difference(unit: float) -> None:
    def pair(scale: float) -> list[list[Mark]]:
        return [track(lambda s: scale / (s + 1)), track(lambda s: scale / (s + 2), seed=1)]

    ours, theirs = pair(1.0)
    scaled = pair(unit)
    assert compare([scaled[0]], [scaled[1]], 32, WEIGHTS) == pytest.approx(
        compare([ours], [theirs], 32, WEIGHTS)
    )


def test_losses_that_are_not_positive_are_compared_as_they_are() -> None:
    assert scores([flat(-2.0), flat(1.0)], 32, WEIGHTS) == pytest.approx([-2.0, 1.0])
    assert compare([flat(-2.0)], [flat(1.0)], 32, WEIGHTS) == pytest.approx((-3.0, 0.0))


def test_only_steps_that_both_have_marks_at_are_compared() -> None:
    """A falling loss that is looked at late must not look better for it."""
    late = track(lambda s: 1 / (s + 1), (0, 23, 32))
    assert compare([late], [track(lambda s: 1 / (s + 1))], 32, WEIGHTS) == pytest.approx((0.0, 0.0))


def test_a_difference_common_to_all_batches_has_no_doubt() -> None:
    """The batches scatter by 10 %, but in the same way for both."""
    difference, reach = compare([track(lambda s: 1.0)], [track(lambda s: 1.05)], 32, WEIGHTS)
    assert difference == pytest.approx(math.log(1 / 1.05))
    assert reach == pytest.approx(0.0, abs=1e-9)
    assert loss_interval(track(lambda s: 1.0)[-1], WEIGHTS)[0] < 0.95  # unpaired it has


def test_the_doubt_over_batches_is_the_textbook_paired_interval() -> None:
    """Equal weights, losses near one: log differences are differences, t(3) = 3.182."""
    ours, theirs = (torch.randn(4, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    near = [[Mark(8, tuple((1 + 1e-6 * x).tolist()))] for x in (ours, theirs)]
    difference, reach = compare([near[0]], [near[1]], 8, [1.0] * 4)
    gap = 1e-6 * (ours - theirs)
    assert difference == pytest.approx(gap.mean().item(), rel=1e-4)
    assert reach == pytest.approx(3.1824 * gap.std().item() / 2, rel=1e-4)


def test_a_lead_that_changes_hands_over_time_is_in_doubt() -> None:
    wave = track(lambda s: 1.3 if s in (4, 8, 16, 32) else 0.8)
    difference, reach = compare([wave], [track(lambda s: 1.0)], 32, WEIGHTS)
    assert abs(difference) < reach


def test_laps_average_and_their_disagreement_is_doubt() -> None:
    def lap(ratio: float) -> list[Mark]:
        return flat(ratio)

    one = compare([lap(2.0)], [lap(1.0)], 32, WEIGHTS)
    two = compare([lap(2.0), lap(0.5)], [lap(1.0), lap(1.0)], 32, WEIGHTS)
    assert one == pytest.approx((math.log(2), 0.0))
    assert two[0] == pytest.approx(0.0, abs=1e-12)
    assert two[1] == pytest.approx(3.1824 * math.log(2), rel=1e-3)  # std of +-log 2 over root 2


def test_a_race_settles_in_proportion_to_the_steps_since_its_leader_arrived() -> None:
    for arrival in (4, 8, 16):
        leader = [Mark(s, (1.0 if s >= arrival else 9.0,) * 4) for s in STEPS]
        assert settling([flat(9.0), leader], WEIGHTS) == 32 / arrival


def test_a_race_that_still_falls_has_not_settled() -> None:
    assert settling([track(lambda s: 10.0 - s / 4)], WEIGHTS) == 1.0


def test_noise_about_the_start_is_no_settling() -> None:
    """The lowest mark comes early by chance, but no batch is clearly better off than at first."""
    generator = torch.Generator().manual_seed(0)
    marks = [Mark(s, tuple((1 + torch.randn(4, generator=generator)).tolist())) for s in STEPS]
    assert settling([marks], WEIGHTS) == 1.0


@pytest.mark.parametrize("eta", [2, 3, 10])
@pytest.mark.parametrize("count", range(2, 20))
def test_rungs_shrink_down_to_two(count: int, eta: int) -> None:
    counts = survivor_counts(count, eta)
    assert (counts[0], counts[-1]) == (count, 2)
    assert all(after < before for before, after in pairwise(counts))
    assert all(after >= before / eta for before, after in pairwise(counts))


@pytest.mark.parametrize("counts", [[2], [6, 3, 2], [4, 2], [9, 3, 2]])
@pytest.mark.parametrize("eta", [2, 3])
@pytest.mark.parametrize("load", [0.0, 5.0])
def test_a_plan_spends_the_time_and_no_more(counts: list[int], eta: int, load: float) -> None:
    """Enumerate the rungs: each ends eta times further than the one before."""

    def cost(steps: int) -> float:
        total, done = 0.0, 0
        for rung, count in enumerate(counts):
            end = steps * eta**rung
            total += (end - done) * (load + 2.0 * count)
            done = end
        return total

    for seconds in (10.0, 100.0, 12345.0):
        steps = affordable_steps(
            seconds, counts, first=True, eta=eta, load_seconds=load, step_seconds=2.0
        )
        assert cost(steps) <= seconds < cost(steps + 1)


def test_a_later_rung_stretches_from_what_it_adds() -> None:
    """From n steps, 3 runs go to 2n and 2 of them to 4n: that is n * 3 + 2n * 2 = 7n."""
    assert (
        affordable_steps(70.0, [3, 2], first=False, eta=2, load_seconds=0.0, step_seconds=1.0) == 10
    )


def test_the_grid_ends_at_its_top() -> None:
    assert rate_grid(3.0, 4) == (0.375, 0.75, 1.5, 3.0)
