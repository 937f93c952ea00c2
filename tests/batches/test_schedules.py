"""Schedules against tables worked out by hand, and the two quantities that decays keep."""

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.batches import BatchSizeSchedule, nearest_valid
from rightbatch.batches.identity import identity_of
from rightbatch.batches.policies import norm_test_size


@dataclass(frozen=True)
class Measured:
    noise_scale: float | None
    low: float
    high: float | None


def exactly(noise_scale: float) -> Measured:
    return Measured(noise_scale, noise_scale, noise_scale)


def sizes(schedule: BatchSizeSchedule, *counts: float) -> list[int]:
    return [schedule.size_at(count).batch_size for count in counts]


@pytest.mark.parametrize(
    "text",
    ["0:64 2e6:256", "0:64, 2M:256", "0:64\n2000000:256", "0:64 2000K:256", " 0:64  2m:256 "],
)
def test_a_table_is_read_from_text(text: str) -> None:
    schedule = BatchSizeSchedule.parse(text)
    assert sizes(schedule, 0, 1_999_999, 2_000_000, 10**12) == [64, 64, 256, 256]


def test_counts_may_be_tokens() -> None:
    schedule = BatchSizeSchedule.parse("0:768 250B:1536", tokens_per_example=4096)
    beginning = math.ceil(250e9 / 4096)
    assert sizes(schedule, beginning - 1, beginning) == [768, 1536]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:64 abc", "got 'abc' in '0:64 abc'"),
        ("0:64 2e6", "got '2e6'"),
        ("0:64 2e6:", "got '2e6:'"),
        ("0:64 2e6:12.5", "got '2e6:12.5'"),
        ("0:64 1.2.3:128", r"got '1\.2\.3:128'"),
        ("0:64 -5:128", "got '-5:128'"),
        ("", r"`sizes` must begin at 0, got \[\]"),
        ("10:64", r"`sizes` must begin at 0, got \[10\.0\]"),
        ("0:64 20:128 10:256", "ascending counts of examples, got 0, 20, 10"),
        ("0:64 20:128 20:256", "ascending counts of examples, got 0, 20, 20"),
        ("0:64 20:0", "got batch_size=0"),
        ("0:64 20:-8", "got batch_size=-8"),
    ],
)
def test_unreadable_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSizeSchedule.parse(text)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({0: 64, 20: 128, 10: 256}, "ascending counts of examples, got 0, 20, 10"),
        ({0: 64, math.inf: 128}, "finite counts of examples"),
        ({0: 64.5}, "whole number of at least 1, got batch_size=64.5"),
        ({0: True}, "whole number of at least 1, got batch_size=True"),
    ],
)
def test_impossible_tables_are_refused(table: dict[float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSizeSchedule.table(table)


def test_tokens_of_an_example_are_positive() -> None:
    with pytest.raises(ValueError, match="got tokens_per_example=0"):
        BatchSizeSchedule.parse("0:64", tokens_per_example=0)


def test_two_counts_in_one_example_are_no_order() -> None:
    with pytest.raises(ValueError, match="ascending counts"):
        BatchSizeSchedule.parse("0:64 10:128 20:256", tokens_per_example=1000)


def test_a_ramp_spaces_its_steps_evenly() -> None:
    ramp = BatchSizeSchedule.linear(100, 400, 1000, step=100)
    # Three steps of 1000/3 examples; a size begins with the first whole example.
    assert sizes(ramp, 0, 333, 334, 666, 667, 999, 1000) == [100, 100, 200, 200, 300, 300, 400]


def test_a_ramp_may_go_down_or_nowhere() -> None:
    assert sizes(BatchSizeSchedule.linear(30, 10, 20, step=10), 0, 9, 10, 20) == [30, 30, 20, 10]
    assert sizes(BatchSizeSchedule.linear(30, 30, 20, step=10), 0, 99) == [30, 30]


def test_a_ramp_may_take_a_step_at_every_example() -> None:
    assert sizes(BatchSizeSchedule.linear(1, 4, 3, step=1), 0, 1, 2, 3) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "step", "message"),
    [
        ((64, 250, 1000), 64, "`step` must divide the way from start=64 to end=250, got step=64"),
        ((64, 0, 1000), 64, "got end=0"),
        ((64, 128, 0), 64, "got over_examples=0"),
        ((64, 128, math.nan), 64, "got over_examples=nan"),
        ((64, 128, 10), 1, "at least the 64 steps of the ramp, got over_examples=10"),
        ((64, 128, 10), 0, "got step=0"),
    ],
)
def test_impossible_ramps_are_refused(
    arguments: tuple[int, int, float], step: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSizeSchedule.linear(*arguments, step=step)


def test_smith_grows_until_it_may_not_and_decays_the_rest() -> None:
    schedule = BatchSizeSchedule.smith(64, 5, [1000, 2000, 3000], max_batch_size=640)
    assert sizes(schedule, 0, 999, 1000, 2000, 3000) == [64, 64, 320, 640, 640]
    factors = [schedule.size_at(count).rate_factor for count in (0, 1000, 2000, 3000)]
    assert factors == pytest.approx([1, 1, 10 / 25, 10 / 125])


def test_seesaw_takes_the_root_from_the_rate() -> None:
    schedule = BatchSizeSchedule.seesaw(64, 2, [100, 200], max_batch_size=256)
    assert sizes(schedule, 0, 100, 200) == [64, 128, 256]
    factors = [schedule.size_at(count).rate_factor for count in (0, 100, 200)]
    assert factors == pytest.approx([1, 1 / math.sqrt(2), 1 / 2])


def test_a_root_that_rounds_down_costs_no_example() -> None:
    factor = 4 ** (1 / 3)
    assert 64 * factor**3 < 256
    schedule = BatchSizeSchedule.smith(64, factor, [1, 2, 3], max_batch_size=1000)
    assert sizes(schedule, 1, 2, 3) == [101, 161, 256]


START = st.integers(1, 50)
DECAYS = st.tuples(
    START, st.floats(1.05, 12), st.integers(1, 6), st.integers(1, 40), st.integers(1, 8)
)


@given(DECAYS, st.sampled_from(["smith", "seesaw"]))
def test_decays_keep_the_quantity_that_counts(
    numbers: tuple[int, float, int, int, int], name: str
) -> None:
    start, factor, count, room, multiple = numbers
    start *= multiple
    milestones = [10 * (index + 1) for index in range(count)]
    schedule = getattr(BatchSizeSchedule, name)(
        start, factor, milestones, max_batch_size=start * room, multiple_of=multiple
    )
    power = 1 if name == "smith" else 0.5
    before = (start, 1.0)
    for index, milestone in enumerate([0, *milestones]):
        decision = schedule.size_at(milestone)
        growth = decision.batch_size / start
        # rate / batch^power is that of the decaying schedule, whatever was rounded or capped.
        assert decision.rate_factor / growth**power == pytest.approx(factor**-index)
        assert decision.batch_size % multiple == 0
        assert decision.batch_size <= start * room
        # Never faster than the square root: the rate falls by the root of the growth at least.
        if name == "seesaw":
            assert decision.rate_factor <= growth**-0.5 * (1 + 1e-9)
        assert decision.batch_size >= before[0]
        before = (decision.batch_size, decision.rate_factor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, 1.0, [10], 640), "`factor` must be above 1, got factor=1.0"),
        ((64, 5, [20, 10], 640), "`milestones` must begin at ascending .* got 20, 10"),
        ((64, 5, [0], 640), "`milestones` must begin at ascending"),
        ((64, 5, [7.2, 7.4], 640), "`milestones` must begin at ascending .* got 7.2, 7.4"),
        ((64, 5, [math.inf], 640), "`milestones` must begin at ascending .* got inf"),
        ((64, 5, [10], 32), "at most max_batch_size=32, got batch_size=64"),
        ((0, 5, [10], 32), "got batch_size=0"),
    ],
)
def test_impossible_decays_are_refused(
    arguments: tuple[int, float, list[float], int], message: str
) -> None:
    for rule in (BatchSizeSchedule.smith, BatchSizeSchedule.seesaw):
        with pytest.raises(ValueError, match=message):
            rule(*arguments)


