r"""Does the loss couple the examples of a batch? Then small gradients are not parts of big ones.

Everything about the noise rests on one identity: the gradient of a batch is the mean of the
gradients of its parts. ``E|g_b|^2 = |G|^2 + tr(Sigma)/b``, linear in ``1/b``, follows from it. It
fails where one example's loss depends on the others: contrastive losses, losses of batch
statistics, auxiliary losses of a router. Whether mean squares at three sizes lie on a line is
hidden in their own noise. The identity itself can be seen on the same examples at three sizes,
where it holds to rounding or not at all:

    g_16 = a g_8 + a' g_8'        g_8 = c g_4 + c' g_4'        a = 8/16, c = 4/8

Other shares than those of the units are no coupling: the loss sums, or averages over
units that were not named. What is outside the span of the parts is.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from rightbatch.task.data import examples_in, to_device
from rightbatch.task.preflight import mixes_examples

Floats = NDArray[np.float64]
Gradient = list[Tensor]

_WHOLE = 16  # examples of the largest of the three batches
_LEAST_GROUPS, _MOST_GROUPS = 3, 16
_ENOUGH = 4  # groups, where nothing random hides the answer
_RANDOM = 1e-3  # |g - g'| over |g| of two passes over one batch: above it, draws differ
_AGAIN = 0.05  # relative: what is due to no draw comes out again
_LIMIT = 1e-2  # of a difference over a gradient's length; bfloat16 makes one of 2e-3
_OTHER_UNITS = (
    "The gradient of a batch is made of its parts', but not with their units as shares: the loss "
    "sums, or averages over units that `weight` does not count."
)
_FEW_EXAMPLES = "The data hold too few examples to see whether the loss couples them."
# Of a false alarm, where something random cannot be switched off, for each reading of the units.
_CHANCES = (1e-5, 1e-2)  # a fit takes its share of every difference, so it may ask less


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Coupling:
    """What the look at a task's loss found, where it found nothing to refuse."""

    tested: bool
    sizes: tuple[int, ...]  # of the batches compared, ascending
    examples: int  # looked at
    deviation: float | None  # from the mean of the parts, over a gradient's length
    note: str  # a sentence

    @property
    def warning(self) -> str | None:
        """The note, where the user should know of it and cannot from elsewhere."""
        return self.note if self.note in (_OTHER_UNITS, _FEW_EXAMPLES) else None


def check_coupling(task: Task, *, seed: int = 0) -> Coupling:
    r"""Refuse a loss whose gradient is not made of its examples' gradients.

    Traps: BatchNorm in train mode makes the micro-batch the unit, so there is nothing to test.
    Where the loss draws random numbers, the model is looked at in eval mode, without dropout;
    where draws remain, only a strong coupling is seen. Less than 1 % of a gradient passes.

    Args:
        task: What to look at; left bit for bit as it was. Four passes over up to 64 examples,
            over up to 256 where random draws remain.
        seed: Of the examples and of the loss's random numbers.

    Returns:
        What was tested. ``tested`` is ``False`` where BatchNorm mixes examples, or the data hold
        fewer than three groups of the largest batch.

    Raises:
        CoupledLoss: If the gradient of a batch is not made of those of its parts.

    Example:
        >>> from rightbatch.testing import QuadraticTask
        >>> found = check_coupling(QuadraticTask().task)
        >>> found.tested, found.sizes, found.deviation < 1e-3
        (True, (4, 8, 16), True)
    """
    if mixes_examples(task.model):
        return _untested("BatchNorm in train mode mixes examples: the micro-batch is the unit.")
    sizes = _sizes(task)
    with task.preserved(weights=False):
        groups = list(_groups(task, sizes[-1], seed)) if sizes else []
        if len(groups) < _LEAST_GROUPS:
            return _untested(_FEW_EXAMPLES)
        look = _Look(task, seed)
        found = None
        if not (look.draws(groups[0]) and look.draws_without_dropout(groups[0])):
            found = look.exactly(groups[:_ENOUGH])
        if found is None:
            found = look.through_draws(groups)
        else:
            groups = groups[:_ENOUGH]
    return Coupling(
        tested=True,
        sizes=sizes,
        examples=len(groups) * sizes[-1],
        deviation=found[0],
        note=found[1],
    )


def _untested(note: str) -> Coupling:
    return Coupling(tested=False, sizes=(), examples=0, deviation=None, note=note)


