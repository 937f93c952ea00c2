r"""Find losses that couple the examples of a batch, before their noise is measured.

    examples:   1 2 | 3 4 | 5 6 | 7 8        the same ones, in batches of three sizes
    size b:     g_1   g_2   g_3   g_4
    size 2b:      g_12        g_34           must be (w_1 g_1 + w_2 g_2) / (w_1 + w_2)
    size 4b:           g_1234                must be the mean of g_12 and g_34

Every estimator of the noise rests on ``E|g_b|^2 = |G|^2 + tr(Sigma)/b`` being linear in ``1/b``.
It is, where the gradient of a batch is the mean of its parts' gradients, so that is what we test,
on the same examples: the noise between examples, which would hide all but the strongest couplings
in a fit of three squared norms, then cancels. A deterministic model shows a coupling at once.
Dropout draws anew in each pass: there we ask whether whole and parts differ by more than the
parts differ from the same parts in another pass, which is a coin's toss where nothing couples.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor
from torch.utils.data import default_collate

from rightbatch.errors import CoupledLoss
from rightbatch.noise.squares import inner_products
from rightbatch.task import Task
from rightbatch.task.data import to_device
from rightbatch.task.preflight import mixes_examples

Floats = NDArray[np.float64]

_WHOLE = 16  # examples of the largest of the three batches
_EXAMPLES = 256  # of all groups
_LEAST_GROUPS = 3
_LEAST_DEVIATION = 0.02  # |D| over |g|: below it rounding may be all, and the noise hardly errs
_REPEATED = 1e-3  # |D - D'|^2 over |D|^2 below which nothing random is in the loss
_CHANCE = 1e-5  # of a false alarm, where something random is


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Coupling:
    """What the look at a task's loss found, where it found nothing to refuse."""

    tested: bool
    sizes: tuple[int, ...]  # of the batches compared, ascending
    examples: int  # looked at
    deviation: float | None  # |E D| over a small gradient's length; None: not tested
    note: str  # a sentence


def check_coupling(task: Task, *, seed: int = 0) -> Coupling:
    r"""Refuse a loss whose gradient is not the mean over its examples' gradients.

    A loss that sums over the batch passes: its gradient is the sum of its parts', and the ratio
    that is the noise scale is the same.

    Trap: the model stays in its mode. BatchNorm in train mode makes the micro-batch the unit, so
    there is nothing to test; see `mixes_examples`.

    Args:
        task: What to look at; left bit for bit as it was. Three passes over up to 256 examples,
            six where the loss draws random numbers.
        seed: Of the examples and of the loss's random numbers.

    Returns:
        What was tested. ``tested`` is ``False`` where the data hold fewer than three groups of
        the largest batch, or BatchNorm mixes examples.

    Raises:
        CoupledLoss: If gradients of parts do not average to the gradient of the whole.

    Example:
        >>> from rightbatch.testing import QuadraticTask
        >>> found = check_coupling(QuadraticTask().task)
        >>> found.tested, found.sizes, round(found.deviation, 6)
        (True, (4, 8, 16), 0.0)
    """
    if mixes_examples(task.model):
        return _untested("BatchNorm in train mode mixes examples: the micro-batch is the unit.")
    sizes = _sizes(task)
    if sizes is None:
        return _untested(
            f"Too few examples to test whether the loss couples them: {task.num_examples}."
        )
    with task.preserved(weights=False):
        groups = list(_groups(task, sizes[-1], seed))
        if len(groups) < _LEAST_GROUPS:
            return _untested("Too few examples to test whether the loss couples them.")
        look = _Look(task, sizes, seed)
        look.learn_reduction(groups[:_LEAST_GROUPS])
        found = np.array([look.at(group) for group in groups])
    deviation, certain = _judge(found)
    if certain:
        raise CoupledLoss(_refusal(sizes, len(groups), deviation))
    return Coupling(
        tested=True,
        sizes=sizes,
        examples=len(groups) * sizes[-1],
        deviation=deviation,
        note="The gradient of a batch is the mean of its parts' gradients.",
    )


def _untested(note: str) -> Coupling:
    return Coupling(tested=False, sizes=(), examples=0, deviation=None, note=note)


