"""Batches of any size, made from two small ones: shapes only, no numbers."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

SIZES = (2, 3)  # examples of the two small batches


def resized(two: Any, three: Any, size: int) -> Any:
    """Make a batch like two small ones, with as many examples as asked for, in empty tensors.

    Every dimension that differs between both grows by their difference per example, so several
    rows for an example are followed too. A list with an item for each example gets more items.

    Args:
        two: A batch of 2 examples: tensors in tuples, lists, mappings and dataclasses.
        three: A batch of 3 examples, alike but for its size.
        size: Examples.

    Raises:
        ValueError: If the batches are not alike, or nothing in them grows.

    Example:
        >>> two, three = ({"x": torch.zeros(n, 5), "rows": torch.zeros(4 * n)} for n in (2, 3))
        >>> {name: tuple(part.shape) for name, part in resized(two, three, 7).items()}
        {'x': (7, 5), 'rows': (28,)}
    """
    batch = _resized(two, three, size)
    shapes = [[tensor.shape for tensor in tensors_in(part)] for part in (two, three)]
    if shapes[0] == shapes[1]:
        raise ValueError("a batch of 3 examples has the shapes of one of 2: nothing grows")
    return batch


def _resized(two: Any, three: Any, size: int) -> Any:
    if type(two) is not type(three):
        raise ValueError(f"batches of 2 and 3 examples hold {type(two)} and {type(three)}")
    if isinstance(two, Tensor):
        shape = [a + (b - a) * (size - 2) for a, b in zip(two.shape, three.shape, strict=True)]
        return torch.empty(shape, dtype=two.dtype)
    if isinstance(two, list | tuple) and len(two) != len(three):
        return type(two)(_resized(two[0], two[0], size) for _ in range(size))
    return _rebuilt(two, lambda key, part: _resized(part, _part(three, key), size))


def check_alike(batches: Sequence[Any]) -> None:
    """Refuse batches of one size whose shapes differ from draw to draw.

    What differs between a batch of 2 and one of 3 would then not be what an example adds.

    Args:
        batches: Drawn independently, all of one size.

    Raises:
        ValueError: If two of them differ.

    Example:
        >>> check_alike([torch.zeros(2, 24), torch.zeros(2, 24)])
    """
    first, *others = ([tuple(tensor.shape) for tensor in tensors_in(batch)] for batch in batches)
    for other in others:
        if other != first:
            raise ValueError(
                f"batches of one size must have one shape, got {first[:5]} and then {other[:5]}"
            )


def own_copy(thing: Any) -> Any:
    """Copy the tensors of an example or a batch, each to memory of its own.

    A row of a large tensor refers to all of it, and whoever pickles or copies the row takes all.

    Example:
        >>> row = torch.zeros(1000, 3)[5]
        >>> row.untyped_storage().nbytes(), own_copy(row).untyped_storage().nbytes()
        (12000, 12)
    """
    if isinstance(thing, Tensor):
        return thing.detach().clone()
    return _rebuilt(thing, lambda key, part: own_copy(part))


def _rebuilt(whole: Any, change: Callable[[Any, Any], Any]) -> Any:
    """Make the same container with each part changed; other things are kept as they are."""
    if isinstance(whole, MutableMapping):
        made = copy.copy(whole)
        made.update({key: change(key, part) for key, part in whole.items()})
        return made
    if dataclasses.is_dataclass(whole) and not isinstance(whole, type):
        names = [field.name for field in dataclasses.fields(whole) if field.init]
        parts = {name: change(name, getattr(whole, name)) for name in names}
        return dataclasses.replace(whole, **parts)
    if isinstance(whole, list | tuple):
        parts = [change(index, part) for index, part in enumerate(whole)]
        return type(whole)(*parts) if hasattr(whole, "_fields") else type(whole)(parts)
    return whole


def _part(whole: Any, key: Any) -> Any:
    return getattr(whole, key) if dataclasses.is_dataclass(whole) else whole[key]


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, in order."""
    found: list[Tensor] = []

    def note(key: Any, part: Any) -> Any:
        if isinstance(part, Tensor):
            found.append(part)
        return part if isinstance(part, Tensor) else _rebuilt(part, note)

    note(None, batch)
    return iter(found)
