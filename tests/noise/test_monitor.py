"""The monitor in a loop. Oracles: stored gradients of the same steps, and an uninterrupted run."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rightbatch as rb
from rightbatch.errors import MixesExamples, TaskError
from rightbatch.results import Status
from rightbatch.testing import FakeClock

Batch = tuple[Tensor, Tensor]


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def batches(steps: int, sizes: tuple[int, ...] = (5, 2, 3)) -> Iterator[list[Batch]]:
    """Micro-batches of unequal sizes, always the same."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        yield [
            (torch.randn(n, 3, generator=generator), torch.randn(n, 2, generator=generator))
            for n in sizes
        ]


def mean_gradient(model: nn.Module, batch: Batch) -> Tensor:
    loss = F.mse_loss(model(batch[0]), batch[1])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def by_definition(model: nn.Module, micro_batches: list[Batch]) -> tuple[float, float]:
    """Both parts from stored gradients: notes of the U-statistic, weights by examples."""
    gradients = torch.stack([mean_gradient(model, b) for b in micro_batches])
    weights = torch.tensor([float(len(b[0])) for b in micro_batches])
    units, count = weights.sum(), len(weights)
    small = (weights / units) @ gradients.square().sum(1)
    big = ((weights / units) @ gradients).square().sum()
    return (
        (units * (small - big) / (count - 1)).item(),
        ((count * big - small) / (count - 1)).item(),
    )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    monitor: rb.NoiseMonitor | None = None,
    *,
    sizes: tuple[int, ...] = (5, 2, 3),
    clip: float | None = None,
) -> None:
    for micro_batches in batches(steps, sizes):
        optimizer.zero_grad()
        total = sum(len(b[0]) for b in micro_batches)
        for inputs, targets in micro_batches:
            factor = len(inputs) / total
            (F.mse_loss(model(inputs), targets) * factor).backward()
            if monitor is not None:
                monitor.observe(len(inputs), factor=factor)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


