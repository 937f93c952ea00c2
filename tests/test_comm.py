"""The ranks. Oracle: sums that can be done by hand, on two real processes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from rightbatch._comm import (
    Alone,
    Group,
    comm_for,
    default_comm,
    is_sharded,
    launched_group,
    local_part,
)
from tests.ranks import on_two_ranks


def test_alone_is_a_group_of_one() -> None:
    comm = default_comm()
    assert isinstance(comm, Alone)
    assert (comm.rank, comm.world_size) == (0, 1)
    values = torch.tensor([1.0, 2.0])
    assert comm.sum(values) is values
    assert not is_sharded(values)
    assert local_part(values) is values
    assert isinstance(comm_for(nn.Linear(1, 1)), Alone)


def sums(rank: int) -> dict[str, Any]:
    comm = default_comm()
    mine = torch.tensor([1.0 + rank, 10.0 * rank])
    total = comm.sum(mine)
    model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))
    return {
        "kind": type(comm).__name__,
        "rank": comm.rank,
        "world_size": comm.world_size,
        "total": total.tolist(),
        "mine": mine.tolist(),
        "ddp": isinstance(comm_for(model), Group),
        "compiled": isinstance(comm_for(torch.compile(model)), Group),  # pyright: ignore
        "independent": isinstance(comm_for(nn.Linear(1, 1)), Alone),
    }


@pytest.mark.slow
def test_two_ranks_add_up() -> None:
    for rank, found in enumerate(on_two_ranks(sums)):
        assert found == {
            "kind": "Group",
            "rank": rank,
            "world_size": 2,
            "total": [3.0, 10.0],
            "mine": [1.0 + rank, 10.0 * rank],  # not changed in place
            "ddp": True,
            "compiled": True,
            "independent": True,
        }


CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda"), torch.device("cuda:1")


@pytest.mark.parametrize(
    ("backend", "group_s", "rank_s", "values", "place"),
    [
        ("nccl", None, SECOND, CPU, SECOND),  # whatever device is the current one
        ("nccl", SECOND, None, CPU, SECOND),
        ("nccl", None, None, CPU, FIRST),
        ("nccl", None, CPU, CPU, FIRST),
        ("nccl", None, SECOND, torch.device("cuda:3"), torch.device("cuda:3")),
        ("cuda:nccl", None, SECOND, CPU, SECOND),
        ("cpu:gloo,cuda:nccl", None, SECOND, CPU, CPU),
        ("gloo", None, SECOND, CPU, CPU),
        ("undefined", None, SECOND, CPU, CPU),
        ("xccl", None, None, CPU, torch.device("xpu")),
    ],
)
def test_numbers_of_the_host_are_sent_from_this_rank_s_device(
    backend: str,
    group_s: torch.device | None,
    rank_s: torch.device | None,
    values: torch.device,
    place: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group: Any = SimpleNamespace(bound_device_id=group_s)
    monkeypatch.setattr(dist, "get_rank", lambda group: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "get_backend", lambda group: backend)
    assert Group(group, rank_s)._sends_from(values) == place


@pytest.mark.parametrize(("devices", "chosen"), [(8, 3), (1, 0)])
def test_a_launched_rank_takes_a_device_that_it_sees(
    devices: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "8"), ("RANK", "3"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    seen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(dist, "init_process_group", seen.append)
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with launched_group():
        assert seen == [chosen, "nccl"]


def fails(rank: int) -> None:
    default_comm().sum(torch.ones(1))  # both are there
    if rank == 1:
        raise RuntimeError("on purpose")


@pytest.mark.slow
def test_a_rank_that_fails_fails_the_test() -> None:
    # Whose error arrives first is chance: the other rank sees that its peer is gone.
    with pytest.raises(ProcessRaisedException, match=r"(?s)terminated.*(on purpose|peer)"):
        on_two_ranks(fails)
