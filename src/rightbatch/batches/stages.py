r"""Schedules that are known beforehand: tables of stages, and the rules that write such tables.

A stage begins after so many examples, with a batch size and, where the rule has an opinion on it,
a factor of the learning rate. The rules that replace a decay of the rate rest on one quantity
each, which stays what the decaying schedule would have made it (``F`` the whole decay up to then,
``G`` the whole growth of the batch):

    SGD:   learning rate / batch size          =>  rate factor  G / F        (Smith et al.)
    Adam:  learning rate / sqrt(batch size)    =>  rate factor  sqrt(G) / F  (Seesaw)
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from rightbatch.batches.sizes import check_divides, check_fits, check_whole

_MOST_DECAY = 700.0  # the logarithm of what a float holds
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_ENTRY = re.compile(r"(?P<start>[0-9.]+(?:[eE][+-]?[0-9]+)?)(?P<factor>[kKmMbBtT]?):(?P<size>\S+)")


class Stage(NamedTuple):
    """From here on, until the next stage."""

    starts_at: int  # examples seen
    batch_size: int
    rate_factor: float | None  # of the undecayed learning rate; None: not this rule's business
    reason: str


def stages_from_text(text: str) -> dict[float, int]:
    """Read ``"0:64 2e6:256"``: from how many examples (or tokens) on, which size.

    Args:
        text: Entries ``start:size`` between blanks or commas. A start may be written ``250K``,
            ``2e6``, ``1.5M``, ``2B`` or ``1T``; a size is a whole number.

    Raises:
        ValueError: If an entry cannot be read, or a start occurs twice.
    """
    entries: dict[float, int] = {}
    for word in text.replace(",", " ").split():
        match = _ENTRY.fullmatch(word)
        start, size = _numbers(match) if match else (None, None)
        if start is None or size is None:
            raise ValueError(
                f"`text` must be entries start:batch_size, got {word!r} in {text!r}. "
                'Write when each size begins, as in "0:64 2e6:256" or "0:64, 250K:256".'
            )
        if entries and start <= max(entries):
            raise _unsorted([*entries, start])
        entries[start] = size
    return entries


def _numbers(match: re.Match[str]) -> tuple[float | None, int | None]:
    try:
        start = float(match["start"]) * _FACTORS[match["factor"].lower()]
        return start, int(match["size"])
    except ValueError:
        return None, None


def table_stages(sizes: Mapping[float, int], *, per_example: float = 1.0) -> list[Stage]:
    """Write the stages of a table.

    Args:
        sizes: From how many examples on, which size; from 0 on, ascending.
        per_example: What one example counts in the keys: 1, or its tokens.

    Raises:
        ValueError: If it is empty, does not begin at 0, is not sorted or holds no size.
    """
    if not (math.isfinite(per_example) and per_example > 0):
        raise ValueError(
            f"`tokens_per_example` must be positive and finite, got "
            f"tokens_per_example={per_example!r}."
        )
    starts = list(sizes)
    if not starts or starts[0] != 0:
        raise ValueError(
            f"`sizes` must begin at 0, got {starts[:5]}. "
            "The run needs a size for its first step: add one, as in {0: 64, 2_000_000: 256}."
        )
    if not all(math.isfinite(start) for start in starts):
        raise ValueError(
            f"`sizes` must begin at finite counts of examples, got {starts[:5]}. "
            "A size that never begins is no part of the schedule: leave it out."
        )
    counts = [math.ceil(start / per_example) for start in starts]
    if any(later <= earlier for earlier, later in pairwise(counts)):
        raise _unsorted(starts)
    batch_sizes = [check_whole("batch_size", size) for size in sizes.values()]
    return [
        Stage(count, size, None, f"the table says {size} from {count} examples on")
        for count, size in zip(counts, batch_sizes, strict=True)
    ]


def linear_stages(start: int, end: int, over_examples: float, step: int) -> list[Stage]:
    """Write the stages of a ramp, ``step`` examples a batch at a time.

    Raises:
        ValueError: If the ramp does not end where it should, or has no length.
    """
    start, end = check_whole("start", start), check_whole("end", end)
    step = check_whole("step", step)
    if not (math.isfinite(over_examples) and over_examples > 0):
        raise ValueError(
            f"`over_examples` must be positive and finite, got over_examples={over_examples!r}. "
            "For one change at once, write a table."
        )
    if (end - start) % step:
        raise ValueError(
            f"`step` must divide the way from start={start} to end={end}, got step={step}. "
            f"The ramp would not end at {end}: take a divisor of {abs(end - start)}."
        )
    count = abs(end - start) // step
    if count > over_examples:
        raise ValueError(
            f"`over_examples` must be at least the {count} steps of the ramp, got "
            f"over_examples={over_examples!r}. Several sizes would begin at once: take a larger "
            "`step`."
        )
    sign = 1 if end > start else -1
    return [
        Stage(
            math.ceil(index * over_examples / count) if count else 0,
            start + sign * index * step,
            None,
            f"step {index} of {count} from {start} to {end}",
        )
        for index in range(count + 1)
    ]


def decay_stages(
    batch_size: int,
    factor: float,
    milestones: Sequence[float],
    max_batch_size: int,
    *,
    power: float,
    multiple_of: int,
) -> list[Stage]:
    """Write the stages of a batch that grows where the rate would have decayed.

    Args:
        batch_size: At the start.
        factor: By which the rate would have been divided at each milestone; above 1.
        milestones: In examples, ascending.
        max_batch_size: What the batch does not pass; the rate decays instead.
        power: Of the batch size in the quantity that is kept: 1 for SGD, 1/2 for Adam.
        multiple_of: What sizes are rounded down to; the rate makes up for the rounding.

    Raises:
        ValueError: If a number is out of range or the milestones are not sorted.
    """
    if not (math.isfinite(factor) and factor > 1):
        raise ValueError(
            f"`factor` must be above 1, got factor={factor!r}. "
            "It is what the learning rate would have been divided by: 10 for a decay to a tenth."
        )
    batch_size = check_whole("batch_size", batch_size)
    max_batch_size = check_whole("max_batch_size", max_batch_size)
    multiple_of = check_whole("multiple_of", multiple_of)
    check_fits(batch_size, max_batch_size=max_batch_size)
    check_divides(batch_size, multiple_of, of="devices times accumulation steps")
    if not all(math.isfinite(milestone) for milestone in milestones):
        raise _unsorted(milestones, name="milestones")
    if math.log(factor) * len(milestones) > _MOST_DECAY:
        raise ValueError(
            f"`milestones` must leave a learning rate, got {len(milestones)} of factor={factor!r}. "
            "Such a decay is no number any more: end the schedule earlier."
        )
    starts = [0, *(math.ceil(milestone) for milestone in milestones)]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        raise _unsorted(milestones, name="milestones")
    stages = []
    for index, start in enumerate(starts):
        decay = factor**index
        grown = math.floor(batch_size * decay * (1 + 1e-12))  # powers of a root may round down
        wanted = min(max_batch_size, grown)
        size = wanted // multiple_of * multiple_of  # not below the first, which is a multiple
        rate_factor = (size / batch_size) ** power / decay
        reason = (
            f"the batch is {size / batch_size:g} times the first, the rate {rate_factor:.3g} "
            f"times, instead of a rate divided by {decay:g}"
        )
        stages.append(Stage(start, size, rate_factor, reason))
    return stages


def _unsorted(starts: Sequence[float], *, name: str = "sizes") -> ValueError:
    shown = ", ".join(f"{start:g}" for start in starts[:5])
    return ValueError(
        f"`{name}` must begin at ascending counts of examples, got {shown}. "
        "Each size holds until the next begins: sort them, and name each beginning once."
    )
