r"""One measured step of a running loop: small gradients and the big one, as two equations.

A step sums ``f_k g_k`` over small batches of ``w_k`` units, on all ranks. With ``F = sum f_k``:

    S = sum w_k |g_k|^2 / sum w_k     E[S] = |G|^2 + s tr(Sigma),  s = K / sum w_k
    M = |sum f_k g_k|^2 / F^2         E[M] = |G|^2 + m tr(Sigma),  m = sum (f_k^2 / w_k) / F^2

for any weights and factors, so loss scaling, unequal micro-batches, uneven shards and "divide
by the number of micro-batches" are all one formula. The small gradients of ``S`` need not be
those of ``M``: the first few examples of a batch serve as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rightbatch._comm import Comm
from rightbatch.noise.estimators import two_sizes
from rightbatch.noise.local_gradients import hooked_gradients
from rightbatch.noise.precision import on_host
from rightbatch.noise.small_gradients import MicroBatch, Reported, Source
from rightbatch.noise.squares import Squares, inner_products

Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Solved:
    """Both parts of every parameter in every metric, per example, from one step."""

    trace_cov: Floats  # [parameters, metrics]
    grad_sq: Floats  # [parameters, metrics]
    examples: float  # in the step, over all ranks
    small_examples: float  # in one small gradient, on average
    examples_seen: float  # since training began, over all ranks


def solve(
    micro_batches: list[MicroBatch],
    accumulated: Tensor,
    comm: Comm,
    *,
    sharded: bool,
    examples_seen: float = 0.0,
) -> Solved | None:
    """Add up over micro-batches and ranks, and solve both equations.

    Args:
        micro_batches: Of this rank.
        accumulated: ``|.grad|^2`` after the last of them, [parameters, metrics]: of the mean over
            ranks, or of this rank's shard of it.
        comm: The ranks.
        sharded: Whether ``accumulated`` is a shard's.
        examples_seen: By this rank, since training began.

    Returns:
        The step's estimates, the same on every rank; ``None`` where a gradient is not finite, or
        small and big one are of one size.
        Columns of parameters that got no gradient are zero.
    """
    ranks = comm.world_size
    squares = torch.stack([m.weighted_squares for m in micro_batches]).sum(0)
    scalars = [
        sum(m.small_count for m in micro_batches),
        sum(m.small_units for m in micro_batches),
        sum(m.factor for m in micro_batches) / ranks,
        sum((m.factor / ranks) ** 2 / m.units for m in micro_batches),
        sum(m.units for m in micro_batches),
        sum(m.examples for m in micro_batches),
        examples_seen,
    ]
    big_part = accumulated if sharded else accumulated / ranks
    found = torch.cat([squares.flatten(), big_part.flatten()])
    if found.dtype != torch.float64:  # what was seen would soon be too many for float32 to count
        found = torch.from_numpy(on_host(found))
    mine = torch.cat([found.new_tensor(scalars), found])
    # The only place where the host waits for the device.
    total = comm.sum(mine).cpu().numpy()
    if not np.isfinite(total).all():
        return None
    count, small_units, factor, inverse, units, examples, seen = total[: len(scalars)]
    if not count * factor**2 > inverse * small_units:  # one small gradient, as large as the big
        return None
    small, big = total[len(scalars) :].reshape(2, *squares.shape)
    trace_cov, grad_sq = two_sizes(
        small / small_units,
        big / factor**2,
        small_inverse=count / small_units,
        big_inverse=inverse / factor**2,
    )
    units_per_example = units / examples
    return Solved(
        trace_cov=trace_cov / units_per_example,
        grad_sq=grad_sq,
        examples=float(examples),
        small_examples=float(small_units / count / units_per_example),
        examples_seen=float(seen),
    )


@final
class MeasuredStep:
    """Watches one optimizer step from its first backward pass to its last.

    Args:
        model: What is trained.
        squares: Parameters and metrics.
        source: Of small gradients.
        sharded: Whether ``.grad`` holds shards.
    """

    def __init__(self, model: nn.Module, squares: Squares, source: Source, *, sharded: bool):
        self.source, self.names = source, squares.names
        self.abandoned = 0  # steps that were begun, and never taken, before this one
        self._model, self._squares, self._sharded = model, squares, sharded
        self._micro_batches: list[MicroBatch] = []
        self._accumulated: Tensor | None = None
        # A step that a gradient scaler skips ends without a sign, and its gradients are zeroed.
        # The largest parameter is our witness: is what it holds still what the last pass left?
        sizes = [parameter.numel() for parameter in squares.parameters]
        self._witness = sizes.index(max(sizes))
        self._before: list[Tensor | None] = []  # the witness' |.grad|^2 before each pass
        self._after: list[Tensor] = []  # and after it

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Hook what must be hooked, and unhook it."""
        witness = self._squares.parameters[self._witness]
        metric = self._squares.metrics[self._witness] if self._squares.metrics else None

        def note(index: int, gradient: Tensor) -> None:
            before = witness.grad
            self._before.append(None if before is None else inner_products(before, before, metric))

        if self._sharded:
            with self.source.armed():
                yield
        else:
            with self.source.armed(), hooked_gradients(self._model, [witness], note):
                yield

    def take(self, reported: Reported) -> None:
        """Note a backward pass that just ended."""
        self._micro_batches.append(self.source.take(reported))
        self._accumulated = self._squares.of_accumulated()
        self._after.append(self._accumulated[self._witness])

    def solve(self, comm: Comm, *, examples_seen: float) -> Solved | None:
        """Solve for both parts; ``None`` where the step cannot be used. See `solve`."""
        if self._accumulated is None:
            return None
        begin = self._beginning()
        self.abandoned = int(begin > 0)
        return solve(
            self._micro_batches[begin:],
            self._accumulated,
            comm,
            sharded=self._sharded,
            examples_seen=examples_seen,
        )

    def _beginning(self) -> int:
        """Return the first backward pass of what was accumulated in the end."""
        if len(self._before) != len(self._after):  # sharded, or no gradient for the witness
            return 0
        for index in range(len(self._before) - 1, 0, -1):
            before, after = self._before[index], self._after[index - 1]
            # Accumulating to NaN is accumulating: the step is left out, but as one step.
            if before is None or not torch.equal(before.nan_to_num(), after.nan_to_num()):
                return index
        return 0
