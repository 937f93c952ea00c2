"""Two ranks with uneven shards against one process on the union of their micro-batches."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import rightbatch as rb
from tests.ranks import on_two_ranks

STEPS = 5
SHARDS = ((5, 2, 3), (1, 4, 6))  # micro-batches of each rank


class Odd(nn.Module):
    """Two layers share a weight, one is frozen in part, and they are computed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))  # of the root, which owns no layer
        self.first, self.second, self.third = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.third.weight = self.second.weight
        self.third.bias.requires_grad_(False)
        self.last = nn.Linear(5, 2)

    def _middle(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.third(torch.tanh(self.second(hidden))))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs) * self.scale
        return self.last(checkpoint(self._middle, hidden, use_reentrant=False))


def net(kind: str) -> nn.Module:
    torch.manual_seed(1)
    if kind.endswith("odd"):
        return Odd()
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def shard(rank: int, sizes: tuple[int, ...], step: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return [
        (torch.randn(n, 3, generator=generator), torch.randn(n, 2, generator=generator))
        for n in sizes
    ]


def wrapped(kind: str, model: nn.Module) -> nn.Module:
    if kind in {"ddp", "ddp odd"}:
        return nn.parallel.DistributedDataParallel(model)
    if kind == "ddp compiled":
        compiled: Any = torch.compile(
            nn.parallel.DistributedDataParallel(model), backend="aot_eager"
        )
        return compiled
    if kind == "ddp_views":
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for module in model.modules():
        if isinstance(module, nn.Linear) and kind != "fsdp odd":  # one group holds shared weights
            fully_shard(module, mesh=mesh, reshard_after_forward=kind != "fsdp_kept")
    fully_shard(model, mesh=mesh)
    return model


def unsynchronised(model: nn.Module, *, last: bool) -> Any:
    """Reduce gradients in the last backward pass only."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else model.no_sync()
    model.set_requires_gradient_sync(last)  # pyright: ignore[reportCallIssue]
    return nullcontext()


def train(
    model: nn.Module, optimizer: Any, monitor: Any, work: list[Any], *, no_sync: bool
) -> None:
    """One step; each micro-batch's mean loss counts by its examples over all of 21."""
    optimizer.zero_grad()
    for index, (inputs, targets, factor) in enumerate(work):
        last = index == len(work) - 1
        with unsynchronised(model, last=last) if no_sync else nullcontext():
            (F.mse_loss(model(inputs), targets) * factor).backward()
        monitor.observe(len(inputs), factor=factor)
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()


def numbers(noise: rb.NoiseScale) -> dict[str, Any]:
    return {
        "parts": [noise.trace_cov, noise.grad_sq, noise.low],
        "layers": [[x.trace_cov, x.grad_sq] for x in noise.layers],
        "names": [x.layer for x in noise.layers],
        "examples": [noise.examples_used, noise.micro_batch_size],
        "measured": noise.steps_measured,
        "source": noise.small_gradients,
    }


def on_a_rank(rank: int, kind: str, no_sync: bool, sizes: Any, poison: bool) -> dict[str, Any]:
    model = wrapped(kind, net(kind))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    total = sum(map(sum, sizes))
    with rb.NoiseMonitor(model, optimizer, every=1, half_life_examples=1e15) as monitor:
        for step in range(STEPS):
            # Ranks' gradients are averaged: twice the share makes the sum over ranks a mean.
            work = [(x, y, 2 * len(x) / total) for x, y in shard(rank, sizes[rank], step)]
            if poison and step == 2 and rank == 1:
                work[0][0][0, 0] = torch.nan
            train(model, optimizer, monitor, work, no_sync=no_sync)
            if poison and step == 2:
                optimizer.state.clear()
                with torch.no_grad():
                    for p in model.parameters():
                        p.fill_(0.1)
    noise = monitor.result()
    return numbers(noise) | {"skipped": noise.steps_skipped}


def alone(sizes: Any, kind: str = "") -> dict[str, Any]:
    model = net(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    total = sum(map(sum, sizes))
    with rb.NoiseMonitor(model, optimizer, every=1, half_life_examples=1e15) as monitor:
        for step in range(STEPS):
            union = [b for rank in range(2) for b in shard(rank, sizes[rank], step)]
            work = [(x, y, len(x) / total) for x, y in union]
            train(model, optimizer, monitor, work, no_sync=False)
    return numbers(monitor.result())


KINDS = ["ddp", "ddp_views", "fsdp", "fsdp_kept"]
ODD_KINDS = ["ddp odd", "fsdp odd", "ddp compiled"]
ONE_EACH = ((5,), (2,))


def all_cases(rank: int) -> dict[str, Any]:
    """Everything in one group: starting two processes takes longer than all of it."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        for no_sync in (False, True):
            found[f"{kind} {no_sync}"] = on_a_rank(rank, kind, no_sync, SHARDS, False)
        found[f"{kind} one"] = on_a_rank(rank, kind, False, ONE_EACH, False)
        found[f"{kind} poison"] = on_a_rank(rank, kind, False, SHARDS, True)
    for kind in ODD_KINDS:
        found[kind] = on_a_rank(rank, kind, False, SHARDS, False)
    return found


@pytest.fixture(scope="module")
def cases() -> dict[str, tuple[Any, Any]]:
    first, second = on_two_ranks(all_cases)
    return {name: (first[name], second[name]) for name in first}


Cases = dict[str, tuple[Any, Any]]


@pytest.mark.slow
@pytest.mark.parametrize("no_sync", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process_on_the_union(cases: Cases, kind: str, no_sync: bool) -> None:
    expected = alone(SHARDS)
    first, second = cases[f"{kind} {no_sync}"]
    assert first == second
    assert (first["source"], expected["source"]) == ("ranks", "micro_batches")
    assert first["measured"] == expected["measured"] == STEPS - 1
    assert first["names"] == expected["names"] == ["0", "2"]
    assert first["examples"] == expected["examples"]
    assert first["parts"] == pytest.approx(expected["parts"], rel=1e-9)
    for found, layer in zip(first["layers"], expected["layers"], strict=True):
        assert found == pytest.approx(layer, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD_KINDS)
def test_odd_set_ups_equal_one_process_too(cases: Cases, kind: str) -> None:
    """Shared weights, parameters of the root, frozen ones, checkpoints, a compiled model."""
    expected = alone(SHARDS, kind)
    first, second = cases[kind]
    assert first == second
    assert (first["source"], first["measured"]) == ("ranks", STEPS - 1)
    assert first["parts"] == pytest.approx(expected["parts"], rel=1e-9)
    for found, layer in zip(first["layers"], expected["layers"], strict=True):
        assert found == pytest.approx(layer, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_micro_batch_on_each_rank_is_enough(cases: Cases, kind: str) -> None:
    assert cases[f"{kind} one"][0]["parts"] == pytest.approx(alone(ONE_EACH)["parts"], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_on_one_rank_skips_the_step_on_all(cases: Cases, kind: str) -> None:
    first, second = cases[f"{kind} poison"]
    assert first == second
    assert (first["measured"], first["skipped"]) == (STEPS - 2, 1)
