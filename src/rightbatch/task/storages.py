"""The memory that tensors' numbers are in: which part of which storage, copied once and put back.

Bytes and not numbers: whatever the strides, the dtype and the views, what is put back is what was
there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Restore = Callable[[], None]


@final
@dataclass(frozen=True, slots=True)
class Span:
    """A part of a storage."""

    storage: torch.UntypedStorage
    start: int  # bytes
    end: int

    @property
    def name(self) -> int:
        """What two spans of one storage share."""
        return self.storage._cdata

    def joined(self, other: "Span") -> "Span":
        """Return the part from the first byte of either to the last of either."""
        return Span(self.storage, min(self.start, other.start), max(self.end, other.end))

    def is_in(self, other: "Span") -> bool:
        """Whether this part lies within another of the same storage."""
        return other.start <= self.start and self.end <= other.end

    def keep(self) -> Restore:
        """Copy the bytes to the host; return what puts them back."""
        value = self._bytes().to("cpu", copy=True)

        def restore() -> None:
            self._bytes().copy_(value)

        return restore

    def _bytes(self) -> Tensor:
        # Made anew at every use: a storage that was emptied meanwhile gets its size back.
        view: Any = torch.empty(0, dtype=torch.uint8, device=self.storage.device)
        return view.set_(self.storage, self.start, (self.end - self.start,))


def spans_of(tensors: Iterable[Tensor]) -> dict[int, Span]:
    """Find the memory that tensors' numbers are in, each storage once.

    Left out are tensors without memory (on the device "meta", empty) and layouts of one library.

    Example:
        >>> row = torch.zeros(2, 3)[1]
        >>> [(span.start, span.end) for span in spans_of([row, row[1:]]).values()]
        [(12, 24)]
    """
    spans: dict[int, Span] = {}
    for tensor in tensors:
        for part in stored_parts(tensor):
            if part.numel() == 0 or part.device.type == "meta":
                continue
            ends = zip(part.shape, part.stride(), strict=True)
            first, size = int(part.storage_offset()), part.element_size()
            last = first + sum((length - 1) * stride for length, stride in ends)
            span = Span(part.untyped_storage(), first * size, (last + 1) * size)
            known = spans.get(span.name)
            spans[span.name] = span if known is None else span.joined(known)
    return spans


def stored_parts(tensor: Tensor) -> list[Tensor]:
    """List the plain tensors, each in a storage of its own, that a tensor's numbers are in.

    Example:
        >>> [part.numel() for part in stored_parts(torch.eye(3).to_sparse())]
        [6, 3]
    """
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in stored_parts(getattr(tensor, name))]
    if tensor.layout is torch.strided:
        return [tensor]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []  # a layout of one library alone, whose bytes it does not tell
