"""Who else trains this model: nobody, or a group of ranks.

The only file that imports ``torch.distributed``. Everything else is written once, for a `Comm`.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch import distributed as dist


class Comm(Protocol):
    """The ranks that train one model together."""

    @property
    def rank(self) -> int:
        """This one, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """How many there are."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Add up over ranks; every rank must call it, and gets the same."""
        ...


@final
class Alone:
    """One rank: nothing to add up.

    Example:
        >>> Alone().sum(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    rank = 0
    world_size = 1

    def sum(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values


@final
class Group:
    """A process group.

    Args:
        process_group: Which; ``None``: all ranks.
    """

    def __init__(self, process_group: "dist.ProcessGroup | None" = None) -> None:
        self._group = process_group
        self.rank = dist.get_rank(process_group)
        self.world_size = dist.get_world_size(process_group)

    def sum(self, values: Tensor) -> Tensor:
        """Add up over ranks, in their order, so that every rank gets the same bits.

        A reduction may add in another order on each rank; decisions would then differ.
        """
        device = values.device
        if dist.get_backend(self._group) == "nccl" and device.type == "cpu":
            values = values.to("cuda")  # where alone NCCL can send from
        gathered = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(gathered, values.contiguous(), group=self._group)
        return torch.stack(gathered).sum(0).to(device)


def default_comm() -> Comm:
    """Return the process group that is initialised, if it has more than one rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return Group()
    return Alone()


@contextmanager
def launched_group() -> Iterator[Comm]:
    """Join the ranks that ``torchrun`` started, for the time of a ``with`` block.

    Yields:
        The group; `Alone` where there is no other rank. A group that exists is left as it is.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if not several or not dist.is_available() or dist.is_initialized():
        yield default_comm()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield default_comm()
        dist.barrier()  # nobody leaves while another may still be talking
    finally:
        gc.collect()  # a wrapped model that still refers to the group would outlive it
        dist.destroy_process_group()


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over ranks, as `fully_shard` leaves parameters."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def comm_for(model: nn.Module) -> Comm:
    """Return the ranks that train a model: a group where its gradients are averaged over one.

    A compiled model holds its data-parallel wrapper as a part.
    """
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return Group(module.process_group)
    if any(is_sharded(parameter) for parameter in model.parameters()):
        return default_comm()
    return Alone()