def test_a_decay_starts_at_a_size_that_can_be_shared_out() -> None:
    with pytest.raises(ValueError, match=r"multiple of 8, .* batch_size=60.*take 56 or 64"):
        BatchSizeSchedule.smith(60, 2, [10], 640, multiple_of=8)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="got examples_seen=-1"):
        BatchSizeSchedule.parse("0:64").size_at(-1)


# Limits of the run.


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_batch_size": 200}, "at most max_batch_size=200, got batch_size=256"),
        ({"num_examples": 255}, "the data set's 255 examples, got batch_size=256"),
        ({"multiple_of": 0}, "got multiple_of=0"),
        ({"multiple_of": 48}, r"multiple of 48, .*got batch_size=64\..*take 48 or 96"),
    ],
)
def test_a_schedule_is_checked_before_the_run(limits: dict[str, int], message: str) -> None:
    schedule = BatchSizeSchedule.parse("0:64 2e6:256")
    with pytest.raises(ValueError, match=message):
        schedule.within(**limits)
    assert schedule.within(max_batch_size=256, num_examples=256, multiple_of=64) is schedule


@given(st.integers(1, 500), st.integers(1, 60))
def test_nearest_valid_sizes_are_the_nearest(size: int, multiple: int) -> None:
    valid = [other for other in range(1, 600) if other % multiple == 0]
    below = [other for other in valid if other <= size][-1:]
    above = [other for other in valid if other >= size][:1]
    assert list(nearest_valid(size, multiple)) == sorted({*below, *above})


