"""What is still alive after a step, and whether it is more after every one of them."""

import gc
from contextlib import suppress

from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rightbatch.task.storages import stored_parts


def tensor_bytes() -> int:
    """Count the bytes of all tensors that Python knows, each storage once.

    Tensors without numbers take no memory, and the tensors that another one wraps are known by
    themselves.

    Example:
        >>> import torch
        >>> before = tensor_bytes()
        >>> block = torch.zeros(1000, dtype=torch.uint8)
        >>> views = block[:500], block[500:]
        >>> tensor_bytes() - before
        1000
    """
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        # By its type alone: a proxy of some library may do anything when it is asked.
        if issubclass(type(thing), Tensor) and _has_memory(thing):
            with suppress(RuntimeError, NotImplementedError):  # of a kind that has no storage
                for part in stored_parts(thing):
                    storage = part.untyped_storage()
                    sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


def _has_memory(tensor: Tensor) -> bool:
    return not (
        nn.parameter.is_lazy(tensor)
        or is_traceable_wrapper_subclass(tensor)
        or is_fake(tensor)
        or tensor.is_meta
    )
