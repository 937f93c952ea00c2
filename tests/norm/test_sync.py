"""Statistics averaged over two gloo ranks, against closed forms on one process."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import rightbatch as rb
from rightbatch._comm import Alone
from tests.norm.definition import batch_of, randomised
from tests.ranks import on_two_ranks

SHARDS = [5, 9]  # examples per batch on each rank


def model_on(rank: int, *, momentum: float | None = 1.0) -> nn.Module:
    """Two kinds of layers, one shared, after one batch (momentum 1: its very statistics)."""
    norm = rb.GhostBatchNorm2d(3, 4, momentum=momentum)
    plain = nn.BatchNorm2d(3, momentum=momentum, affine=False)
    untracked = nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.Sequential(norm, plain, norm, untracked)
    norm(batch_of(2, SHARDS[rank], seed=rank))
    plain(batch_of(2, SHARDS[rank], seed=10 + rank))
    return model


def state_of(model: nn.Module) -> dict[str, list[float]]:
    return {name: buffer.double().flatten().tolist() for name, buffer in model.named_buffers()}


def synchronised(rank: int) -> dict[str, Any]:
    model = model_on(rank)
    state = torch.get_rng_state()
    rb.synchronize_batch_norm(model)
    return {"state": state_of(model), "random": torch.equal(state, torch.get_rng_state())}


def with_averages(rank: int) -> dict[str, Any]:
    """Buffers of the twin that are copied, and ones that are averaged over steps."""
    found = {}
    for use_buffers in (False, True):
        torch.manual_seed(0)  # the same weights on both
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        twin = AveragedModel(model, use_buffers=use_buffers)
        for step in range(3):
            model(batch_of(1, SHARDS[rank], seed=10 * step + rank))
            twin.update_parameters(model)
        own = state_of(twin)
        rb.synchronize_batch_norm(model, ema_model=twin)
        found[str(use_buffers)] = {"own": own, "twin": state_of(twin), "model": state_of(model)}
    return found


def uneven(rank: int) -> dict[str, Any]:
    """Rank 1 sees three batches and rank 0 one; cumulative averages; one layer is never used."""
    cumulative = rb.GhostBatchNorm1d(3, 4, momentum=None)
    fading = nn.BatchNorm1d(3)
    model = nn.Sequential(cumulative, fading, randomised(nn.BatchNorm1d(3)))
    for index in range(1 + 2 * rank):
        cumulative(batch_of(1, 6, seed=index + rank))
    if rank == 1:
        fading(batch_of(1, 6))
    own = state_of(model)
    rb.synchronize_batch_norm(model)
    return {"own": own, "state": state_of(model)}


def wrapped(rank: int) -> dict[str, Any]:
    """Half precision statistics, inside the wrapper that trains it."""
    model = nn.parallel.DistributedDataParallel(
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), broadcast_buffers=False
    )
    model(batch_of(1, 6, seed=rank))
    model.module[1].running_mean = model.module[1].running_mean.half()
    own = state_of(model)
    rb.synchronize_batch_norm(model)
    return {"own": own, "state": state_of(model)}


def everything(rank: int) -> dict[str, Any]:
    parts = (synchronised, with_averages, uneven, wrapped)
    return {part.__name__: part(rank) for part in parts}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return on_two_ranks(everything)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["synchronised", "uneven", "wrapped"])
def test_ranks_hold_the_same_bits(ranks: list[dict[str, Any]], part: str) -> None:
    assert ranks[0][part]["state"] == ranks[1][part]["state"]


@pytest.mark.slow
def test_statistics_are_averaged_and_variances_count_the_spread_between_ranks(
    ranks: list[dict[str, Any]],
) -> None:
    own = [state_of(model_on(rank)) for rank in range(2)]
    found = ranks[0]["synchronised"]["state"]
    for layer in ("0", "1"):
        means = torch.tensor([state[f"{layer}.running_mean"] for state in own])
        variances = torch.tensor([state[f"{layer}.running_var"] for state in own])
        assert found[f"{layer}.running_mean"] == pytest.approx(means.mean(0).tolist(), rel=1e-12)
        spread = means.var(0, correction=0)
        assert spread.min() > 1e-6  # of which the plain average of variances would know nothing
        expected = (variances.mean(0) + spread).tolist()
        assert found[f"{layer}.running_var"] == pytest.approx(expected, rel=1e-12)
        assert found[f"{layer}.num_batches_tracked"] == [1.0]


@pytest.mark.slow
def test_no_random_state_is_touched(ranks: list[dict[str, Any]]) -> None:
    assert all(found["synchronised"]["random"] for found in ranks)


@pytest.mark.slow
@pytest.mark.parametrize("use_buffers", ["False", "True"])
def test_the_averaged_twin_is_averaged_over_ranks_too(
    ranks: list[dict[str, Any]], use_buffers: str
) -> None:
    first, second = (found["with_averages"][use_buffers] for found in ranks)
    assert first["twin"] == second["twin"]
    means = torch.tensor([part["own"]["module.1.running_mean"] for part in (first, second)])
    assert not torch.equal(means[0], means[1])
    expected = means.mean(0).tolist()
    assert first["twin"]["module.1.running_mean"] == pytest.approx(expected, rel=1e-12)
    if use_buffers == "False":  # copied at each update, so that they are the model's
        assert first["twin"]["module.1.running_var"] == first["model"]["1.running_var"]


@pytest.mark.slow
def test_a_rank_that_has_seen_nothing_does_not_count(ranks: list[dict[str, Any]]) -> None:
    own, state = ranks[1]["uneven"]["own"], ranks[0]["uneven"]["state"]
    assert ranks[0]["uneven"]["own"]["1.num_batches_tracked"] == [0.0]
    assert state["1.running_mean"] == pytest.approx(own["1.running_mean"], rel=1e-14)
    assert state["1.running_var"] == pytest.approx(own["1.running_var"], rel=1e-14)


@pytest.mark.slow
def test_layers_that_no_rank_has_used_stay(ranks: list[dict[str, Any]]) -> None:
    found = ranks[0]["uneven"]
    names = [name for name in found["own"] if name.startswith("2.")]
    assert len(names) == 3
    unused = randomised(nn.BatchNorm1d(3))
    assert found["state"]["2.running_var"] == unused.running_var.tolist()


@pytest.mark.slow
def test_cumulative_averages_weigh_by_their_batches(ranks: list[dict[str, Any]]) -> None:
    """Four batches of equal size in all: the average of their four means."""
    own = [found["uneven"]["own"]["0.running_mean"] for found in ranks]
    expected = [(a + 3 * b) / 4 for a, b in zip(*own, strict=True)]
    state = ranks[0]["uneven"]["state"]
    assert state["0.running_mean"] == pytest.approx(expected, rel=1e-12)
    assert state["0.num_batches_tracked"] == [2.0]


@pytest.mark.slow
def test_a_wrapped_model_with_statistics_of_two_types(ranks: list[dict[str, Any]]) -> None:
    own = [found["wrapped"]["own"]["module.1.running_mean"] for found in ranks]
    expected = torch.tensor(own).mean(0).half().tolist()
    assert ranks[0]["wrapped"]["state"]["module.1.running_mean"] == expected


@pytest.mark.parametrize("comm", [None, Alone()], ids=["default", "named"])
def test_one_process_changes_nothing(comm: Alone | None) -> None:
    model = model_on(0)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    rb.synchronize_batch_norm(model, comm=comm)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


class Counting:
    """Two ranks of which the other one always holds the same: the sums are doubles."""

    rank = 0
    world_size = 2

    def __init__(self) -> None:
        self.rounds = 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.rounds += 1
        return 2 * values


def test_all_layers_travel_together_and_equal_ranks_stay_as_they_are() -> None:
    comm, model = Counting(), model_on(0)
    before = state_of(model)
    rb.synchronize_batch_norm(model, comm=comm)
    assert comm.rounds == 2
    for name, values in state_of(model).items():
        assert values == pytest.approx(before[name], rel=1e-14)


class BesideUnseen:
    """Two ranks of which the other one has seen no batch: it adds nothing to the sums."""

    rank = 0
    world_size = 2

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values.clone()


def test_a_number_of_batches_between_two_is_rounded() -> None:
    norm = nn.BatchNorm1d(3)
    for seed in range(3):
        norm(batch_of(1, 6, seed=seed))
    mean = norm.running_mean.clone()
    rb.synchronize_batch_norm(norm, comm=BesideUnseen())
    assert norm.num_batches_tracked == 2  # of 3 and 0
    assert torch.equal(norm.running_mean, mean)


def test_lazy_layers_have_nothing_to_say_yet() -> None:
    comm = Counting()
    rb.synchronize_batch_norm(nn.LazyBatchNorm1d(), comm=comm)
    assert comm.rounds == 0


def test_a_model_without_statistics_says_nothing_to_others() -> None:
    comm = Counting()
    rb.synchronize_batch_norm(nn.BatchNorm1d(3, track_running_stats=False), comm=comm)
    assert comm.rounds == 0
