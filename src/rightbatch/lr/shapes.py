"""Shapes of a learning-rate schedule: what share of its first rate a run of examples gets.

Each is called with examples (or tokens) seen and returns a factor. They know nothing of steps or
batch sizes, so that neither can stretch them. `Sequence` plays several one after the other.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from rightbatch.lr.stepwise import FromTorch

Schedule = Callable[[float], float]


@final
@dataclass(frozen=True)
class Constant:
    """One factor, for as many examples as given.

    Args:
        examples: How long, where another shape follows.
        factor: Of the first rate.

    Raises:
        ValueError: If ``examples`` is not positive, or ``factor`` is negative.

    Example:
        >>> Constant(1000, 0.5)(999)
        0.5
    """

    examples: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_examples(self.examples)
        _check_factor("factor", self.factor)

    def __call__(self, examples: float) -> float:
        """Return the factor after so many examples."""
        return self.factor


@final
@dataclass(frozen=True)
class Linear:
    """A straight line, level after its end.

    Args:
        examples: How long.
        start: Factor at its start.
        end: Factor at its end and after it.

    Raises:
        ValueError: If ``examples`` is not positive, or a factor is negative.

    Example:
        >>> [Linear(100)(seen) for seen in (0, 25, 100, 900)]
        [1.0, 0.75, 0.0, 0.0]
    """

    examples: float
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _check_examples(self.examples)
        _check_factor("start", self.start)
        _check_factor("end", self.end)

    def __call__(self, examples: float) -> float:
        """Return the factor after so many examples."""
        share = min(examples / self.examples, 1.0)
        return self.start + (self.end - self.start) * share


@final
@dataclass(frozen=True)
class Warmup:
    """A straight line up to the whole rate, level after that.

    The first step comes after 0 examples: with ``start=0.0`` it changes no weight.

    Args:
        examples: How long.
        start: Factor at its start.

    Raises:
        ValueError: If ``examples`` is not positive, or ``start`` is negative.

    Example:
        >>> [Warmup(100)(seen) for seen in (0, 25, 100, 900)]
        [0.0, 0.25, 1.0, 1.0]
    """

    examples: float
    start: float = 0.0

    def __post_init__(self) -> None:
        _check_examples(self.examples)
        _check_factor("start", self.start)

    def __call__(self, examples: float) -> float:
        """Return the factor after so many examples."""
        return Linear(self.examples, self.start, 1.0)(examples)


@final
@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the whole rate down, level after its end.

    Args:
        examples: How long.
        end: Factor at its end and after it.

    Raises:
        ValueError: If ``examples`` is not positive, or ``end`` is negative.

    Example:
        >>> [round(Cosine(100)(seen), 4) for seen in (0, 50, 100, 900)]
        [1.0, 0.5, 0.0, 0.0]

    References:
        Loshchilov and Hutter (2017), SGDR: Stochastic Gradient Descent with Warm Restarts,
        https://arxiv.org/abs/1608.03983.
    """

    examples: float
    end: float = 0.0

    def __post_init__(self) -> None:
        _check_examples(self.examples)
        _check_factor("end", self.end)

    def __call__(self, examples: float) -> float:
        """Return the factor after so many examples."""
        share = min(examples / self.examples, 1.0)
        return self.end + (1.0 - self.end) * (1.0 + math.cos(math.pi * share)) / 2.0


