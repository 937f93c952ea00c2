"""What is remembered of a thing, by its kind, so that it can be put back in place.

container, variable, object  -->  what it referred to, by identity
array, generator             -->  its numbers, its state
tensor                       -->  memory, flags, gradient; its bytes on the host, once per storage
"""

import random
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import CellType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rightbatch.task.reachable import EMPTY, content, named, parts, slots_of
from rightbatch.task.storages import Restore, Span, spans_of

_LARGE_BYTES = 2**20  # a smaller frozen tensor is copied, whatever it is


def keep_references(thing: Any) -> Restore | None:
    """Remember what a container, a variable, a function or an object with slots refers to.

    Returns:
        What puts it back in place, or ``None`` where there is nothing to put back.

    Example:
        >>> numbers = [1, 2]
        >>> restore = keep_references(numbers)
        >>> numbers.append(3)
        >>> restore()
        >>> numbers
        [1, 2]
    """
    if isinstance(thing, dict):
        return _keep_dict(thing)
    if isinstance(thing, list):
        return _keep_filled(thing, list(thing), type(thing).extend)
    if isinstance(thing, set):
        return _keep_filled(thing, set(thing), type(thing).update)
    if isinstance(thing, deque):
        return _keep_filled(thing, list(thing), type(thing).extend)
    if isinstance(thing, CellType):
        return _keep_cell(thing)
    if isinstance(thing, FunctionType):
        return partial(thing.__globals__.update, named(thing))
    return _keep_slots(thing)


def keep_values(thing: Any) -> Restore | None:
    """Remember the numbers of an array, or the state of a random generator."""
    if isinstance(thing, np.ndarray):
        return _keep_array(thing)
    if isinstance(thing, torch.Generator):
        return _keep_generator(thing)
    if isinstance(thing, np.random.RandomState):
        return partial(thing.set_state, thing.get_state())
    if isinstance(thing, random.Random):
        return partial(thing.setstate, thing.getstate())
    if isinstance(thing, np.random.Generator):
        return partial(setattr, thing.bit_generator, "state", thing.bit_generator.state)
    return None


def keep_tensor(tensor: Tensor) -> Restore:
    """Remember the numbers of one tensor of any layout, and the memory that they are in."""
    alias = tensor.detach()  # the memory that it has now, should `.data` be assigned
    value = _written_once(alias).to("cpu", copy=True)

    def restore() -> None:
        if alias.layout is not torch.strided:
            tensor.copy_(value)  # a sparse alias shares the numbers, but not how many they are
            return
        if tensor.data_ptr() != alias.data_ptr():
            tensor.data = alias
        _written_once(alias).copy_(value)

    return restore


def keep_reached(
    things: Iterable[Any], *, own: Iterable[Tensor], data: Iterable[Tensor]
) -> list[Restore]:
    """Remember what a task's code reaches beside the model and the optimizer.

    Modules get all their attributes back; containers, variables and other objects what they
    referred to, if a tensor is or was among it. Counts, records and clocks apart from tensors go
    on: they may be anyone's, and to turn them back half-way would break what they belong to.

    A large parameter is not copied where it is a teacher's: of a module in eval mode, frozen, and
    with another number of elements than all of the model's, so that it is no average of any of it.
    Should one change in place all the same, a warning says that it is not put back.

    Args:
        things: As `reachable` yields them, without what is kept already.
        own: Tensors that are kept already, or never change: their memory is not copied again.
        data: Tensors of the data set, which nobody trains; their storages are not copied.
    """
    references: list[Restore] = []
    values: list[Restore] = []
    tensors: list[Tensor] = []
    things = list(things)
    modules = [thing for thing in things if isinstance(thing, nn.Module)]
    attributes = {id(vars(module)) for module in modules}
    for thing in things:
        if isinstance(thing, Tensor):
            # Those without numbers yet have nothing to be put back.
            if not (isinstance(thing, FakeTensor) or nn.parameter.is_lazy(thing)):
                tensors.append(thing)
            continue
        keep = keep_references if id(thing) in attributes else _keep_beside_tensors
        references += _if_any(keep(thing))
        values += _if_any(keep_values(thing))
    own = tuple(own)
    sizes = {tensor.numel() for tensor in (*own, *(t for t in tensors if t.requires_grad))}
    teachers = _teachers(modules, sizes)
    copied = [tensor for tensor in tensors if id(tensor) not in teachers]
    # Undone from the last to the first: bytes, then memory, then flags and gradients.
    return [
        *references,
        *values,
        *(partial(_check_unchanged, tensor, _version(tensor)) for tensor in teachers.values()),
        *map(_keep_flags, tensors),
        *map(_keep_memory, tensors),
        *(keep_tensor(tensor) for tensor in copied if tensor.is_sparse),
        *_keep_bytes([tensor for tensor in copied if not tensor.is_sparse], own, data),
    ]


def _keep_beside_tensors(thing: Any) -> Restore | None:
    """Remember what a thing refers to, for the case that a tensor is or was among it."""
    refer = keep_references(thing)
    if refer is None:
        return None
    held = _refers_to_tensor(thing)

    def restore() -> None:
        if held or _refers_to_tensor(thing):
            refer()

    return restore


