"""Who else trains this model: nobody, or a group of ranks.

The only file that imports ``torch.distributed``. Everything else is written once, for a `Comm`.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch import distributed as dist

_FROM_DEVICE = {"nccl": "cuda", "xccl": "xpu"}  # backends that cannot send from the host


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

    def average_(self, values: Tensor) -> None:
        """Average over ranks in place, in any order of adding; every rank must call it."""
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

    def average_(self, values: Tensor) -> None:
        """Leave the values."""


@final
class Group:
    """A process group.

    Args:
        process_group: Which; ``None``: all ranks.
        device: This rank's, from which numbers of the host are sent where NCCL sends; by default
            the group's or else the current one, which is the first on all ranks that did not say.
    """

    def __init__(
        self,
        process_group: "dist.ProcessGroup | None" = None,
        device: torch.device | None = None,
    ) -> None:
        self._group, self._device = process_group, device
        self.rank = dist.get_rank(process_group)
        self.world_size = dist.get_world_size(process_group)

    def sum(self, values: Tensor) -> Tensor:
        """Add up over ranks, in their order, so that every rank gets the same bits.

        A reduction may add in another order on each rank; decisions would then differ.
        """
        device = values.device
        values = values.to(self._sends_from(device))
        gathered = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(gathered, values.contiguous(), group=self._group)
        return torch.stack(gathered).sum(0).to(device)

    def _sends_from(self, device: torch.device) -> torch.device:
        backend = dist.get_backend(self._group)
        kind = next((kind for name, kind in _FROM_DEVICE.items() if name in backend), None)
        if kind is None or device.type != "cpu" or "cpu:" in backend:
            return device
        if self._device is not None and self._device.type == kind:
            return self._device
        bound = getattr(self._group or dist.group.WORLD, "bound_device_id", None)
        return bound or torch.device(kind)

    def average_(self, values: Tensor) -> None:
        """Average in place by an all-reduce, as data-parallel training averages gradients."""
        dist.all_reduce(values, group=self._group)
        values /= self.world_size


def default_comm(device: torch.device | None = None) -> Comm:
    """Return the process group that is initialised, if it has more than one rank.

    Args:
        device: This rank's, as `Group` takes it.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return Group(device=device)
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
        # Some launchers show each rank a device of its own alone.
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield default_comm()
        dist.barrier()  # nobody leaves while another may still be talking
    finally:
        gc.collect()  # a wrapped model that still refers to the group would outlive it
        dist.destroy_process_group()


@contextmanager
def gradients_apart(model: nn.Module) -> Iterator[bool]:
    """Let no rank wait for another's gradients or buffers, for the time of a ``with`` block.

    Yields:
        Whether the model averages gradients otherwise: whether it is wrapped for data-parallel
        training, or a part of it is.
    """
    wrapped = [m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)]
    with ExitStack() as stack:
        for module in wrapped:
            stack.enter_context(module.no_sync())
            own = module.require_forward_param_sync
            stack.callback(setattr, module, "require_forward_param_sync", own)
            module.require_forward_param_sync = False  # or its first forward pass sends buffers
        yield bool(wrapped)


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
            return Group(module.process_group, next(module.parameters()).device)
    sharded = next((part for part in model.parameters() if is_sharded(part)), None)
    if sharded is not None:
        return default_comm(sharded.device)
    return Alone()