def _sizes(task: Task) -> tuple[int, ...]:
    """Choose up to three sizes, each twice the one before, that data and device surely hold."""
    limit = min(_WHOLE, max(task.default_batch_size, 2), task.max_batch_size or _WHOLE)
    if task.num_examples is not None:
        limit = min(limit, task.num_examples // _LEAST_GROUPS)
    if limit < 2:
        return ()
    whole = 1 << (limit.bit_length() - 1)
    return tuple(size for size in (whole // 4, whole // 2, whole) if size)


def _groups(task: Task, size: int, seed: int) -> Iterator["_Group"]:
    """Draw examples before they are collated, so that every size sees the same ones."""
    collate = task.source.collate_fn or default_collate
    loader = replace(task.source, collate_fn=_uncollated).loader(size, seed=seed, epochs=1)
    for drawn in islice(loader, _MOST_GROUPS):
        group = _Group(drawn, size, collate)
        if group.full:
            yield group


def _uncollated(examples: Any) -> Any:
    return examples


@final
class _Group:
    """Some examples, from which batches can be made.

    Args:
        drawn: A list of examples, or what a data set with ``__getitems__`` stacked by itself.
        size: Examples.
        collate: Makes a batch of either.
    """

    def __init__(self, drawn: Any, size: int, collate: Callable[[Any], Any]) -> None:
        self._drawn, self._collate = drawn, collate
        self._stacked = not isinstance(drawn, list)
        self.full = (examples_in(drawn) if self._stacked else len(drawn)) == size
        self.indices = list(range(size))

    def batch(self, indices: list[int]) -> Any:
        """Collate some of the examples."""
        if self._stacked:
            return self._collate(_rows(self._drawn, indices))
        return self._collate([self._drawn[index] for index in indices])


def _rows(stacked: Any, indices: list[int]) -> Any:
    if isinstance(stacked, Tensor):
        return stacked[indices]
    if isinstance(stacked, Mapping):
        return {key: _rows(value, indices) for key, value in stacked.items()}
    return type(stacked)(_rows(part, indices) for part in stacked)


@final
class _Look:
    """Compares gradients of parts with that of the whole, on the same examples."""

    def __init__(self, task: Task, seed: int) -> None:
        self._task, self._parameters = task, task.parameters
        self._seeds = count(seed)
        for parameter in self._parameters:
            parameter.grad = None

    def draws(self, group: _Group) -> bool:
        """Whether two passes over one batch differ."""
        (first, _), (again, _) = (self._gradient(group, group.indices) for _ in range(2))
        difference = [a - b for a, b in zip(first, again, strict=True)]
        return _dot(difference, difference) > _RANDOM**2 * _dot(first, first)

    def draws_without_dropout(self, group: _Group) -> bool:
        """Go to eval mode, if the loss runs there, and look whether it still draws."""
        model = self._task.model
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            return self.draws(group)
        except Exception:  # a loss that needs train mode says so in its own way
            for module in training:
                module.training = True
            return True

    def exactly(self, groups: Sequence[_Group]) -> tuple[float, str] | None:
        """Compare at three sizes; return the deviation and what it means.

        Returns:
            ``None`` where rare draws make the differences, which then are others each time.

        Raises:
            CoupledLoss: If batches' gradients have parts outside the span of their halves'.
        """
        found = self._deviations(groups)
        deviation, rest = np.sqrt(np.mean(np.square(found), axis=0)).tolist()
        if rest > _LIMIT:
            if not np.allclose(found, self._deviations(groups), rtol=_AGAIN, atol=_LIMIT):
                return None
            raise CoupledLoss(_refusal(len(groups[0].indices), rest))
        if deviation > _LIMIT:
            return deviation, _OTHER_UNITS
        return deviation, "The gradient of a batch is the mean of its parts' gradients."

    def _deviations(self, groups: Sequence[_Group]) -> Floats:
        """Return distances of ``g`` from its halves' mean and from their span, over ``|g|``."""
        found = []
        for group in groups:
            for part in _nested(group.indices):
                vectors, shares = self._gradients(group, part)
                gram = _gram(vectors, vectors)
                whole = gram[0, 0]
                if not (math.isfinite(whole) and whole > 0):
                    continue  # what is measured next says so better
                if not np.isfinite(gram).all():
                    found.append([1.0, 1.0])  # a part has no gradient, though the whole has one
                    continue
                squares = [_rest(gram, a) for a in (shares, _fitted(gram))]
                found.append([math.sqrt(max(0.0, square) / whole) for square in squares])
        return np.array(found).reshape(-1, 2) if found else np.zeros((1, 2))

    def through_draws(self, groups: Sequence[_Group]) -> tuple[float, str]:
        """Compare under random draws: ``E<D, D'> = |E D|^2`` for two draws of a difference ``D``.

        Raises:
            CoupledLoss: If the mean difference cannot be chance.
        """
        products, cosines, wholes = [], [], []
        for group in groups:
            first, shares = self._gradients(group, group.indices)
            again, _ = self._gradients(group, group.indices)
            own, other, across = _gram(first, first), _gram(again, again), _gram(first, again)
            across = (across + across.T) / 2
            units = (shares, _fitted(across))  # as named, or whatever fits: a sum, others
            products.append([_rest(across, a) for a in units])
            lengths = [math.sqrt(max(0.0, _rest(own, a) * _rest(other, a))) for a in units]
            cosines.append(
                [p / n if n > 0 else 0.0 for p, n in zip(products[-1], lengths, strict=True)]
            )
            wholes.append(own[0, 0])
        scale = max(float(np.mean(wholes)), 1e-300)
        deviations = np.sqrt(np.maximum(0.0, np.mean(products, axis=0)) / scale)
        # Angles, since the lengths differ from group to group for reasons of their own.
        scatter = np.std(cosines, axis=0, ddof=1) / math.sqrt(len(groups))
        far = student.ppf(1 - np.array(_CHANCES), len(groups) - 1)
        deviation = float(deviations.min())
        if deviation > _LIMIT and np.all(np.mean(cosines, axis=0) > far * scatter):
            raise CoupledLoss(_refusal(len(groups[0].indices), deviation))
        return deviation, "Parts make up the whole as far as the loss's random draws let see."

    def _gradients(self, group: _Group, part: list[int]) -> tuple[list[Gradient], Floats]:
        """Return the gradients of a batch and of its halves, and the halves' shares of units."""
        looked = [self._gradient(group, indices) for indices in (part, *_halves(part))]
        units = np.array([units for _, units in looked[1:]])
        return [gradient for gradient, _ in looked], units / units.sum()

    def _gradient(self, group: _Group, indices: list[int]) -> tuple[Gradient, float]:
        """Return the gradient of some examples and their units, with fresh random draws."""
        seed = next(self._seeds)
        with self._task.preserved(weights=False):  # what modules remember must not differ
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            batch = to_device(group.batch(indices), self._task.device)
            loss, units = self._task.loss(batch)
            loss.backward()
            gradients = [p.grad for p in self._parameters]
        return [
            torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
            for p, g in zip(self._parameters, gradients, strict=True)
        ], units


def _refusal(size: int, rest: float) -> str:
    return (
        f"the gradient of a batch must be made of its examples' gradients, got one of {size} that "
        f"differs from those of its parts by {rest:.1%} of its length. The loss couples examples "
        "(contrastive or ranking terms, statistics of the batch, a router's balance), so a "
        "larger batch is another loss and its noise has no scale. Measure the noise of the loss "
        "without the coupling term, or choose the batch size by a sweep; trust_loss=True goes on "
        "without this look."
    )


def _nested(indices: list[int]) -> list[list[int]]:
    """Return the batch and its halves, as far as these can be halved."""
    return [part for part in (indices, *_halves(indices)) if len(part) > 1]


def _halves(indices: list[int]) -> tuple[list[int], list[int]]:
    middle = len(indices) // 2
    return indices[:middle], indices[middle:]


def _dot(left: Gradient, right: Gradient) -> float:
    pairs = zip(left, right, strict=True)
    return float(sum(inner_products(a, b).item() for a, b in pairs))


def _gram(left: Sequence[Gradient], right: Sequence[Gradient]) -> Floats:
    return np.array([[_dot(a, b) for b in right] for a in left])


def _fitted(gram: Floats) -> Floats:
    """Return the shares of two parts that come nearest to the whole."""
    return np.asarray(np.linalg.lstsq(gram[1:, 1:], gram[0, 1:], rcond=1e-6)[0], np.float64)


def _rest(gram: Floats, shares: Floats) -> float:
    """Return ``|g - a g' - a' g''|^2`` of a whole and two parts from their scalar products."""
    signed = np.array([1.0, *-shares])
    return float(signed @ gram @ signed)
