r"""Find losses that couple the examples of a batch, before their noise is measured.

    examples:   1 2 | 3 4 | 5 6 | 7 8        the same ones, in batches of three sizes
    size b:     g_1   g_2   g_3   g_4
    size 2b:      g_12        g_34           foretold: |(w_1 g_1 + w_2 g_2) / (w_1 + w_2)|^2
    size 4b:           g_1234                foretold from g_12 and g_34

Where examples are independent, ``E|g_b|^2 = |G|^2 + tr(Sigma)/b`` is linear in ``1/b``, because
the gradient of a batch is the mean of its parts' gradients. So the parts foretell the squared
gradient of the whole: exactly in a deterministic model, on average where dropout draws anew in
each pass. Every estimator of the noise rests on this. Comparing the same examples cancels the
noise between examples, which would hide all but the strongest couplings in a plain fit of a line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, final

import numpy as np
import torch
from scipy.special import stdtr  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from rightbatch.errors import CoupledLoss
from rightbatch.noise.local_gradients import hooked_gradients
from rightbatch.noise.squares import Squares
from rightbatch.task import Task
from rightbatch.task.preflight import mixes_examples

_SIZES = (4, 2, 1)  # of the smallest batches, the first that fits
_FIRST_GROUPS, _ALL_GROUPS = 3, 16  # of four such batches; all are only run where the first differ
_NEGLIGIBLE = 0.02  # of the noise: so small a difference needs no second look
_HARMFUL = 0.1  # of the noise: a smaller difference is lost in the interval
_ROUNDING = 1e-5  # of the squared gradient: bfloat16 rounds gradients to 1 part in 500
_FALSE_ALARM = 1e-5  # two-sided, of one check of a random but uncoupled loss


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Coupling:
    """What is known of examples that share a batch."""

    tested: bool  # False: too few examples, or BatchNorm makes the micro-batch the unit
    sums: bool  # the loss sums over the batch where it should average
    excess: float | None  # of the noise, what sizes b to 4b disagree by; None: not tested
    sentence: str  # for the user


def check_coupling(task: Task, *, seed: int = 0) -> Coupling:
    """Check that gradients of parts of a batch average to the gradient of the batch.

    Traps: only couplings within at most 16 examples are seen. BatchNorm in train mode is no
    reason to refuse: the micro-batch is then the unit, and the result says so.

    Args:
        task: What to check; left bit for bit as it was.
        seed: Of the draw.

    Returns:
        Whether it could be tested, and a sentence.

    Raises:
        CoupledLoss: If the parts do not foretell the whole.

    Example:
        >>> from rightbatch.testing import QuadraticTask
        >>> check_coupling(QuadraticTask().task).tested
        True
    """
    if mixes_examples(task.model):
        return _untested(
            "BatchNorm in train mode mixes the examples of a batch, so the micro-batch is the unit."
        )
    size = _smallest_size(task)
    if size is None:
        return _untested(
            "Whether the loss couples examples was not tested: that takes 3 batches of 4 examples."
        )
    groups = min(_ALL_GROUPS, (task.num_examples or _ALL_GROUPS * 4 * size) // (4 * size))
    with task.preserved(weights=False):
        few = _measure(task, size, min(_FIRST_GROUPS, groups), seed)
        if _agree(few):
            return _uncoupled(size, few)
        splits = _measure(task, size, groups, seed)
    if any(split.undefined for split in splits):
        raise CoupledLoss(
            f"the loss of a batch must be the mean of its parts' losses, got finite gradients "
            f"from batches whose parts of {size} or {2 * size} examples give NaN or infinity. "
            + _ADVICE
        )
    if not all(math.isfinite(split.actual_sq) for split in splits):
        return _untested("Coupling was not tested: gradients of whole batches are not finite.")
    if _sums(splits):
        return Coupling(
            tested=True,
            sums=True,
            excess=None,
            sentence="The loss sums over the batch: the noise scale holds for equal micro-batches, "
            "but both of its parts grow with their size. Use reduction='mean'.",
        )
    excess = _excess(splits)
    if abs(excess) > _HARMFUL and _chance(splits) < _FALSE_ALARM:
        raise CoupledLoss(_evidence(size, splits))
    return _uncoupled(size, splits)


_ADVICE = (
    "The loss couples the examples of a batch, as contrastive, ranking and batch-statistics "
    "losses do, so no noise scale foretells other batch sizes. If the mean runs over something "
    "other than examples, such as tokens, pass `weight=` to the task; leave out a term that "
    "compares examples, or measure whole runs at several batch sizes instead."
)


class _Split(NamedTuple):
    """A batch and its two parts: what is, and what the parts foretell."""

    noise: float  # sum_k w_k |g_k - mean|^2 of the two parts: estimates tr(Sigma) per unit
    foretold_sq: float  # |mean of the parts' gradients|^2, times the units of the batch
    actual_sq: float  # |gradient of the batch|^2, times the same

    @property
    def excess(self) -> float:
        """By how much the noise seen between the two sizes differs from that between parts."""
        return self.foretold_sq - self.actual_sq

    @property
    def undefined(self) -> bool:
        """Whether a finite gradient has a part that is not."""
        return math.isfinite(self.actual_sq) and not math.isfinite(self.noise)


def _smallest_size(task: Task) -> int | None:
    """Return b: three groups of 4b examples exist, and batches of 4b are no larger than today's."""
    for size in _SIZES:
        enough = task.num_examples is None or task.num_examples >= _FIRST_GROUPS * 4 * size
        if enough and 4 * size <= task.default_batch_size:
            return size
    return None


