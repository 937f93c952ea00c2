"""Devices without float64. Oracle: the same measurement where there is, and a device that refuses.

This machine's CPU plays such a device: nothing there may be made in float64, or turned into it.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rightbatch import Task, supervised
from rightbatch._comm import Alone
from rightbatch.noise import NoiseMonitor, measure_noise, per_example_grad_sq, precision
from rightbatch.noise.measured_step import solve
from rightbatch.noise.precision import sum_dtype
from rightbatch.noise.small_gradients import MicroBatch

pytestmark = pytest.mark.usefixtures("float32")
aten = torch.ops.aten
MADE = (aten.zeros, aten.ones, aten.empty, aten.full, aten.arange)


class WithoutFloat64(TorchDispatchMode):
    """Refuses as such devices do; float64 that came from the host in float64 is the host's."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        if torch.float32 in given or func.overloadpacket in MADE:
            dtypes = {t.dtype for t in tree_leaves(found) if isinstance(t, torch.Tensor)}
            if torch.float64 in dtypes:
                raise TypeError(f"this device does not support float64: {func}")
        return found


def a_task(optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    data = [(torch.randn(6), torch.randn(1)) for _ in range(96)]
    task = Task(
        model,
        optimizer(model.parameters(), lr=1e-3),
        data,
        supervised(nn.functional.mse_loss),
        batch_size=8,
    )
    for batch, _ in zip(task.batches(8, seed=1), range(6), strict=False):
        task.step(batch)  # an adaptive optimizer's moments have then seen enough
    return task


def watched(passes: int) -> tuple[float, float]:
    task = a_task()
    batches = task.batches(8)
    with NoiseMonitor(task.model, task.optimizer, every=1, half_life_examples=1e9) as monitor:
        for _ in range(6):
            task.optimizer.zero_grad()
            for _ in range(passes):
                (task.loss(next(batches))[0] / passes).backward()
                monitor.observe(8, factor=1 / passes)
            task.optimizer.step()
    found = monitor.result()
    return found.grad_sq, found.trace_cov


def probed(optimizer: Callable[..., torch.optim.Optimizer]) -> tuple[float, ...]:
    found = measure_noise(a_task(optimizer), precision=None)
    return found.grad_sq, found.trace_cov, *(g.noise_scale or 0.0 for g in found.geometries)


def squares() -> tuple[float, ...]:
    task = a_task()
    return tuple(per_example_grad_sq(task, next(task.batches(8))).tolist())


@pytest.fixture
def without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "sum_dtype", lambda device: torch.float32)
    for name in ("squares", "signs", "per_example.definition", "per_example.capture"):
        monkeypatch.setattr(f"rightbatch.noise.{name}.sum_dtype", lambda device: torch.float32)


@pytest.mark.parametrize(
    "measure",
    [
        pytest.param(lambda: probed(torch.optim.SGD), id="probe"),
        pytest.param(lambda: probed(torch.optim.Adam), id="probe, preconditioned"),
        pytest.param(lambda: watched(2), id="monitor, micro-batches"),
        pytest.param(lambda: watched(1), id="monitor, single examples"),
        pytest.param(squares, id="single examples"),
    ],
)
def test_a_device_without_float64_measures_the_same(
    measure: Callable[[], tuple[float, ...]], request: pytest.FixtureRequest
) -> None:
    exact = measure()
    request.getfixturevalue("without_float64")
    with WithoutFloat64():
        found = measure()
    np.testing.assert_allclose(found, exact, rtol=2e-4)


def test_examples_are_counted_beyond_what_float32_counts() -> None:
    """Squares in float32, as a device without float64 has them, and an odd count of 25 bits."""
    one = torch.ones(1, 1)
    micro_batches = [
        MicroBatch(
            units=1.0,
            factor=1.0,
            examples=1.0,
            small_count=1,
            small_units=1.0,
            weighted_squares=one,
        )
        for _ in range(2)
    ]
    solved = solve(micro_batches, 4 * one, Alone(), sharded=False, examples_seen=2.0**24 + 1)
    assert solved is not None
    assert solved.examples_seen == 2**24 + 1


def test_the_device_that_is_played_refuses_float64() -> None:
    ones = torch.ones(2)
    with WithoutFloat64():
        with pytest.raises(TypeError, match="does not support float64"):
            ones.double()
        with pytest.raises(TypeError, match="does not support float64"):
            torch.zeros(2, dtype=torch.float64)


@pytest.mark.parametrize(("has_float64", "dtype"), [(1, torch.float64), (0, torch.float32)])
def test_an_intel_device_is_asked(
    has_float64: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def properties(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(has_fp64=has_float64)

    monkeypatch.setattr(torch.xpu, "get_device_properties", properties)
    assert sum_dtype(torch.device("xpu", 0)) is dtype


@pytest.mark.gpu
def test_noise_is_measured_on_the_accelerator(device: torch.device) -> None:
    """A law: where a task lies changes nothing but rounding."""
    there = a_task()
    there.model.to(device)
    there = Task(
        there.model,
        torch.optim.SGD(there.model.parameters(), lr=1e-3),
        there.source.dataset,
        there._loss,
        batch_size=8,
    )
    found = measure_noise(there, precision=None)
    exact = measure_noise(a_task(), precision=None)
    assert found.trace_cov == pytest.approx(exact.trace_cov, rel=1e-3)
    assert found.grad_sq == pytest.approx(exact.grad_sq, rel=1e-3)