def _refers_to_tensor(thing: Any) -> bool:
    """Whether a tensor is among what a thing refers to, itself or in a list or a tuple."""
    for part in parts(thing):
        inner = part if isinstance(part, list | tuple) else (part,)
        if any(isinstance(each, Tensor) for each in inner):
            return True
    return False


def _if_any(restore: Restore | None) -> list[Restore]:
    return [] if restore is None else [restore]


def _teachers(modules: Iterable[nn.Module], sizes: set[int]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for module in modules:
        attributes = vars(module)
        own = [p for p in (attributes.get("_parameters") or {}).values() if p is not None]
        if attributes.get("training", True) or any(p.requires_grad for p in own):
            continue
        large = (p for p in own if not nn.parameter.is_lazy(p) and p.nbytes >= _LARGE_BYTES)
        found.update({id(p): p for p in large if p.numel() not in sizes})
    return found


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _check_unchanged(tensor: Tensor, version: int) -> None:
    if _version(tensor) != version:
        warnings.warn(
            f"a frozen module in eval mode must not change in a step, got a parameter of shape "
            f"{tuple(tensor.shape)} that did. No copy is made of a teacher, so it is not as it was "
            "before: load it again, and put the module in train mode for measuring.",
            UserWarning,
            stacklevel=2,
        )


def _keep_bytes(
    tensors: list[Tensor], own: Iterable[Tensor], data: Iterable[Tensor]
) -> list[Restore]:
    spans = spans_of(tensors)
    for name in spans_of(data):
        spans.pop(name, None)
    for tensor in own if spans else ():
        for name, part in spans_of([tensor]).items():
            span = spans.get(name)
            if span is not None and _fills(tensor, part) and span.is_in(part):
                del spans[name]
    return [span.keep() for span in spans.values()]


def _fills(tensor: Tensor, span: Span) -> bool:
    """Whether a tensor leaves no gap in its part of a storage."""
    return tensor.layout is torch.strided and tensor.nbytes == span.end - span.start


def _keep_memory(tensor: Tensor) -> Restore:
    """Remember where a tensor looks for its numbers, should its ``.data`` be assigned."""
    if is_traceable_wrapper_subclass(tensor) or tensor.layout is not torch.strided:
        return lambda: None
    alias = tensor.detach()

    def restore() -> None:
        if _memory(tensor) != _memory(alias):
            tensor.data = alias

    return restore


def _memory(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _keep_flags(tensor: Tensor) -> Restore:
    if not tensor.is_leaf:
        return lambda: None
    requires_grad, grad = tensor.requires_grad, tensor.grad

    def restore() -> None:
        if tensor.requires_grad is not requires_grad:
            tensor.requires_grad_(requires_grad)
        if tensor.grad is not grad:
            tensor.grad = grad

    return restore


def _written_once(tensor: Tensor) -> Tensor:
    """Narrow expanded dimensions, whose many elements are one number in memory."""
    if tensor.layout is torch.strided:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if stride == 0 and size > 1:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _keep_array(array: np.ndarray[Any, Any]) -> Restore | None:
    if not array.flags.writeable:
        return None
    value = array.copy()

    def restore() -> None:
        if array.flags.writeable:
            array[...] = value

    return restore


def _keep_generator(generator: torch.Generator) -> Restore:
    state = generator.get_state()

    def restore() -> None:
        generator.set_state(state)

    return restore


def _keep_dict(mapping: dict[Any, Any]) -> Restore:
    saved = dict(mapping)
    identities = _identities(saved)

    def restore() -> None:
        if _identities(mapping) != identities:
            mapping.clear()
            mapping.update(saved)

    return restore


def _identities(mapping: dict[Any, Any]) -> list[tuple[int, int]]:
    return [(id(key), id(value)) for key, value in mapping.items()]


def _keep_filled(holder: Any, saved: Any, fill: Callable[[Any, Any], None]) -> Restore:
    def restore() -> None:
        if len(holder) != len(saved) or any(map(_differ, holder, saved)):
            holder.clear()
            fill(holder, saved)

    return restore


def _differ(one: object, other: object) -> bool:
    return one is not other


def _keep_cell(cell: CellType) -> Restore:
    before = content(cell)

    def restore() -> None:
        if before is not EMPTY:
            cell.cell_contents = before
        elif content(cell) is not EMPTY:
            del cell.cell_contents

    return restore


def _keep_slots(thing: Any) -> Restore | None:
    slots = slots_of(thing)
    if not slots:
        return None
    before = [_in_slot(slot, thing) for slot in slots]

    def restore() -> None:
        for slot, value in zip(slots, before, strict=True):
            now = _in_slot(slot, thing)
            if now is value:
                continue
            if value is EMPTY:
                slot.__delete__(thing)
            else:
                slot.__set__(thing, value)

    return restore


def _in_slot(slot: Any, thing: Any) -> Any:
    try:
        return slot.__get__(thing)
    except AttributeError:
        return EMPTY
