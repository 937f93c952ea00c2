"""A batch size that follows a measured noise scale, and does not follow its noise.

A doubling costs something (a new memory format, a rescaled optimizer) and a wrong one costs
more, so four things must agree before the size moves: a resolved noise scale, a wish that is
clearly nearer to the next size than to this one, an interval that rules the present size out,
and enough examples since the last move.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rightbatch.batches.sizes import check_fits, check_whole


def largest_size(batch_size: int, max_batch_size: int, num_examples: int | None) -> int:
    """Return the largest size to grow to: what memory holds, and a tenth of the data set.

    Args:
        batch_size: At the start.
        max_batch_size: The largest that memory holds.
        num_examples: In the data set; ``None``: not known.

    Raises:
        ValueError: If the start is already more than a tenth of the data set.

    Example:
        >>> largest_size(64, 512, 2000), largest_size(64, 512, None)
        (200, 512)
    """
    max_batch_size = check_whole("max_batch_size", max_batch_size)
    if num_examples is None:
        return max_batch_size
    tenth = check_whole("num_examples", num_examples) // 10
    if batch_size > tenth:
        raise ValueError(
            f"`batch_size` must be at most a tenth of num_examples={num_examples}, got "
            f"batch_size={batch_size}. An epoch of fewer than ten steps leaves little to follow: "
            "start smaller, or leave `num_examples` out."
        )
    return min(max_batch_size, tenth)


class Noise(Protocol):
    """What is asked of a measurement; `rightbatch.NoiseScale` has it."""

    @property
    def noise_scale(self) -> float | None:
        """In examples; ``None``: not resolved."""
        ...

    @property
    def low(self) -> float:
        """Lower end of its interval."""
        ...

    @property
    def high(self) -> float | None:
        """Upper end; ``None``: not bounded."""
        ...


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How a size that follows the noise may move."""

    batch_size: int  # at the start
    policy: Callable[[float], float]  # noise scale -> wanted batch size
    dwell_examples: int  # between two moves
    dead_band: float  # how far past the middle between two sizes, as a factor
    min_batch_size: int
    max_batch_size: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "min_batch_size", "max_batch_size"):
            check_whole(name, getattr(self, name))
        check_fits(self.batch_size, max_batch_size=self.max_batch_size)
        if self.min_batch_size > self.batch_size:
            raise ValueError(
                f"`min_batch_size` must be at most batch_size={self.batch_size}, got "
                f"min_batch_size={self.min_batch_size}. The start is a size like any other."
            )
        if self.dwell_examples < 0:
            raise ValueError(
                f"`dwell_examples` must not be negative, got dwell_examples={self.dwell_examples}."
            )
        if not (math.isfinite(self.dead_band) and self.dead_band >= 1):
            raise ValueError(
                f"`dead_band` must be a finite factor of at least 1, got "
                f"dead_band={self.dead_band!r}. Below 1 the size would go up and down in turn."
            )

    def next_size(self, size: int, noise: Noise | None, *, waited: float) -> tuple[int, str]:
        """Say which size comes next, and why.

        Args:
            size: The present one.
            noise: As measured now; ``None``: not measured.
            waited: Examples since the last move.
        """
        if noise is None or noise.noise_scale is None:
            return size, "stays: the noise scale is not resolved"
        wanted = self.policy(noise.noise_scale)
        if not math.isfinite(wanted):
            return size, "stays: the policy wants no finite size"
        margin = math.sqrt(2) * self.dead_band
        if size / margin <= wanted <= size * margin:
            return size, f"stays: {wanted:.4g} is wanted, within the dead band of {size}"
        other = size * 2 if wanted > size else size // 2
        if not self._is_certain(size, noise, grows=wanted > size):
            return size, f"stays: {wanted:.4g} is wanted, but the interval holds {size} too"
        if wanted > size and other > self.max_batch_size:
            return size, f"stays: {wanted:.4g} is wanted, capped at {self.max_batch_size}"
        if wanted < size and (size % 2 or other < self.min_batch_size):
            return size, f"stays: {wanted:.4g} is wanted, but {size} is the smallest"
        if waited < self.dwell_examples:
            left = math.ceil(self.dwell_examples - waited)
            return size, f"stays: {wanted:.4g} is wanted, {left} examples too early"
        return other, f"{size} -> {other}: {wanted:.4g} is wanted"

    def _is_certain(self, size: int, noise: Noise, *, grows: bool) -> bool:
        if grows:
            return self.policy(noise.low) > size
        return noise.high is not None and self.policy(noise.high) < size

    def sizes(self) -> tuple[int, ...]:
        """Every size within reach, ascending."""
        smallest = self.batch_size
        while smallest % 2 == 0 and smallest // 2 >= self.min_batch_size:
            smallest //= 2
        doublings = (self.max_batch_size // smallest).bit_length()
        return tuple(smallest << count for count in range(doublings))