@pytest.mark.parametrize("sizes", [(5, 2, 3), (4, 4), (1, 1, 1, 9)])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_unequal_micro_batches_equal_stored_gradients(
    sizes: tuple[int, ...], clip: float | None
) -> None:
    model, twin = net(), net()
    optimizer, twins = sgd(model), sgd(twin)
    expected = []
    for micro_batches in batches(6, sizes):
        expected.append(by_definition(twin, micro_batches))
        twins.zero_grad()
        total = sum(len(b[0]) for b in micro_batches)
        for b in micro_batches:
            (F.mse_loss(twin(b[0]), b[1]) * (len(b[0]) / total)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(twin.parameters(), clip)
        twins.step()
    with rb.NoiseMonitor(model, optimizer, every=1, half_life_examples=1e15) as monitor:
        train(model, optimizer, 6, monitor, sizes=sizes, clip=clip)
    noise = monitor.result()
    trace_cov, grad_sq = np.mean(expected[1:], axis=0)  # the first step tells what there is
    assert noise.steps_measured == 5
    assert noise.small_gradients == "micro_batches"
    assert noise.trace_cov == pytest.approx(trace_cov, rel=1e-9)
    assert noise.grad_sq == pytest.approx(grad_sq, rel=1e-9)
    assert noise.examples_used == 5 * sum(sizes)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


# Set-ups: each must equal plain training.


def averages(monitor: rb.NoiseMonitor) -> tuple[float, float]:
    noise = monitor.result()
    return noise.trace_cov, noise.grad_sq


def monitored(
    model: nn.Module, steps: int = 5, **options: Any
) -> tuple[rb.NoiseMonitor, list[Tensor]]:
    optimizer = sgd(model)
    with rb.NoiseMonitor(model, optimizer, every=1, half_life_examples=1e15) as monitor:
        train(model, optimizer, steps, monitor, **options)
    return monitor, [p.detach().clone() for p in model.parameters()]


def test_training_is_bit_for_bit_what_it_would_be_without() -> None:
    model, twin = net(), net()
    _, weights = monitored(model)
    train(twin, sgd(twin), 5)
    for found, p in zip(weights, twin.parameters(), strict=True):
        assert torch.equal(found, p)


def test_no_hook_is_left() -> None:
    model = net()
    optimizer = sgd(model)
    monitor = rb.NoiseMonitor(model, optimizer, every=1)
    assert not optimizer._optimizer_step_post_hooks

    def stopped() -> None:
        with monitor:
            train(model, optimizer, 2, monitor)
            assert any(p._backward_hooks for p in model.parameters())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert not optimizer._optimizer_step_post_hooks
    assert not any(p._backward_hooks for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_between_measured_steps_nothing_is_hooked() -> None:
    model = net()
    optimizer = sgd(model)
    hooked = []
    with rb.NoiseMonitor(model, optimizer, every=3) as monitor:
        for _ in range(8):
            train(model, optimizer, 1, monitor)
            hooked.append(any(p._backward_hooks for p in model.parameters()))
    # The first step tells what there is; so steps 1, 4 and 7 (from 0) are measured.
    assert hooked == [True, False, False, True, False, False, True, False]
    assert monitor.result().steps_measured == 3


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.inner, self._reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        x = x.clone().requires_grad_()
        return checkpoint(self.inner, x, use_reentrant=self._reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_equals_plain(reentrant: bool) -> None:
    plain, _ = monitored(net())
    checkpointed, _ = monitored(Checkpointed(net(), reentrant=reentrant))
    assert averages(checkpointed) == pytest.approx(averages(plain), rel=1e-12)


def test_a_compiled_model_equals_plain() -> None:
    plain, _ = monitored(net())
    compiled = torch.compile(net(), backend="aot_eager")
    assert isinstance(compiled, nn.Module)
    found, _ = monitored(compiled)
    assert averages(found) == pytest.approx(averages(plain), rel=1e-12)


def test_a_gradient_scaler_divides_out(float32: None) -> None:
    plain, _ = monitored(net())
    model = net()
    optimizer, scaler = (
        sgd(model),
        torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2),
    )
    monitor = rb.NoiseMonitor(model, optimizer, every=1, half_life_examples=1e15, scaler=scaler)
    scales = set()
    with monitor:
        for micro_batches in batches(5):
            optimizer.zero_grad()
            total = sum(len(b[0]) for b in micro_batches)
            scales.add(scaler.get_scale())
            for inputs, targets in micro_batches:
                factor = len(inputs) / total
                scaler.scale(F.mse_loss(model(inputs), targets) * factor).backward()
                monitor.observe(len(inputs), factor=factor)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1e9)
            scaler.step(optimizer)
            scaler.update()
    assert len(scales) > 1  # it changed on the way
    assert averages(monitor) == pytest.approx(averages(plain), rel=1e-4)


def test_a_step_that_the_scaler_skips_is_counted_and_left_out(float32: None) -> None:
    model = net()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**4)
    monitor = rb.NoiseMonitor(model, optimizer, every=1, scaler=scaler)
    with monitor:
        for step, micro_batches in enumerate(batches(6)):
            optimizer.zero_grad()
            for inputs, targets in micro_batches:
                loss = F.mse_loss(model(inputs), targets) / 3
                if step == 3:
                    loss = loss * torch.inf
                scaler.scale(loss).backward()
                monitor.observe(len(inputs), factor=1 / 3)
            scaler.step(optimizer)
            scaler.update()
    noise = monitor.result()
    assert (noise.steps_measured, noise.steps_skipped) == (4, 1)
    assert noise.trace_cov > 0
    assert np.isfinite(noise.trace_cov)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_abandoned_step_leaves_no_trace(set_to_none: bool) -> None:
    """A loop that throws one step's gradients away measures the next one as if nothing happened."""
    plain, abandoned = net(), net()
    results = []
    for model, waste in ((plain, False), (abandoned, True)):
        optimizer = sgd(model, lr=0.0)
        with rb.NoiseMonitor(model, optimizer, every=1, half_life_examples=1e15) as monitor:
            train(model, optimizer, 2, monitor)
            if waste:
                for inputs, targets in next(batches(1, (6, 6))):
                    F.mse_loss(model(inputs), targets).backward()
                    monitor.observe(len(inputs), factor=1.0)
                optimizer.zero_grad(set_to_none=set_to_none)
            for micro_batches in batches(1, (3, 4)):
                if not waste:
                    optimizer.zero_grad()
                for inputs, targets in micro_batches:
                    (F.mse_loss(model(inputs), targets) / 2).backward()
                    monitor.observe(len(inputs), factor=0.5)
                optimizer.step()
        results.append(averages(monitor))
    assert results[1] == pytest.approx(results[0], rel=1e-12)


