"""How many bytes of tensors are alive, counted operation by operation; exact, and free of a device.

`torch.distributed._tools.mem_tracker.MemTracker` counts the same and attributes it to modules, but
for that it refuses a module that is called twice in one step (gradient accumulation, Siamese and
recurrent networks). Here only the total is wanted. Tests hold the two equal where both work.
"""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from rightbatch.task.storages import stored_parts


@final
class LiveBytes(TorchDispatchMode):
    """Count the storages that operations under this mode create, for as long as they live.

    What a kernel allocates and frees inside one operation is not seen: workspaces of a library,
    and what an allocator holds beyond what it was asked for.

    Args:
        tensors: Alive already, and to be counted: parameters, buffers, a data set.
        uncounted: Alive already, and not to be counted, nor any view of them.
        granularity: A storage takes a whole multiple of so many bytes; CUDA's allocator has 512.

    Example:
        >>> with LiveBytes() as alive:
        ...     a = torch.zeros(1000)  # 4,000 bytes
        ...     b = a + 1  # as many again
        ...     del a, b
        ...     c = torch.zeros(10)
        >>> alive.peak_bytes, alive.bytes
        (8000, 40)
    """

    def __init__(
        self,
        tensors: Iterable[Tensor] = (),
        *,
        uncounted: Iterable[Tensor] = (),
        granularity: int = 1,
    ) -> None:
        super().__init__()
        self.bytes, self.peak_bytes = 0, 0
        self._granularity = granularity
        self._sizes = WeakIdKeyDictionary()
        for tensor in uncounted:
            for part in stored_parts(tensor):
                self._sizes[part.untyped_storage()] = None
        for tensor in tensors:
            for part in stored_parts(tensor):
                self._see(part)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count what it returns."""
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return found

    def let_go(self, tensors: Iterable[Tensor]) -> None:
        """Count some tensors no more, until an operation returns one of them again.

        For what a prediction puts back afterwards, and which a real run would have dropped.
        """
        for tensor in tensors:
            for part in stored_parts(tensor):
                counted = self._sizes.get(part.untyped_storage())
                if counted:
                    self._drop(counted)

    def _see(self, tensor: Tensor) -> None:
        if is_traceable_wrapper_subclass(tensor):
            return  # the tensors that it wraps are seen by themselves
        if tensor.layout is not torch.strided:
            for part in stored_parts(tensor):
                self._see(part)
            return
        storage = tensor.untyped_storage()
        size = -(-storage.nbytes() // self._granularity) * self._granularity
        counted = self._sizes.get(storage, [])
        if counted is None:
            return
        if not counted:
            counted = self._sizes[storage] = [0]
            weakref.finalize(storage, self._drop, counted)
        self.bytes += size - counted[0]  # a storage may be resized
        counted[0] = size
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def _drop(self, counted: list[int]) -> None:
        self.bytes -= counted[0]
        counted[0] = 0
