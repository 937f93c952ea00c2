"""From a data set to batches of any size, without touching the user's loader or random state.

A `Source` owns one data set. It builds private loaders: shuffled by a generator of their
own, so that neither the global random state nor an iterator of the user's is consumed.
"""

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import count, islice
from types import FunctionType, MethodType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    get_worker_info,
)

from rightbatch.errors import TaskError
from rightbatch.task.reachable import reachable

_LONG = 200  # items; further ones are single examples


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A data set and how its examples are drawn and collated."""

    dataset: Any
    sampler: Sampler[int] | None = None  # the user's own, kept where it is not a plain shuffle
    collate_fn: Callable[[list[Any]], Any] | None = None
    num_workers: int = 0
    batch_size: int | None = None  # of the user's loader, where one was given
    loader_options: Mapping[str, Any] = field(default_factory=dict)  # its further settings

    @property
    def num_examples(self) -> int | None:
        """Examples in one epoch; ``None`` for a stream."""
        if _is_stream(self.dataset):
            return None
        if isinstance(self.sampler, Sized):
            return len(self.sampler)
        return len(self.dataset)

    def loader(self, size: int, *, seed: int, epochs: int | None) -> DataLoader[Any]:
        """Build a private loader of ``size`` examples a batch.

        Args:
            size: Examples per batch, positive.
            seed: Of the shuffle and of the workers.
            epochs: Passes over the data, or ``None`` for an endless stream of full batches
                that run across the epochs' ends. Only the last batch of a finite stream
                may be smaller (with worker processes on a stream, the last of each worker).
        """
        options: dict[str, Any] = {
            **self.loader_options,
            "collate_fn": self.collate_fn,
            "num_workers": self.num_workers,
            "generator": _generator(seed),
        }
        if _is_stream(self.dataset):
            options["worker_init_fn"] = _InitWorker(options.get("worker_init_fn"))
            return DataLoader(_Stream(self.dataset, epochs), batch_size=size, **options)
        sampler = _BatchIndices(self.order(seed), size, epochs)
        return DataLoader(self.dataset, batch_sampler=sampler, **options)

    def order(self, seed: int) -> Iterable[int]:
        """Return the indices of one epoch, as training draws them.

        Args:
            seed: Of the shuffle, or of a sampler of the user's own that has a generator.

        Returns:
            Indices, which a sampler of the user's own may yield without end.

        Example:
            >>> sorted(Source(dataset=["a", "b", "c"]).order(seed=0))
            [0, 1, 2]
        """
        if self.sampler is None:
            return _Shuffle(len(self.dataset), torch.Generator().manual_seed(seed))
        private: Any = copy.copy(self.sampler)  # so that theirs stays where it is
        if hasattr(private, "generator"):
            private.generator = _generator(seed)
        return private


def owned_by(source: Source) -> list[Any]:
    """List what a source's data set and sampler refer to, but for modules and functions.

    Long containers are listed and not looked into: what is drawn from is near the surface.

    Example:
        >>> images = torch.zeros(4, 2)
        >>> source = Source(dataset=torch.utils.data.TensorDataset(images))
        >>> any(thing is images for thing in owned_by(source))
        True
    """
    found: list[Any] = []

    def is_long(thing: Any) -> bool:
        if not isinstance(thing, list | tuple | dict | set | deque) or len(thing) <= _LONG:
            return False
        found.append(thing)
        return True

    roots = (source.dataset, source.sampler, *source.loader_options.values())
    code = (nn.Module, FunctionType, MethodType)
    reached = islice(reachable(roots, closed=code, skipped=is_long), _LONG)
    found += [thing for thing in reached if not isinstance(thing, code)]
    return found


def _generator(seed: int) -> torch.Generator:
    """Make one where torch's loaders and samplers draw: on the default device, if one was set."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


@final
class _Shuffle:
    """Every index once, in a fresh order each time."""

    def __init__(self, length: int, generator: torch.Generator) -> None:
        self._length, self._generator = length, generator

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self._length, generator=self._generator, device="cpu")
        return iter(order.tolist())


@final
class _BatchIndices(Sampler[list[int]]):
    """Lists of indices, epoch after epoch."""

    def __init__(self, order: Iterable[int], size: int, epochs: int | None) -> None:
        self._order, self._size, self._epochs = order, size, epochs

    def __iter__(self) -> Iterator[list[int]]:
        indices = _repeated(self._order, self._epochs)
        while batch := list(islice(indices, self._size)):
            yield batch


@final
class _Stream(IterableDataset[Any]):
    """The user's stream, started again at its end."""

    def __init__(self, dataset: Iterable[Any], epochs: int | None) -> None:
        self.dataset, self._epochs = dataset, epochs

    def __iter__(self) -> Iterator[Any]:
        return _repeated(self.dataset, self._epochs)


@final
class _InitWorker:
    """Show a worker the user's data set, not our wrapper: it may take its share by an attribute."""

    def __init__(self, user_init: Callable[[int], None] | None) -> None:
        self._user_init = user_init

    def __call__(self, worker_id: int) -> None:
        info = get_worker_info()
        stream: Any = info.dataset  # type: ignore[union-attr]
        object.__setattr__(info, "dataset", stream.dataset)  # its own __setattr__ refuses
        if self._user_init is not None:
            self._user_init(worker_id)


def _repeated(items: Iterable[Any], epochs: int | None) -> Iterator[Any]:
    for epoch in count():
        if epoch == epochs:
            return
        empty = True
        for item in items:
            empty = False
            yield item
        if empty:
            raise TaskError(
                f"`dataset` must yield examples in every epoch, got none in epoch {epoch + 1} of "
                f"{type(items).__name__}. Pass one that can be iterated more than once."
            )