def test_bfloat16_autocast_stays_near_plain(float32: None) -> None:
    plain, _ = monitored(net())
    model = net()
    optimizer = sgd(model)
    with rb.NoiseMonitor(model, optimizer, every=1, half_life_examples=1e15) as monitor:
        for micro_batches in batches(5):
            optimizer.zero_grad()
            for inputs, targets in micro_batches:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = F.mse_loss(model(inputs), targets)
                factor = len(inputs) / 10
                (loss * factor).backward()
                monitor.observe(len(inputs), factor=factor)
            optimizer.step()
    assert averages(monitor) == pytest.approx(averages(plain), rel=0.05)


def test_token_weights_answer_in_examples() -> None:
    """Units are tokens: twice the tokens in every example is the same answer in examples."""
    results = []
    for tokens in (1, 2):
        model = net()
        optimizer = sgd(model)
        with rb.NoiseMonitor(model, optimizer, every=1, half_life_examples=1e15) as monitor:
            for micro_batches in batches(5):
                optimizer.zero_grad()
                for inputs, targets in micro_batches:
                    factor = len(inputs) / 10
                    (F.mse_loss(model(inputs), targets) * factor).backward()
                    monitor.observe(tokens * len(inputs), factor=factor, examples=len(inputs))
                optimizer.step()
        results.append(averages(monitor))
    assert results[1] == pytest.approx(results[0], rel=1e-12)


def test_layers_add_up() -> None:
    monitor, _ = monitored(net())
    noise = monitor.result()
    assert [layer.layer for layer in noise.layers] == ["0", "2"]
    assert sum(x.trace_cov for x in noise.layers) == pytest.approx(noise.trace_cov, rel=1e-12)
    assert sum(x.grad_sq for x in noise.layers) == pytest.approx(noise.grad_sq, rel=1e-9)


def test_adam_gets_its_own_geometry_once_it_is_warm() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    with rb.NoiseMonitor(model, optimizer, every=1) as monitor:
        train(model, optimizer, 3, monitor)
        assert [g.status for g in monitor.result().geometries if g.fits] == [Status.NOT_YET]
        train(model, optimizer, 12, monitor)
    fitting = [g for g in monitor.result().geometries if g.fits]
    assert [g.geometry for g in fitting] == ["adam"]
    assert fitting[0].status is not Status.NOT_YET


# Saving, resuming, logging.


@pytest.mark.parametrize("stop", [1, 2, 5, 8, 11])
@pytest.mark.parametrize("every", [1, 3, None])
def test_a_resumed_monitor_equals_the_uninterrupted_one(stop: int, every: int | None) -> None:
    def run(model: nn.Module, optimizer: Any, monitor: Any, todo: list[list[Batch]]) -> None:
        with monitor:
            for micro_batches in todo:
                optimizer.zero_grad()
                for inputs, targets in micro_batches:
                    (F.mse_loss(model(inputs), targets) / 3).backward()
                    clock.advance(1.0)
                    monitor.observe(len(inputs), factor=1 / 3)
                optimizer.step()

    clock = FakeClock()
    todo = list(batches(12))
    whole = net()
    optimizer = torch.optim.Adam(whole.parameters())
    uninterrupted = rb.NoiseMonitor(whole, optimizer, every=every, clock=clock)
    run(whole, optimizer, uninterrupted, todo)

    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    first = rb.NoiseMonitor(model, optimizer, every=every, clock=clock)
    run(model, optimizer, first, todo[:stop])
    saved = json.loads(json.dumps(first.state_dict(), allow_nan=False))
    optimizer_state = copy.deepcopy(optimizer.state_dict())

    resumed_model = copy.deepcopy(model)
    resumed_optimizer = torch.optim.Adam(resumed_model.parameters())
    resumed_optimizer.load_state_dict(optimizer_state)
    second = rb.NoiseMonitor(resumed_model, resumed_optimizer, every=every, clock=clock)
    second.load_state_dict(saved)
    run(resumed_model, resumed_optimizer, second, todo[stop:])
    assert second.result() == uninterrupted.result()


