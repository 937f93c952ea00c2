"""The ranks. Oracle: sums that can be done by hand, on two real processes."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from rightbatch._comm import Alone, Group, comm_for, default_comm, is_sharded, local_part
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


def fails(rank: int) -> None:
    default_comm().sum(torch.ones(1))  # both are there
    if rank == 1:
        raise RuntimeError("on purpose")


@pytest.mark.slow
def test_a_rank_that_fails_fails_the_test() -> None:
    # Whose error arrives first is chance: the other rank sees that its peer is gone.
    with pytest.raises(ProcessRaisedException, match=r"(?s)terminated.*(on purpose|peer)"):
        on_two_ranks(fails)