def _is_stream(dataset: Any) -> bool:
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


def source_from(
    dataset: Any, *, collate_fn: Callable[[list[Any]], Any] | None, num_workers: int
) -> Source:
    """Make a `Source` of a map-style data set, an iterable one, or a DataLoader.

    Raises:
        TaskError: If there is no example, only one, or the object cannot be drawn from.
    """
    if isinstance(dataset, DataLoader):
        source = _source_from_loader(dataset, collate_fn, num_workers)
    else:
        source = Source(dataset=dataset, collate_fn=collate_fn, num_workers=num_workers)
    dataset = source.dataset
    if isinstance(dataset, Iterator):
        raise TaskError(
            f"`dataset` must be re-iterable, got a one-shot {type(dataset).__name__}. "
            "Measuring draws many batches: pass a list, a Dataset, or an IterableDataset."
        )
    if not isinstance(dataset, Iterable if _is_stream(dataset) else Sized):
        raise TaskError(
            f"`dataset` must be a Dataset, a list or a DataLoader, got {type(dataset).__name__}. "
            "It needs __getitem__ and __len__ to be drawn from in any order, or __iter__ alone."
        )
    if source.num_examples is not None and source.num_examples < 2:
        raise TaskError(
            f"`dataset` must hold at least two examples, got {source.num_examples}. "
            "Gradient noise is the difference between examples: pass the training set."
        )
    return source


def _source_from_loader(
    loader: DataLoader[Any], collate_fn: Callable[[list[Any]], Any] | None, num_workers: int
) -> Source:
    if loader.batch_size is None:
        raise TaskError(
            "a DataLoader given as `dataset` must batch by `batch_size`, got batch_size=None "
            "(batching switched off, or a batch_sampler of its own). "
            "Pass its dataset and collate_fn instead."
        )
    workers = num_workers or loader.num_workers
    names = ["worker_init_fn", "pin_memory"]
    if workers and loader.num_workers:  # settings that a loader without workers refuses
        names += ["prefetch_factor", "multiprocessing_context", "timeout"]
    return Source(
        dataset=loader.dataset,
        sampler=_own_sampler(loader),
        collate_fn=collate_fn or loader.collate_fn,
        num_workers=workers,
        batch_size=loader.batch_size,
        loader_options={name: getattr(loader, name) for name in names},
    )


def _own_sampler(loader: DataLoader[Any]) -> Sampler[int] | None:
    """Return the loader's sampler, unless a plain shuffle draws the same examples."""
    sampler = loader.sampler
    if _is_stream(loader.dataset) or type(sampler) is SequentialSampler:
        return None
    if type(sampler) is RandomSampler and not sampler.replacement:
        return None if sampler.num_samples == len(sampler.data_source) else sampler
    return sampler  # type: ignore[return-value]


def examples_in(batch: Any) -> int | None:
    """Count the examples in a collated batch by its first tensor's leading dimension.

    Args:
        batch: A tensor, or a tuple, list, mapping or dataclass of tensors, also nested.

    Returns:
        The count, or ``None`` where there is no tensor with a dimension.

    Example:
        >>> examples_in({"image": torch.zeros(3, 8), "label": torch.zeros(3)})
        3
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        batch = [getattr(batch, part.name) for part in dataclasses.fields(batch)]
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        counts = (examples_in(part) for part in batch)
        return next((count for count in counts if count is not None), None)
    return None


def first_examples(batch: Any, count: int) -> Any:
    """Keep the first examples of a collated batch, in the same containers.

    Args:
        batch: A tensor, or a tuple, list, mapping or dataclass of such, also nested. Every tensor
            with a dimension, and every list of other things as long as the batch, is cut.
        count: How many to keep.

    Example:
        >>> first_examples({"x": torch.arange(4), "ids": ["a", "b", "c", "d"], "step": 7}, 2)
        {'x': tensor([0, 1]), 'ids': ['a', 'b'], 'step': 7}
    """
    size = examples_in(batch)

    def cut(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part[:count] if part.dim() and len(part) == size else part
        if isinstance(part, MutableMapping):
            kept = copy.copy(part)
            kept.update({key: cut(value) for key, value in part.items()})
            return kept
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            names = [field.name for field in dataclasses.fields(part) if field.init]
            return dataclasses.replace(part, **{name: cut(getattr(part, name)) for name in names})
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*(cut(item) for item in part))
        if isinstance(part, tuple | list):
            has_tensors = any(examples_in(item) is not None for item in part)
            return type(part)(cut(item) for item in part) if has_tensors else _cut_list(part)
        return part

    def _cut_list(part: Any) -> Any:
        return part[:count] if len(part) == size else part

    return cut(batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a batch to a device, keeping its containers.

    Containers that know how to move themselves (anything with ``.to``, such as a
    tokenizer's batch) are asked to; unknown objects are passed through.
    """
    if isinstance(batch, Tensor) or (hasattr(batch, "to") and callable(batch.to)):
        return batch.to(device)
    if isinstance(batch, MutableMapping):
        moved = copy.copy(batch)  # keeps a defaultdict's factory
        moved.update({key: to_device(value, device) for key, value in batch.items()})
        return moved
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [part.name for part in dataclasses.fields(batch) if part.init]
        parts = {name: to_device(getattr(batch, name), device) for name in names}
        return dataclasses.replace(batch, **parts)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(part, device) for part in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(part, device) for part in batch)
    return batch
