"""Which batch size to train with, by examples seen.

Counting steps would be circular: how many steps an epoch has depends on the batch size.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

from rightbatch.batches.hysteresis import Bounds, Noise, largest_size
from rightbatch.batches.identity import identity_of, name_of
from rightbatch.batches.policies import critical_size
from rightbatch.batches.sizes import check_divides, check_fits, check_whole
from rightbatch.batches.stages import (
    Stage,
    decay_stages,
    linear_stages,
    stages_from_text,
    table_stages,
)

_STATE_VERSION = 1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a schedule says about the next step."""

    batch_size: int  # examples per optimizer step, over all devices
    rate_factor: float | None  # of the undecayed rate; None: scale the rate as the size asks
    reason: str  # for the log


@final
class BatchSizeSchedule:
    """Say the batch size for every count of examples seen.

    Build one with `parse`, `table`, `linear`, `smith`, `seesaw` or `noise`. All but the last are
    tables: `size_at` is a pure function of the count. The one that follows the noise has a
    state, and moves only when `size_at` is handed a noise scale.

    The trap: of `smith` and `seesaw`, the batch grows *instead of* a decay of the learning rate.
    Drop that decay from your scheduler and multiply the rate by ``rate_factor``; do not scale it
    with the batch on top.

    Example:
        >>> schedule = BatchSizeSchedule.parse("0:64 2e6:256")
        >>> [schedule.size_at(seen).batch_size for seen in (0, 1_999_999, 2_000_000)]
        [64, 64, 256]
    """

    def __init__(self, stages: Sequence[Stage], bounds: Bounds | None, identity: str) -> None:
        self._stages, self._bounds, self._identity = tuple(stages), bounds, identity
        self._starts = [stage.starts_at for stage in self._stages]
        self._size = self._stages[0].batch_size
        self._moved_at: float = 0
        self.waits_for_noise = bounds is not None  # until `size_at` is handed any

    @classmethod
    def parse(cls, text: str, *, tokens_per_example: float = 1) -> Self:
        """Read a table from text, such as a command line's.

        Args:
            text: ``"0:64 2e6:256"``: 64 examples a step at first, 256 after two million. Entries
                stand between blanks or commas; counts may end in K, M, B or T.
            tokens_per_example: Give it where the counts are tokens. Batch sizes are examples.

        Returns:
            The schedule.

        Raises:
            ValueError: If the text cannot be read, or as of `table`.

        Example:
            >>> in_tokens = BatchSizeSchedule.parse("0:8, 1M:32", tokens_per_example=1000)
            >>> in_tokens.size_at(999).batch_size, in_tokens.size_at(1000).batch_size
            (8, 32)
        """
        return cls.table(stages_from_text(text), tokens_per_example=tokens_per_example)

    @classmethod
    def table(cls, sizes: Mapping[float, int], *, tokens_per_example: float = 1) -> Self:
        """Take each size from a count on.

        Args:
            sizes: From how many examples on, which size: from 0 on, ascending.
            tokens_per_example: Give it where the counts are tokens.

        Returns:
            The schedule.

        Raises:
            ValueError: If it does not begin at 0, is not sorted, or a size is below 1.

        Example:
            >>> BatchSizeSchedule.table({0: 64, 1000: 128}).size_at(1000).batch_size
            128
        """
        stages = table_stages(sizes, per_example=tokens_per_example)
        return cls(stages, None, identity_of("table", stages))

    @classmethod
    def linear(cls, start: int, end: int, over_examples: float, *, step: int) -> Self:
        """Ramp up (or down) in equal steps, evenly spaced in examples.

        Args:
            start: Size at the beginning.
            end: Size from ``over_examples`` on.
            over_examples: Length of the ramp.
            step: Examples that the batch grows at a time; must divide ``end - start``.

        Returns:
            The schedule.

        Raises:
            ValueError: If ``step`` misses ``end``, or a number is out of range.

        Example:
            >>> ramp = BatchSizeSchedule.linear(64, 256, 900, step=64)
            >>> [ramp.size_at(seen).batch_size for seen in (0, 299, 300, 600, 900)]
            [64, 64, 128, 192, 256]

        References:
            Brown et al. (2020), Language Models are Few-Shot Learners,
            https://arxiv.org/abs/2005.14165, section 2.3.
        """
        stages = linear_stages(start, end, over_examples, step)
        return cls(stages, None, identity_of("linear", stages))

    @classmethod
    def smith(
        cls,
        batch_size: int,
        factor: float,
        milestones: Sequence[float],
        max_batch_size: int,
        *,
        multiple_of: int = 1,
    ) -> Self:
        """Grow the batch where the learning rate would have decayed: for SGD.

        ``rate / batch`` is what the decaying schedule would have made it. Once the batch may not
        grow any more, the rate decays after all.

        Args:
            batch_size: At the start.
            factor: By which the rate would have been divided at each milestone.
            milestones: In examples, ascending.
            max_batch_size: The largest size to grow to; a tenth of the data set is usual.
            multiple_of: Round sizes down to a multiple of it, the number of devices.

        Returns:
            The schedule; its ``rate_factor`` is 1 while the batch takes the whole factor.

        Raises:
            ValueError: If a number is out of range or the milestones are not sorted.

        Example:
            >>> schedule = BatchSizeSchedule.smith(64, 5, [1000, 2000], max_batch_size=640)
            >>> [schedule.size_at(seen).batch_size for seen in (0, 1000, 2000)]
            [64, 320, 640]
            >>> schedule.size_at(2000).rate_factor
            0.4

        References:
            Smith et al. (2018), Don't Decay the Learning Rate, Increase the Batch Size,
            https://arxiv.org/abs/1711.00489.
        """
        stages = decay_stages(
            batch_size, factor, milestones, max_batch_size, power=1, multiple_of=multiple_of
        )
        return cls(stages, None, identity_of("smith", stages))

    @classmethod
    def seesaw(
        cls,
        batch_size: int,
        factor: float,
        milestones: Sequence[float],
        max_batch_size: int,
        *,
        multiple_of: int = 1,
    ) -> Self:
        """Grow the batch by ``factor`` while the rate falls by its square root: for Adam.

        ``rate / sqrt(batch)`` is what the decaying schedule would have made it. The batch never
        grows faster than that: a rate that falls by less than the root of the growth diverges.

        Args:
            batch_size: At the start.
            factor: By which the rate would have been divided at each milestone.
            milestones: In examples, ascending; of a smooth decay, where it has passed each
                power of ``factor``.
            max_batch_size: The largest size to grow to.
            multiple_of: Round sizes down to a multiple of it, the number of devices.

        Returns:
            The schedule.

        Raises:
            ValueError: If a number is out of range or the milestones are not sorted.

        Example:
            >>> schedule = BatchSizeSchedule.seesaw(64, 4, [1000], max_batch_size=1024)
            >>> schedule.size_at(1000).batch_size, schedule.size_at(1000).rate_factor
            (256, 0.5)

        References:
            Meterez et al. (2025), Seesaw: Accelerating Training by Balancing Learning Rate and
            Batch Size Scheduling, https://arxiv.org/abs/2510.14717.
        """
        stages = decay_stages(
            batch_size, factor, milestones, max_batch_size, power=0.5, multiple_of=multiple_of
        )
        return cls(stages, None, identity_of("seesaw", stages))

    @classmethod
    def noise(
        cls,
        batch_size: int,
        *,
        max_batch_size: int,
        dwell_examples: int,
        num_examples: int | None = None,
        min_batch_size: int | None = None,
        policy: Callable[[float], float] = critical_size,
        dead_band: float = 1.25,
    ) -> Self:
        """Follow a measured noise scale in factors of two, and not its noise.

        Args:
            batch_size: At the start; every size is it times a power of two.
            max_batch_size: The largest that memory holds.
            dwell_examples: Examples between two moves.
            num_examples: In the data set; a tenth of it caps the size too.
            min_batch_size: The smallest size; the start by default.
            policy: Noise scale to wanted size: a function of `rightbatch.batches.policies`, with
                `functools.partial` for its parameters. A resumed run knows it by its name, a
                lambda by its code, which another release of Python compiles otherwise.
            dead_band: A factor of at least 1: how far the wanted size must be past the middle
                between two sizes.

        Returns:
            The schedule; hand `size_at` what `rightbatch.NoiseMonitor` says.

        Raises:
            ValueError: If a number is out of range.

        Example:
            >>> from types import SimpleNamespace as Measured
            >>> schedule = BatchSizeSchedule.noise(64, max_batch_size=512, dwell_examples=1000)
            >>> noise = Measured(noise_scale=300.0, low=200.0, high=500.0)
            >>> schedule.size_at(500, noise).reason
            'stays: 300 is wanted, 500 examples too early'
            >>> schedule.size_at(1000, noise).reason
            '64 -> 128: 300 is wanted'
            >>> schedule.size_at(2000).batch_size  # nothing measured: never moves
            128
        """
        batch_size = check_whole("batch_size", batch_size)
        bounds = Bounds(
            batch_size=batch_size,
            policy=policy,
            dwell_examples=dwell_examples,
            dead_band=dead_band,
            min_batch_size=batch_size if min_batch_size is None else min_batch_size,
            max_batch_size=largest_size(batch_size, max_batch_size, num_examples),
        )
        first = Stage(0, batch_size, None, "the start")
        identity = (
            f"noise {batch_size} in [{bounds.min_batch_size}, {bounds.max_batch_size}], dwell "
            f"{dwell_examples}, dead band {dead_band:g}, policy {name_of(policy)}"
        )
        return cls([first], bounds, identity)

    def size_at(self, examples_seen: float, noise: Noise | None = None) -> Decision:
        """Say the size of the step that begins after so many examples.

        Args:
            examples_seen: Since training began, over all devices and epochs.
            noise: The noise scale as measured now, for a schedule that follows it. ``None``, or
                one that is not resolved, never moves the size.

        Returns:
            The size, the factor of the rate and the reason.

        Raises:
            ValueError: If the count is negative.
        """
        if not examples_seen >= 0:
            raise ValueError(
                f"`examples_seen` must not be negative, got examples_seen={examples_seen!r}. "
                "Count the examples of all devices since training began."
            )
        if self._bounds is None:
            stage = self._stages[bisect_right(self._starts, examples_seen) - 1]
            return Decision(
                batch_size=stage.batch_size, rate_factor=stage.rate_factor, reason=stage.reason
            )
        self.waits_for_noise &= noise is None
        size, reason = self._bounds.next_size(
            self._size, noise, waited=examples_seen - self._moved_at
        )
        if size != self._size:
            self._size, self._moved_at = size, examples_seen
        return Decision(batch_size=size, rate_factor=None, reason=reason)

    def unchanged_until(self, examples_seen: float) -> float:
        """Return the count before which `size_at` says what it says now, whatever is measured."""
        if self._bounds is not None:
            return self._moved_at + self._bounds.dwell_examples
        later = bisect_right(self._starts, examples_seen)
        return self._starts[later] if later < len(self._starts) else math.inf

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size that it can take, ascending."""
        if self._bounds is None:
            return tuple(sorted({stage.batch_size for stage in self._stages}))
        return self._bounds.sizes()

    def within(
        self,
        *,
        max_batch_size: int | None = None,
        num_examples: int | None = None,
        multiple_of: int = 1,
    ) -> Self:
        """Check every size before the run, not hours into it.

        Args:
            max_batch_size: The largest that memory holds.
            num_examples: In the data set.
            multiple_of: Devices times accumulation steps.

        Returns:
            The schedule itself.

        Raises:
            ValueError: If a size exceeds memory or data set, or cannot be shared out; the
                nearest valid sizes are named.

        Example:
            >>> BatchSizeSchedule.table({0: 64, 1000: 100}).within(multiple_of=16)
            Traceback (most recent call last):
            ValueError: `batch_size` must be a multiple of 16, ... take 96 or 112.
        """
        for size in self.sizes:
            check_fits(size, max_batch_size=max_batch_size, num_examples=num_examples)
            check_divides(size, multiple_of, of="devices times accumulation steps")
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as plain JSON types."""
        return {
            "version": _STATE_VERSION,
            "schedule": self._identity,
            "batch_size": self._size,
            "moved_at": self._moved_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the same schedule stood.

        Raises:
            ValueError: If the state is of another version or of another schedule.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"`state` must be of version {_STATE_VERSION}, got {state.get('version')!r}. "
                "It was saved by another release: start the schedule anew."
            )
        if state["schedule"] != self._identity:
            raise ValueError(
                f"`state` must be of this schedule, got {state['schedule']!r} for "
                f"{self._identity!r}. Sizes would jump: build the schedule that the run began "
                "with, or leave its state out on purpose."
            )
        self._size, self._moved_at = state["batch_size"], state["moved_at"]

    def __repr__(self) -> str:
        return f"BatchSizeSchedule({self._identity})"
