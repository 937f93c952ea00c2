"""Where the examples of a batch are, whatever structure carries them: counting, cutting, joining.

What the example dimension of a batch is:

    tensor, array               its first dimension; without dimensions it holds for the whole batch
    text, number, None, enum    holds for the whole batch
    dict, dataclass, namedtuple columns, which must agree on the number of examples
    list or tuple
      of texts and numbers      one entry per example
      of anything else          columns, which must agree (two inputs of a model); or one entry per
                                example, of one kind and any shape (boxes of each image): whichever
                                the rest of the batch agrees with
      outermost, with a tensor  columns, as every collate function writes them
      of dicts, both possible   one entry per example: detection targets
      marked as `PerExample`    one entry per example

Nothing else is guessed: a batch that has no reading, or two, is refused. So a tensor of one row
where the others have more is refused, and a table of constants too: keep such in the model.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from enum import Enum
from numbers import Number
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

_SCALARS = (str, bytes, Number, np.generic, Enum, torch.Size, torch.dtype, torch.device)

_Slices = Sequence[slice]


@final
class PerExample(list[Any]):
    """A list of one entry per example, even where its entries could be taken for columns.

    Three images of three rows each look like three columns of three examples. Let `collate_fn`
    return them in this, and nothing has to be guessed.

    Example:
        >>> Collated((PerExample([torch.ones(2), torch.ones(2)]), torch.tensor([3, 4]))).cut(1, 2)
        ([tensor([1., 1.])], tensor([4]))
    """


@final
class Collated:
    """A batch that was read once, so that it can be cut anywhere at little cost.

    Args:
        batch: Of any structure above.

    Attributes:
        batch: As given.
        count: Of its examples.

    Raises:
        ValueError: If it has no reading as examples, or more than one.

    Example:
        >>> collated = Collated(([torch.ones(5), torch.ones(7)], torch.tensor([3, 4])))
        >>> collated.count, collated.cut(1, 2)
        (2, ([tensor([1., 1., 1., 1., 1., 1., 1.])], tensor([4])))
    """

    def __init__(self, batch: Any) -> None:
        self.batch, self.count = batch, _count(batch)
        self._made: Callable[[_Slices], Any] | None = None  # once it must be cut

    def cut(self, start: int, stop: int) -> Any:
        """Return the examples from one number up to another, in the same structure.

        Raises:
            ValueError: If an entry could be cut in two ways.
        """
        if start <= 0 and stop >= self.count:
            return self.batch
        if self._made is None:
            self._made = _maker([self.batch], [self.count], where="", is_outermost=True)
        return self._made([slice(start, stop)])


class Piece(NamedTuple):
    """Some neighbouring examples of a batch."""

    of: Collated
    start: int
    stop: int


def joined(pieces: Sequence[Piece]) -> Any:
    """Make one batch of pieces of several, in their order.

    Args:
        pieces: At least one; all of one structure.

    Raises:
        ValueError: If they cannot be joined, or an entry could be in two ways.

    Example:
        >>> first, second = Collated(["a", "b"]), Collated(["c", "d"])
        >>> joined([Piece(first, 1, 2), Piece(second, 0, 1)])
        ['b', 'c']
    """
    if len(pieces) == 1:
        return pieces[0].of.cut(pieces[0].start, pieces[0].stop)
    batches, counts = [piece.of.batch for piece in pieces], [piece.of.count for piece in pieces]
    made = _maker(batches, counts, where="", is_outermost=True)
    return made([slice(piece.start, piece.stop) for piece in pieces])


# Counting: which numbers of examples a part can be read as. None: any, it holds for all of them.


def _count(batch: Any) -> int:
    counts = _common(batch) if _is_collated_list(batch) else _counts(batch)
    if counts is None or len(counts) != 1:
        raise ValueError(_why_not(batch, counts))
    return next(iter(counts))


def _counts(part: Any) -> frozenset[int] | None:
    if _is_scalar(part):
        return None
    if _is_rows(part):
        return frozenset([len(part)])
    if isinstance(part, PerExample):
        return frozenset([len(part)])
    columns = _columns(part)
    if columns is None:
        return frozenset()
    common = _common(columns)
    if not _is_list(part):
        return common
    as_entries = frozenset([len(part)] if _are_alike(part) else [])
    if common is None:  # texts and numbers; only of nothing but None is there nothing to cut
        return None if part and all(entry is None for entry in part) else as_entries
    return common | as_entries


def _common(columns: Iterable[Any]) -> frozenset[int] | None:
    common: frozenset[int] | None = None
    for column in columns:
        counts = _counts(column)
        if counts is not None:
            common = counts if common is None else common & counts
            if not common:
                break
    return common


def _is_scalar(part: Any) -> bool:
    if isinstance(part, Tensor):
        return part.dim() == 0
    return part is None or isinstance(part, _SCALARS) or (_is_array(part) and part.ndim == 0)


def _is_rows(part: Any) -> bool:
    if isinstance(part, Tensor):
        return part.dim() > 0 and part.layout is torch.strided and not part.is_nested
    return _is_array(part) and part.ndim > 0


def _is_array(part: Any) -> bool:
    return isinstance(part, np.ndarray)


def _is_collated_list(batch: Any) -> bool:
    """Whether the outermost list can only be columns."""
    return (
        _is_list(batch)
        and not isinstance(batch, PerExample)
        and any(_is_rows(entry) for entry in batch)
    )


def _is_list(part: Any) -> bool:
    return isinstance(part, list | tuple) and not hasattr(part, "_fields")


def _columns(part: Any) -> Sequence[Any] | None:
    """Return what a container holds, or None for what is no container."""
    if isinstance(part, MutableMapping):
        return list(part.values())
    if isinstance(part, PackedSequence):  # a named tuple, but no row of it is an example
        return None
    if _is_dataclass(part):
        return [getattr(part, name) for name in _init_names(part)]
    return part if isinstance(part, list | tuple) else None


def _is_dataclass(part: Any) -> bool:
    return dataclasses.is_dataclass(part) and not isinstance(part, type)


def _init_names(part: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(part) if field.init]


def _are_alike(entries: Sequence[Any]) -> bool:
    """Whether entries are of one kind, as examples are; one that has nothing may be None."""
    return len({_kind(entry) for entry in entries if entry is not None}) <= 1


def _kind(entry: Any) -> Any:
    if _is_scalar(entry):
        return "scalar"
    if isinstance(entry, Tensor) or _is_array(entry):
        return type(entry), entry.dtype, entry.ndim
    if _is_list(entry):
        return type(entry), frozenset(_kind(part) for part in entry if part is not None)
    return type(entry)


# Making: a function that cuts and joins parts of one structure, made once for all cuts.


def _maker(
    parts: Sequence[Any], counts: Sequence[int], *, where: str, is_outermost: bool = False
) -> Callable[[_Slices], Any]:
    first = parts[0]
    if any(type(part) is not type(first) for part in parts):
        raise _differ(parts, where)
    if _is_scalar(first):
        if not all(_is_same(part, first) for part in parts):
            raise _differ(parts, where)
        return lambda _: first
    if _is_rows(first):
        return _rows_maker(parts, where)
    if isinstance(first, MutableMapping):
        if any(part.keys() != first.keys() for part in parts):
            raise _differ(parts, where)
        made = _column_makers(parts, counts, where, list(first), lambda part, key: part[key])
        return lambda slices: _copy_with(first, {k: make(slices) for k, make in made.items()})
    if _is_dataclass(first):
        made = _column_makers(parts, counts, where, _init_names(first), getattr)
        return lambda slices: dataclasses.replace(
            first, **{name: make(slices) for name, make in made.items()}
        )
    return _list_maker(parts, counts, where, is_outermost=is_outermost)


def _list_maker(
    parts: Sequence[Any], counts: Sequence[int], where: str, *, is_outermost: bool
) -> Callable[[_Slices], Any]:
    first = parts[0]
    if _is_list(first) and not (is_outermost and _is_collated_list(first)):
        as_columns, as_entries = _readings(parts, counts)
        if as_columns and as_entries and not all(_is_of_dicts(part) for part in parts):
            raise ValueError(
                f"`batch` must be readable in one way, got a {type(first).__name__}"
                f"{_at(where)} of {len(first)} entries of {len(first)} rows each. They may be one "
                "entry per example, or columns: let `collate_fn` write columns as a dict, and "
                "entries as one tensor or a rightbatch.batches.PerExample."
            )
        if as_entries:
            return _rows_maker(parts, where)
    if any(len(part) != len(first) for part in parts):
        raise _differ(parts, where)
    made = _column_makers(parts, counts, where, list(range(len(first))), lambda part, i: part[i])
    makers, kind = list(made.values()), type(first)
    if hasattr(first, "_fields"):
        return lambda slices: kind(*[make(slices) for make in makers])
    return lambda slices: kind([make(slices) for make in makers])


def _is_of_dicts(entries: Sequence[Any]) -> bool:
    return all(isinstance(entry, MutableMapping) for entry in entries)


def _readings(parts: Sequence[Any], counts: Sequence[int]) -> tuple[bool, bool]:
    """Whether lists may be columns, and whether they may be one entry per example."""
    if isinstance(parts[0], PerExample):
        return False, True
    common = [_common(part) for part in parts]
    only_scalars = all(numbers is None for numbers in common)
    only_none = only_scalars and all(entry is None for part in parts for entry in part)
    as_columns = len({len(part) for part in parts}) == 1 and (
        only_none
        or (
            not only_scalars
            and all(
                numbers is None or count in numbers
                for numbers, count in zip(common, counts, strict=True)
            )
        )
    )
    as_entries = not (only_none and any(parts)) and all(
        len(part) == count and _are_alike(part) for part, count in zip(parts, counts, strict=True)
    )
    return as_columns, as_entries


def _column_makers(
    parts: Sequence[Any],
    counts: Sequence[int],
    where: str,
    names: Sequence[Any],
    column_of: Callable[[Any, Any], Any],
) -> dict[Any, Callable[[_Slices], Any]]:
    return {
        name: _maker([column_of(part, name) for part in parts], counts, where=f"{where}[{name!r}]")
        for name in names
    }


def _rows_maker(parts: Sequence[Any], where: str) -> Callable[[_Slices], Any]:
    first = parts[0]
    if len(parts) == 1:
        if _is_list(first) and type(first) not in (list, tuple):
            return lambda slices: type(first)(first[slices[0]])
        return lambda slices: first[slices[0]]
    if _is_list(first):
        return lambda slices: type(first)(
            entry for part, rows in zip(parts, slices, strict=True) for entry in part[rows]
        )
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"`chunks` must agree in all dimensions but the first, got {sorted(shapes)[:5]}"
            f"{_at(where)}. They are joined into one batch: pad to one length in `collate_fn`."
        )
    join: Any = torch.cat if isinstance(first, Tensor) else np.concatenate
    return lambda slices: join([part[rows] for part, rows in zip(parts, slices, strict=True)])


def _copy_with(mapping: MutableMapping[Any, Any], entries: dict[Any, Any]) -> Any:
    kept = copy.copy(mapping)  # of its own type, such as a tokenizer's
    kept.update(entries)
    return kept


def _is_same(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)


# Refusing.


def _at(where: str) -> str:
    return f" at batch{where}" if where else ""


def _differ(parts: Sequence[Any], where: str) -> ValueError:
    kinds = " and ".join(sorted({type(part).__name__ for part in parts}))
    return ValueError(
        f"`chunks` must be alike but for their examples, got {kinds}{_at(where)} that differ. "
        "What holds for the whole batch is unknown: let `collate_fn` write one entry per example."
    )


def _why_not(batch: Any, counts: frozenset[int] | None) -> str:
    found = ", ".join(_told(batch, ""))
    if counts is None:
        return (
            f"`batch` must hold examples, got {found or type(batch).__name__}. "
            "Their number tells where to cut: let `collate_fn` add a tensor of one row per example."
        )
    if counts:
        numbers = " or ".join(str(number) for number in sorted(counts))
        return (
            f"`batch` must be readable in one way, got {numbers} examples: {found}. Lists may be "
            "columns, or one entry per example: let `collate_fn` mark the latter as "
            "rightbatch.batches.PerExample, or write columns as a dict with a tensor."
        )
    return (
        f"every part of `batch` must have one row per example, got {found}. Which rows belong to "
        "an example is unknown: let `collate_fn` write tensors, arrays or lists of one row per "
        "example, and keep what holds for all of them in the model or the loss."
    )


def _told(part: Any, where: str) -> list[str]:
    """Name up to five parts with their rows."""
    columns = _columns(part)
    named = f"batch{where}"
    if columns is not None and not (_is_list(part) and where):
        names: Any = list(part) if isinstance(part, MutableMapping) else range(len(columns))
        if not _is_list(part) and not isinstance(part, MutableMapping):
            names = getattr(part, "_fields", None) or _init_names(part)
        told = [
            line
            for name, column in zip(names, columns, strict=True)
            for line in _told(column, f"{where}[{name!r}]")
        ]
        return told[:5]
    if _is_scalar(part):
        return []
    if _is_rows(part):
        return [f"{named} of {len(part)} rows"]
    if columns is not None:
        return [f"{named} of {len(part)} entries"]
    return [f"{named}, a {type(part).__name__}"]