def _sizes(task: Task) -> tuple[int, ...] | None:
    """Choose up to three sizes, each twice the one before, that the data and the device hold."""
    limit = min(_WHOLE, max(task.default_batch_size, 2), task.max_batch_size or _WHOLE)
    if task.num_examples is not None:
        limit = min(limit, task.num_examples // _LEAST_GROUPS)
    if limit < 2:
        return None
    whole = 1 << (limit.bit_length() - 1)
    return tuple(size for size in (whole // 4, whole // 2, whole) if size)


def _groups(task: Task, size: int, seed: int) -> Iterator[list[Any]]:
    """Draw groups of examples, each example once, before they are collated."""
    source = replace(task.source, collate_fn=list)
    loader = source.loader(size, seed=seed, epochs=1)
    for group in islice(loader, _EXAMPLES // size):
        if len(group) == size:
            yield group


@final
class _Look:
    """Compares gradients of parts with that of the whole, on the same examples."""

    def __init__(self, task: Task, sizes: tuple[int, ...], seed: int) -> None:
        self._task, self._sizes = task, sizes
        self._seeds = count(seed)
        self._collate = task.source.collate_fn or default_collate
        self._sums = False

    def learn_reduction(self, groups: Sequence[Sequence[Any]]) -> None:
        """Tell a loss that sums over its batch from one that averages, by a few values."""
        from_sum = from_mean = 0.0
        for group in groups:
            whole, _ = self._loss(group)
            parts = [self._loss(part) for part in _parts(group, self._sizes[0])]
            units = sum(weight for _, weight in parts)
            from_sum += abs(whole - sum(loss for loss, _ in parts))
            from_mean += abs(whole - sum(loss * weight for loss, weight in parts) / units)
        self._sums = from_sum < from_mean / 2

    def at(self, group: Sequence[Any]) -> Floats:
        """Compare for each smaller size; return ``<D, D'>, |D|^2, |D'|^2, |g|^2``, [sizes, 4]."""
        first, small_sq = self._differences(group)
        own = [_dot(d, d) for d in first]
        if all(_deviation(d, g) < _LEAST_DEVIATION / 4 for d, g in zip(own, small_sq, strict=True)):
            return np.array([[d, d, d, g] for d, g in zip(own, small_sq, strict=True)])
        again, _ = self._differences(group)
        return np.array(
            [
                [_dot(a, b), d, _dot(b, b), g]
                for a, b, d, g in zip(first, again, own, small_sq, strict=True)
            ]
        )

    def _differences(self, group: Sequence[Any]) -> tuple[list[list[Tensor]], list[float]]:
        """Return ``D`` for each smaller size, and the mean ``|g|^2`` there, with fresh draws."""
        whole, units = self._gradient(group)
        differences, small_sq = [], []
        for size in self._sizes[:-1]:
            difference = [tensor.clone() for tensor in whole]
            square = 0.0
            for part in _parts(group, size):
                gradient, weight = self._gradient(part)
                square += weight / units * _dot(gradient, gradient)
                for left, right in zip(difference, gradient, strict=True):
                    left.sub_(right, alpha=weight / units)
            differences.append(difference)
            small_sq.append(square)
        return differences, small_sq

    def _loss(self, examples: Sequence[Any]) -> tuple[float, float]:
        """Return the loss of some examples and their units."""
        with self._task.preserved(weights=False):
            loss, weight = self._begin(examples)
            return loss.item(), weight

    def _gradient(self, examples: Sequence[Any]) -> tuple[list[Tensor], float]:
        """Return the gradient of the mean loss of some examples, and their units."""
        parameters = self._task.parameters
        with self._task.preserved(weights=False):  # what modules remember must not tell batches
            for parameter in parameters:
                parameter.grad = None
            loss, weight = self._begin(examples)
            (loss / weight if self._sums else loss).backward()
            return [
                torch.zeros_like(p) if p.grad is None else _dense(p.grad) for p in parameters
            ], weight

    def _begin(self, examples: Sequence[Any]) -> tuple[Tensor, float]:
        seed = next(self._seeds)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return self._task.loss(to_device(self._collate(list(examples)), self._task.device))


def _judge(found: Floats) -> tuple[float, bool]:
    """Return the largest deviation, and whether it cannot be chance.

    Args:
        found: ``<D, D'>, |D|^2, |D'|^2, |g|^2``, [groups, sizes, 4].
    """
    worst, certain = 0.0, False
    for size in range(found.shape[1]):
        products, first, again, small_sq = found[:, size].T
        deviation = _deviation(float(products.mean()), float(small_sq.mean()))
        scatter = float(products.std(ddof=1)) / math.sqrt(len(products))
        random_part = float((first + again - 2 * products).mean())
        repeats = random_part < _REPEATED * float(first.mean())
        far = float(student.ppf(1 - _CHANCE, len(products) - 1))
        sure = repeats or float(products.mean()) > far * scatter
        certain = certain or (sure and deviation > _LEAST_DEVIATION)
        worst = max(worst, deviation)
    return worst, certain


def _refusal(sizes: tuple[int, ...], groups: int, deviation: float) -> str:
    named = " and ".join(str(size) for size in sizes[:-1])
    return (
        f"the gradient of a batch must be the mean of the gradients of its parts, got a "
        f"difference of {deviation:.0%} of a gradient's length between batches of {sizes[-1]} and "
        f"their parts of {named}, on {groups} batches. The loss couples examples (contrastive or "
        "ranking terms, statistics of the batch, a router's auxiliary loss), or averages over "
        "units that `weight` does not count; the noise scale of single examples is not defined "
        "then. Pass `weight=`, or leave the coupling term out of the loss that is measured."
    )


def _parts(group: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [group[i : i + size] for i in range(0, len(group), size)]


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient.detach().clone()


def _deviation(square: float, small_sq: float) -> float:
    """Return the length of a difference over that of a small gradient."""
    return math.sqrt(max(0.0, square) / small_sq) if small_sq > 0 else 0.0


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    pairs = zip(left, right, strict=True)
    return float(sum(inner_products(a, b).item() for a, b in pairs))