def _measure(task: Task, size: int, groups: int, seed: int) -> list[_Split]:
    """Return three splits of each group of ``4 * size`` examples: two small ones, one large."""
    small, middle, large = (
        _drawn(task, factor * size, groups * 4 // factor, seed) for factor in (1, 2, 4)
    )
    splits: list[_Split] = []
    for index, whole in enumerate(large):
        halves = middle[2 * index : 2 * index + 2]
        quarters = small[4 * index : 4 * index + 4]
        splits.append(_split(task, quarters[:2], halves[0]))
        splits.append(_split(task, quarters[2:], halves[1]))
        splits.append(_split(task, halves, whole))
    return splits


def _drawn(task: Task, size: int, count: int, seed: int) -> list[Any]:
    """Draw the same examples at every size, random augmentation included."""
    with task.preserved(weights=False):
        return list(islice(task.batches(size, seed=seed), count))


def _split(task: Task, parts: Sequence[Any], whole: Any) -> _Split:
    """Differentiate two parts into ``.grad``, then the batch that they make up."""
    squares = Squares(task.parameters, None)

    def hook(index: int, gradient: Tensor) -> None:
        squares.take(index, gradient, None)

    def squared_gradient(batch: Any, unit: float | None) -> tuple[float, float]:
        squares.clear()
        loss, weight = task.loss(batch)
        scale = weight / (unit or weight)
        (loss * scale).backward()
        return float(squares.squares.sum()) / scale**2, weight

    task.optimizer.zero_grad(set_to_none=True)
    with hooked_gradients(task.model, task.parameters, hook):
        first_sq, first = squared_gradient(parts[0], None)
        second_sq, second = squared_gradient(parts[1], first)  # .grad: g_1 + (w_2 / w_1) g_2
        units = first + second
        with torch.no_grad():
            foretold_sq = float(squares.of_accumulated().sum()) * first**2 / units
        actual_sq = squared_gradient(whole, None)[0] * units
    noise = first * first_sq + second * second_sq - foretold_sq
    return _Split(noise, foretold_sq, actual_sq)


def _agree(splits: list[_Split]) -> bool:
    """Whether each batch is what its parts foretell, as it is without any randomness."""
    noise = sum(split.noise for split in splits) / len(splits)
    return all(
        abs(split.excess) <= _NEGLIGIBLE * noise + _ROUNDING * split.foretold_sq for split in splits
    )


def _sums(splits: list[_Split]) -> bool:
    """Whether the gradient of a batch is the sum of its two parts, so twice their mean."""
    foretold = sum(split.foretold_sq for split in splits)
    return math.isclose(sum(split.actual_sq for split in splits), 4 * foretold, rel_tol=0.02)


def _excess(splits: list[_Split]) -> float:
    """Share of the noise that appears or vanishes between the sizes."""
    noise = sum(split.noise for split in splits)
    excess = sum(split.excess for split in splits)
    return excess / noise if noise > 0 else math.copysign(math.inf, excess) if excess else 0.0


def _chance(splits: list[_Split]) -> float:
    """Chance of an average excess as large as this, were the parts' mean right on average.

    Each split draws its randomness anew, so their differences are independent.
    """
    differences = np.array([split.excess for split in splits])
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    if error == 0:
        return 0.0
    return 2 * float(stdtr(len(differences) - 1, -abs(differences.mean()) / error))


def _evidence(size: int, splits: list[_Split]) -> str:
    small = [split for index, split in enumerate(splits) if index % 3 < 2]
    parts = sum(split.noise for split in splits) / len(splits)
    between = [
        sum(split.noise + split.excess for split in pairs) / len(pairs)
        for pairs in (small, splits[2::3])
    ]
    return (
        f"squared gradients of batches of {size}, {2 * size} and {4 * size} of the same examples "
        f"must fall on one line in 1/size, got a noise of {between[0]:.3g} between the first two "
        f"sizes and {between[1]:.3g} between the last two, where the parts themselves scatter by "
        f"{parts:.3g}. " + _ADVICE
    )


def _uncoupled(size: int, splits: list[_Split]) -> Coupling:
    return Coupling(
        tested=True,
        sums=False,
        excess=_excess(splits),
        sentence=f"Examples do not couple: batches of {size}, {2 * size} and {4 * size} agree.",
    )


def _untested(sentence: str) -> Coupling:
    return Coupling(tested=False, sums=False, excess=None, sentence=sentence)