# Following the noise.


def following(**options: object) -> BatchSizeSchedule:
    settings = {"max_batch_size": 512, "dwell_examples": 100, **options}
    return BatchSizeSchedule.noise(64, **settings)  # type: ignore[arg-type]


def test_the_size_moves_by_factors_of_two() -> None:
    schedule = following()
    path = [schedule.size_at(100 * step, exactly(10_000.0)).batch_size for step in range(1, 6)]
    assert path == [128, 256, 512, 512, 512]


@pytest.mark.parametrize(
    "noise", [None, Measured(None, 0.0, None), Measured(None, 900.0, None), exactly(math.inf)]
)
def test_it_never_moves_on_what_is_not_resolved(noise: Measured | None) -> None:
    schedule = following()
    assert [schedule.size_at(1000 * step, noise).batch_size for step in range(5)] == [64] * 5


def test_it_waits_between_moves() -> None:
    schedule = following()
    noise = exactly(10_000.0)
    path = [schedule.size_at(count, noise).batch_size for count in (0, 99, 100, 150, 199, 200)]
    assert path == [64, 64, 128, 128, 128, 256]


@pytest.mark.parametrize(("wanted", "size"), [(64 * 1.41 * 1.25, 64), (64 * 1.42 * 1.25, 128)])
def test_the_dead_band_ends_past_the_middle(wanted: float, size: int) -> None:
    assert following().size_at(100, exactly(wanted)).batch_size == size


def test_a_wish_in_the_dead_bands_of_both_sizes_does_not_flutter() -> None:
    schedule = following(min_batch_size=32)
    path = [
        schedule.size_at(100 * step, exactly(90.0 * 1.2 ** (-1) ** step)).batch_size
        for step in range(1, 9)
    ]
    assert len(set(path)) == 1


def test_an_interval_that_holds_the_present_size_moves_nothing() -> None:
    schedule = following(min_batch_size=16)
    assert schedule.size_at(100, Measured(400.0, 60.0, 900.0)).batch_size == 64
    assert schedule.size_at(100, Measured(20.0, 10.0, 65.0)).batch_size == 64
    assert schedule.size_at(100, Measured(20.0, 10.0, None)).batch_size == 64
    assert schedule.size_at(100, Measured(20.0, 10.0, 63.0)).batch_size == 32
    assert schedule.size_at(200, Measured(400.0, 60.0, None)).batch_size == 64


def test_it_stays_between_its_bounds() -> None:
    schedule = following(max_batch_size=200, min_batch_size=30)
    assert schedule.sizes == (32, 64, 128)
    up = [schedule.size_at(100 * step, exactly(1e6)).batch_size for step in range(1, 4)]
    down = [schedule.size_at(100 * step, exactly(1.0)).batch_size for step in range(4, 9)]
    assert up == [128, 128, 128]
    assert down == [64, 32, 32, 32, 32]


def test_an_odd_size_is_not_halved() -> None:
    schedule = BatchSizeSchedule.noise(3, max_batch_size=12, min_batch_size=1, dwell_examples=0)
    assert schedule.sizes == (3, 6, 12)
    assert schedule.size_at(10, exactly(0.1)).batch_size == 3


def test_a_tenth_of_the_data_set_caps_it() -> None:
    assert following(num_examples=3000).sizes == (64, 128, 256)


def test_it_follows_the_policy() -> None:
    schedule = following(policy=partial(norm_test_size, theta=0.5))  # three times the noise scale
    assert schedule.size_at(100, exactly(40.0)).batch_size == 128
    assert following().size_at(100, exactly(40.0)).batch_size == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 32}, "at most max_batch_size=32, got batch_size=64"),
        ({"num_examples": 300}, "at most a tenth of num_examples=300, got batch_size=64"),
        ({"min_batch_size": 65}, "got min_batch_size=65"),
        ({"min_batch_size": 0}, "got min_batch_size=0"),
        ({"dwell_examples": -1}, "got dwell_examples=-1"),
        ({"dead_band": 0.9}, "got dead_band=0.9"),
    ],
)
def test_impossible_bounds_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        following(**options)