@final
@dataclass(frozen=True)
class Steps:
    """A factor for each milestone that is behind; without an end.

    Args:
        milestones: Examples at which the rate changes, in ascending order.
        factor: What it is multiplied by at each.

    Raises:
        ValueError: If milestones are absent, not positive or not ascending, or ``factor`` is
            negative.

    Example:
        >>> [Steps((100, 200), 0.5)(seen) for seen in (99, 100, 200)]
        [1.0, 0.5, 0.25]
    """

    milestones: tuple[float, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        ascending = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        if not self.milestones or not ascending or self.milestones[0] <= 0:
            raise ValueError(
                "`milestones` must be positive and ascending, at least one, "
                f"got {self.milestones!r}. They count examples from the start: sort them."
            )
        _check_factor("factor", self.factor)

    def __call__(self, examples: float) -> float:
        """Return the factor after so many examples."""
        return float(self.factor) ** bisect_right(self.milestones, examples)


@final
@dataclass(frozen=True)
class InverseSqrt:
    """The inverse square root, from the whole rate; without an end.

    After a `Warmup` of the same length this is the schedule of the first transformers: the peak
    times ``sqrt(examples of the warm-up / examples seen)``.

    Args:
        examples: After three times as many more, the rate is half.

    Raises:
        ValueError: If ``examples`` is not positive.

    Example:
        >>> [InverseSqrt(100)(seen) for seen in (0, 300, 1500)]
        [1.0, 0.5, 0.25]

    References:
        Vaswani et al. (2017), Attention Is All You Need, https://arxiv.org/abs/1706.03762,
        section 5.3.
    """

    examples: float

    def __post_init__(self) -> None:
        _check_examples(self.examples)

    def __call__(self, examples: float) -> float:
        """Return the factor after so many examples."""
        return math.sqrt(self.examples / (self.examples + examples))


@final
@dataclass(frozen=True, init=False)
class Sequence:
    """Several shapes, one after the other, each counting from its own start.

    Args:
        shapes: All but the last must end: `Warmup`, `Linear`, `Cosine`, `Constant`. The last may be
            any function of examples.

    Raises:
        ValueError: If there is none, or one that does not end is not the last.

    Example:
        >>> shape = Sequence(Warmup(100), Cosine(900))
        >>> [round(shape(seen), 4) for seen in (0, 50, 100, 550, 1000)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    shapes: tuple[Schedule, ...]

    def __init__(self, *shapes: Schedule) -> None:
        object.__setattr__(self, "shapes", shapes)
        endless = [shape for shape in shapes[:-1] if not isinstance(shape, _ENDING)]
        if not shapes or endless:
            listed = ", ".join(map(repr, endless)) or "no shape"
            raise ValueError(
                f"each shape but the last must be one that ends, got {listed}. What follows would "
                "never start: put it last, or use Warmup, Linear, Cosine or Constant."
            )

    def __call__(self, examples: float) -> float:
        """Return the factor after so many examples."""
        start: float = 0
        for shape in self.shapes[:-1]:
            if isinstance(shape, _ENDING) and examples < start + shape.examples:
                return shape(examples - start)
            start += shape.examples if isinstance(shape, _ENDING) else 0
        return self.shapes[-1](examples - start)

    def __repr__(self) -> str:
        return f"Sequence({', '.join(map(repr, self.shapes))})"


_ENDING = (Constant, Linear, Warmup, Cosine)


def describe_shape(schedule: Schedule) -> str:
    """Say what a schedule is, in words that are the same in another process.

    Example:
        >>> describe_shape(Sequence(Warmup(100), math.sqrt))
        'Sequence(Warmup(examples=100, start=0.0), a function)'
    """
    if isinstance(schedule, Sequence):
        return f"Sequence({', '.join(map(describe_shape, schedule.shapes))})"
    if isinstance(schedule, FromTorch):
        return f"FromTorch(batch_size={schedule.batch_size})"
    known = isinstance(schedule, (*_ENDING, Steps, InverseSqrt))
    return repr(schedule) if known else "a function"


def _check_examples(examples: float) -> None:
    if not (math.isfinite(examples) and examples > 0):
        raise ValueError(
            f"`examples` must be positive and finite, got examples={examples!r}. "
            "It is how long this part of the schedule lasts."
        )


def _check_factor(name: str, factor: float) -> None:
    if not (math.isfinite(factor) and factor >= 0):
        raise ValueError(
            f"`{name}` must not be negative, got {name}={factor!r}. It is a share of the first "
            "rate, and a rate below 0 climbs: use a number from 0 on."
        )
