"""From a data set to batches of any size, without touching the user's loader or random state.

A `Source` owns one data set. It builds private loaders: shuffled by a generator of their
own, so that neither the global random state nor an iterator of the user's is consumed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from rightbatch.errors import TaskError


@final
@dataclass(frozen=True, slots=True)
class Source:
    """A data set and how its examples are drawn and collated."""

    dataset: Any
    sampler: Sampler[int] | None  # the user's own, kept where it is not a plain shuffle
    collate_fn: Callable[[list[Any]], Any] | None
    num_workers: int
    batch_size: int | None  # of the user's loader, where one was given

    @property
    def num_examples(self) -> int | None:
        """Examples in one epoch; ``None`` for a stream."""
        if isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__getitem__"):
            return None
        return len(self.sampler) if self.sampler is not None else len(self.dataset)  # type: ignore[arg-type]

    def loader(self, size: int, *, seed: int, epochs: int | None) -> DataLoader[Any]:
        """Build a private loader of ``size`` examples a batch.

        Args:
            size: Examples per batch, positive.
            seed: Of the shuffle and of the workers.
            epochs: Passes over the data, or ``None`` for an endless stream of full batches
                that run across the epochs' ends. Only the last batch of a finite stream
                may be smaller.
        """
        generator = torch.Generator().manual_seed(seed)
        options: dict[str, Any] = {
            "collate_fn": self.collate_fn,
            "num_workers": self.num_workers,
            "generator": torch.Generator().manual_seed(seed),
        }
        if self.num_examples is None:
            return DataLoader(_Stream(self.dataset, epochs), batch_size=size, **options)
        sampler = _BatchIndices(self, size, generator, epochs)
        return DataLoader(self.dataset, batch_sampler=sampler, **options)


@final
class _BatchIndices(Sampler[list[int]]):
    """Lists of indices: every example once per epoch, in a fresh order."""

    def __init__(
        self, source: Source, size: int, generator: torch.Generator, epochs: int | None
    ) -> None:
        self._source, self._size, self._generator, self._epochs = source, size, generator, epochs

    def __iter__(self) -> Iterator[list[int]]:
        indices = self._indices()
        while batch := list(islice(indices, self._size)):
            yield batch

    def _indices(self) -> Iterator[int]:
        epoch = 0
        while self._epochs is None or epoch < self._epochs:
            if self._source.sampler is not None:
                yield from self._source.sampler
            else:
                length = len(self._source.dataset)
                yield from torch.randperm(length, generator=self._generator).tolist()
            epoch += 1


@final
class _Stream(IterableDataset[Any]):
    """The user's stream, started again at its end."""

    def __init__(self, dataset: Iterable[Any], epochs: int | None) -> None:
        self._dataset, self._epochs = dataset, epochs

    def __iter__(self) -> Iterator[Any]:
        epoch = 0
        while self._epochs is None or epoch < self._epochs:
            empty = True
            for example in self._dataset:
                empty = False
                yield example
            if empty:
                raise TaskError(
                    "the data set yields no example, got an empty stream. "
                    "Pass a data set that can be iterated more than once."
                )
            epoch += 1


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
        source = Source(dataset, None, collate_fn, num_workers, None)
    if iter_is_spent(source.dataset):
        raise TaskError(
            f"`dataset` must be re-iterable, got a one-shot {type(source.dataset).__name__}. "
            "Measuring draws many batches: pass a list, a Dataset, or an IterableDataset."
        )
    if not hasattr(source.dataset, "__getitem__") and not isinstance(source.dataset, Iterable):
        raise TaskError(
            f"`dataset` must be a Dataset, a list or a DataLoader, got {type(dataset).__name__}. "
            "It needs __getitem__ and __len__, or __iter__."
        )
    if source.num_examples is not None and source.num_examples < 2:
        count = source.num_examples
        raise TaskError(
            f"`dataset` must hold at least two examples, got {count}. "
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
    sampler = None if isinstance(loader.dataset, IterableDataset) else loader.sampler
    if isinstance(sampler, RandomSampler | SequentialSampler):
        sampler = None
    return Source(
        loader.dataset,
        sampler,
        collate_fn or loader.collate_fn,
        num_workers or loader.num_workers,
        loader.batch_size,
    )


def iter_is_spent(dataset: Any) -> bool:
    """Whether this is an iterator, which a second pass would find empty."""
    return isinstance(dataset, Iterator)


def examples_in(batch: Any) -> int | None:
    """Count the examples in a collated batch by its first tensor's leading dimension.

    Args:
        batch: A tensor, or a tuple, list, mapping or attribute holder of tensors.

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
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        for part in batch:
            count = examples_in(part)
            if count is not None:
                return count
    return None


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a batch to a device, keeping its containers.

    Containers that know how to move themselves (anything with ``.to``, such as a
    tokenizer's batch) are asked to; unknown objects are passed through.
    """
    if isinstance(batch, Tensor) or (hasattr(batch, "to") and callable(batch.to)):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return type(batch)({key: to_device(value, device) for key, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(part, device) for part in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(part, device) for part in batch)
    return batch