NOISES = st.lists(st.one_of(st.none(), st.floats(1, 2000).map(exactly)), min_size=1, max_size=12)


@given(NOISES, st.integers(0, 11))
def test_resumed_is_uninterrupted(noises: list[Measured | None], killed_at: int) -> None:
    whole, first, second = (following(min_batch_size=8) for _ in range(3))
    expected = [whole.size_at(60 * step, noise) for step, noise in enumerate(noises)]
    cut = min(killed_at, len(noises))
    seen = [first.size_at(60 * step, noise) for step, noise in enumerate(noises[:cut])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    seen += [second.size_at(60 * step, noise) for step, noise in list(enumerate(noises))[cut:]]
    assert seen == expected


@pytest.mark.parametrize(
    "other",
    [
        BatchSizeSchedule.parse("0:64 2e6:512"),
        BatchSizeSchedule.parse("0:64 1e6:256"),
        BatchSizeSchedule.smith(64, 4, [2e6], 256),
        following(),
        following(policy=partial(norm_test_size, theta=0.5)),
    ],
    ids=repr,
)
def test_resuming_with_another_schedule_is_refused(other: BatchSizeSchedule) -> None:
    state = BatchSizeSchedule.parse("0:64 2e6:256").state_dict()
    with pytest.raises(ValueError, match="`state` must be of this schedule, got 'table 0:64"):
        other.load_state_dict(state)
    BatchSizeSchedule.parse("0:64 2M:256").load_state_dict(state)


def test_a_policy_is_part_of_the_schedule() -> None:
    state = following(policy=partial(norm_test_size, theta=0.5)).state_dict()
    with pytest.raises(ValueError, match=r"norm_test_size\(theta=0\.5\)"):
        following(policy=partial(norm_test_size, theta=0.6)).load_state_dict(state)


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="must be of version 1, got None"):
        following().load_state_dict({})


def test_unnamed_policies_are_told_apart() -> None:
    def doubles(factor: int) -> BatchSizeSchedule:
        return following(policy=(lambda noise: 2 * noise) if factor == 2 else lambda n: 4 * n)

    state = doubles(2).state_dict()
    doubles(2).load_state_dict(state)
    with pytest.raises(ValueError, match="policy <lambda> checksum"):
        doubles(4).load_state_dict(state)


def test_a_long_ramp_has_a_short_name_of_its_own() -> None:
    def ramp(over: float) -> BatchSizeSchedule:
        return BatchSizeSchedule.linear(32, 8192, over, step=1)

    state = ramp(1e9).state_dict()
    assert len(json.dumps(state)) < 600
    ramp(1e9).load_state_dict(state)
    # Other starts far behind, with the same ends.
    other = BatchSizeSchedule([*ramp(1e9)._stages[:4000], *ramp(1e9)._stages[4001:]], None, "")
    assert identity_of("linear", other._stages) != state["schedule"]
    assert identity_of("linear", other._stages)[:200] == state["schedule"][:200]


@pytest.mark.parametrize(
    "schedule",
    [
        BatchSizeSchedule.table({0: np.int64(64), 100: np.int32(128)}),
        BatchSizeSchedule.linear(np.int64(64), np.int64(128), 100, step=np.int64(64)),
        BatchSizeSchedule.smith(np.int64(64), 2, [100], np.int64(256), multiple_of=np.int64(2)),
        following(min_batch_size=np.int64(64), max_batch_size=np.int64(512)),
    ],
    ids=repr,
)
def test_whole_numbers_of_any_library_are_taken(schedule: BatchSizeSchedule) -> None:
    assert type(schedule.size_at(100).batch_size) is int
    assert all(type(size) is int for size in schedule.sizes)
    json.dumps(schedule.state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchSizeSchedule.table({0: 10**400}), r"at most 2\*\*53, got .* 1329 bits"),
        (lambda: BatchSizeSchedule.table({0: 10**5000}), "of 16610 bits"),
        (
            lambda: BatchSizeSchedule.smith(64, 10, list(range(1, 401)), 640),
            "got 400 of factor=10. Such a decay is no number",
        ),
        (lambda: BatchSizeSchedule.seesaw(64, 2.0, list(range(1, 2000)), 640), "got 1999 of"),
    ],
)
def test_numbers_without_end_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