def test_a_state_of_another_model_is_refused() -> None:
    monitor, _ = monitored(net())
    other = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"same parameters .* got a difference in \['0.bias'"):
        rb.NoiseMonitor(other, sgd(other)).load_state_dict(monitor.state_dict())
    with pytest.raises(ValueError, match="version 1, got 7"):
        monitor.load_state_dict(monitor.state_dict() | {"version": 7})


def test_every_measured_step_is_logged_once() -> None:
    model = net()
    optimizer = sgd(model)
    logged: list[tuple[str, float, int]] = []
    with rb.NoiseMonitor(model, optimizer, every=2) as monitor:
        for _ in range(12):
            train(model, optimizer, 1, monitor)
            monitor.log(lambda *entry: logged.append(entry))
    scales = [entry for entry in logged if entry[0] == "noise/trace_cov"]
    assert len(scales) == monitor.result().steps_measured == 6
    assert scales[-1][1] == monitor.result().trace_cov


class FakeWriter:
    """TensorBoard's SummaryWriter, as far as it is used."""

    def __init__(self) -> None:
        self.scalars: dict[str, tuple[float, int]] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars[tag] = (scalar_value, global_step)


def test_a_summary_writer_is_a_logger() -> None:
    monitor, _ = monitored(net())
    writer = FakeWriter()
    monitor.log(writer, step=77, prefix="x/")
    assert writer.scalars["x/grad_sq"] == (monitor.result().grad_sq, 77)


# Misuse.


def test_a_loop_without_observe_is_told() -> None:
    model = net()
    optimizer = sgd(model)
    with rb.NoiseMonitor(model, optimizer), pytest.raises(TaskError, match="got 3 optimizer steps"):
        train(model, optimizer, 3)


@pytest.mark.parametrize(
    ("option", "value"), [("budget", 0.0), ("budget", 1.0), ("every", 0), ("examples", 0)]
)
def test_odd_options_are_refused(option: str, value: float) -> None:
    model = net()
    with pytest.raises(ValueError, match=f"`{option}` must .* got {value!r}"):
        rb.NoiseMonitor(model, sgd(model), **{option: value})


@pytest.mark.parametrize(("units", "factor"), [(0, 1.0), (-3, 1.0), (4, 0.0), (float("nan"), 1.0)])
def test_odd_units_are_refused(units: float, factor: float) -> None:
    model = net()
    monitor = rb.NoiseMonitor(model, sgd(model))
    with pytest.raises(ValueError, match=f"got units={float(units)!r}, factor={factor!r}"):
        monitor.observe(units, factor=factor)


def test_nothing_measured_yet_is_a_status() -> None:
    model = net()
    noise = rb.NoiseMonitor(model, sgd(model)).result()
    assert noise.status is Status.NOT_YET
    assert (noise.noise_scale, noise.low, noise.high) == (None, 0.0, None)


def test_batch_norm_with_one_micro_batch_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = sgd(model)
    with (
        rb.NoiseMonitor(model, optimizer, every=1) as monitor,
        pytest.raises(MixesExamples, match="BatchNorm in train mode mixes them"),
    ):
        train(model, optimizer, 3, monitor, sizes=(6,))


def test_batch_norm_with_micro_batches_says_its_ghost_batch() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    monitor, _ = monitored(model, sizes=(6, 6))
    assert monitor.result().ghost_batch_size == 6


# One micro-batch on one rank.


def single_batches(steps: int, size: int = 12) -> list[Batch]:
    return [micro_batches[0] for micro_batches in batches(steps, (size,))]


def expected_from_first(model: nn.Module, batch: Batch, count: int) -> tuple[float, float]:
    """Solve the two equations with the mean gradient of the first examples as the small one."""
    size = len(batch[0])
    small = mean_gradient(model, (batch[0][:count], batch[1][:count])).square().sum()
    big = mean_gradient(model, batch).square().sum()
    gap = 1 / count - 1 / size
    return ((small - big) / gap).item(), ((big / count - small / size) / gap).item()


def mse(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


class Noisy(nn.Module):
    """Draws random numbers and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.dropout = net(), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.dropout(self.net(x))


def test_an_extra_pass_equals_its_definition_and_changes_nothing() -> None:
    results = []
    for loss in (None, mse):
        torch.manual_seed(5)
        model = Noisy()
        optimizer = sgd(model)
        options: dict[str, Any] = {} if loss is None else {"loss": loss, "examples": 4}
        monitor = rb.NoiseMonitor(model, optimizer, every=1, **options)
        if loss is not None:
            monitor.__enter__()
        for batch in single_batches(5):
            optimizer.zero_grad()
            mse(model, batch).backward()
            if loss is not None:
                monitor.observe(12, batch=batch)
            optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
        results[-1].append(torch.get_rng_state())
        results[-1].append(model.calls)
    assert monitor.result().small_gradients == "extra_pass"
    assert monitor.result().steps_measured == 4
    monitor.__exit__(None, None, None)
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_an_extra_pass_equals_the_two_equations() -> None:
    model = net()
    optimizer = sgd(model, lr=0.0)
    todo = single_batches(4)
    expected = [expected_from_first(model, batch, 5) for batch in todo[1:]]
    with rb.NoiseMonitor(
        model, optimizer, every=1, loss=mse, examples=5, half_life_examples=1e15
    ) as monitor:
        for batch in todo:
            optimizer.zero_grad()
            (mse(model, batch) * 0.25).backward()
            monitor.observe(12, factor=0.25, batch=batch)
            optimizer.step()
    assert averages(monitor) == pytest.approx(np.mean(expected, axis=0), rel=1e-9)


def test_an_extra_pass_without_a_batch_is_told() -> None:
    model = net()
    optimizer = sgd(model)
    with (
        rb.NoiseMonitor(model, optimizer, every=1, loss=mse) as monitor,
        pytest.raises(TaskError, match="must be given `batch=`"),
    ):
        train(model, optimizer, 3, monitor, sizes=(6,))


def expected_from_examples(
    model: nn.Module, batch: Batch, count: int, units: list[float] | None = None
) -> tuple[float, float]:
    """Solve the two equations with single examples as the small gradients."""
    size = len(batch[0])
    w = torch.tensor(units or [1.0] * size)
    each = torch.stack(
        [mean_gradient(model, (batch[0][i : i + 1], batch[1][i : i + 1])) for i in range(size)]
    )
    small = (w[:count] @ each[:count].square().sum(1)) / w[:count].sum()
    big = ((w / w.sum()) @ each).square().sum()
    s, m = count / w[:count].sum(), 1 / w.sum()
    per_example = w.mean()
    return (
        ((small - big) / (s - m) / per_example).item(),
        ((s * big - m * small) / (s - m)).item(),
    )


@pytest.mark.parametrize("examples", [1, 4, 12])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_single_examples_equal_their_definition(examples: int, factor: float) -> None:
    model = net()
    optimizer = sgd(model, lr=0.0)
    todo = single_batches(4)
    expected = [expected_from_examples(model, batch, examples) for batch in todo[1:]]
    with rb.NoiseMonitor(
        model, optimizer, every=1, examples=examples, half_life_examples=1e15
    ) as monitor:
        for batch in todo:
            optimizer.zero_grad()
            (mse(model, batch) * factor).backward()
            monitor.observe(12, factor=factor)
            optimizer.step()
    noise = monitor.result()
    assert noise.small_gradients == "examples"
    assert noise.coverage == 1.0
    assert noise.micro_batch_size == 1
    assert averages(monitor) == pytest.approx(np.mean(expected, axis=0), rel=1e-9)


def test_single_examples_weigh_by_their_own_tokens() -> None:
    model = net()
    optimizer = sgd(model, lr=0.0)
    units = [float(1 + i % 4) for i in range(12)]
    todo = single_batches(3)
    expected = [expected_from_examples(model, batch, 5, units) for batch in todo[1:]]
    with rb.NoiseMonitor(model, optimizer, every=1, examples=5, half_life_examples=1e15) as monitor:
        for inputs, targets in todo:
            optimizer.zero_grad()
            each = F.mse_loss(model(inputs), targets, reduction="none").mean(1)
            ((torch.tensor(units) @ each) / sum(units)).backward()
            monitor.observe(torch.tensor(units))
            optimizer.step()
    assert averages(monitor) == pytest.approx(np.mean(expected, axis=0), rel=1e-9)


def test_single_examples_need_tokens_of_each() -> None:
    model = net()
    optimizer = sgd(model)

    def run() -> None:
        with rb.NoiseMonitor(model, optimizer, every=1) as monitor:
            for batch in single_batches(2):
                mse(model, batch).backward()
                monitor.observe(40, examples=12)
                optimizer.step()

    with pytest.raises(TaskError, match="`units` must be given for each example"):
        run()


def test_single_examples_leave_training_as_it_was() -> None:
    results = []
    for watched in (False, True):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters())
        monitor = rb.NoiseMonitor(model, optimizer, every=1)
        if watched:
            monitor.__enter__()
        for batch in single_batches(8):
            optimizer.zero_grad()
            mse(model, batch).backward()
            if watched:
                monitor.observe(12)
            optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    monitor.__exit__(None, None, None)
    assert {g.geometry for g in monitor.result().geometries} == {"euclidean", "adam", "adam_sqrt"}
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


class Partly(nn.Module):
    """A recurrent layer, which has no rule, below one that has."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x[:, None])[0][:, 0])


def test_what_cannot_be_seen_is_left_out_and_named() -> None:
    model = Partly()
    optimizer = sgd(model)
    with rb.NoiseMonitor(model, optimizer, every=1) as monitor:
        for batch in single_batches(4):
            optimizer.zero_grad()
            mse(model, batch).backward()
            monitor.observe(12)
            optimizer.step()
    noise = monitor.result()
    assert noise.coverage == pytest.approx(10 / sum(p.numel() for p in model.parameters()))
    assert len(noise.uncovered) == 4
    assert all(name.startswith("recurrent.") for name in noise.uncovered)
    assert noise.trace_cov > 0


def test_a_compiled_model_with_one_micro_batch_is_told_what_to_do() -> None:
    model = net()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = sgd(model)

    def run() -> None:
        with rb.NoiseMonitor(compiled, optimizer, every=1) as monitor:
            for batch in single_batches(3):
                optimizer.zero_grad()
                mse(compiled, batch).backward()
                monitor.observe(12)
                optimizer.step()

    with pytest.raises(TaskError, match="Accumulate at least two micro-batches"):
        run()


@pytest.mark.parametrize("last", [3, 11])
def test_a_smaller_last_batch_does_not_spoil_the_average(last: int) -> None:
    model = net()
    optimizer = sgd(model, lr=0.0)
    todo = [*single_batches(3), *single_batches(1, last), *single_batches(2)]
    with rb.NoiseMonitor(model, optimizer, every=1, examples=4, half_life_examples=1e15) as monitor:
        for batch in todo:
            optimizer.zero_grad()
            mse(model, batch).backward()
            monitor.observe(len(batch[0]))
            optimizer.step()
    noise = monitor.result()
    assert noise.coverage == 1.0
    assert noise.steps_measured + noise.steps_skipped == len(todo) - 1
    assert noise.steps_measured >= 3
    assert noise.trace_cov > 0
