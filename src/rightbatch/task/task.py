"""What is being trained: the one thing that users write down."""

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from rightbatch.errors import TaskError
from rightbatch.results import TaskFacts
from rightbatch.task.data import Source, examples_in, owned_by, source_from, to_device
from rightbatch.task.preflight import preflight
from rightbatch.task.world import preserved

Loss = Callable[[nn.Module, Any], Tensor]


def supervised(criterion: Callable[[Any, Any], Tensor]) -> Loss:
    """Make a loss for batches of ``(inputs, targets)``.

    Args:
        criterion: ``criterion(outputs, targets)`` -> mean loss over the batch, such as
            ``torch.nn.functional.cross_entropy``. It must average, not sum: the sum over a
            batch has a gradient that grows with the batch.

    Returns:
        A function ``loss(model, batch)`` for `Task`.

    Example:
        >>> loss = supervised(nn.functional.mse_loss)
        >>> inputs, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [0.0]])
        >>> loss(nn.Identity(), (inputs, targets)).item()
        5.0
    """

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        return criterion(model(inputs), targets)

    return loss


@final
class Task:
    """A model, its optimizer, its data and its loss: all that is measured, nothing that is changed.

    Args:
        model: The module that is trained, on its device.
        optimizer: The optimizer that trains it, with today's settings. Its learning rates may
            differ between groups; their ratios are kept.
        dataset: A map-style data set, an ``IterableDataset``, any sequence of examples, or a
            ``DataLoader`` (whose data set, collate function, sampler, workers and batch size are
            taken over; the loader itself is never iterated).
        loss: ``loss(model, batch)`` -> *mean* loss over the batch's units, 0-d, with a graph.
            `supervised` makes one for ``(inputs, targets)``.
        weight: ``weight(batch)`` -> how many units that mean ran over, such as unmasked tokens.
            By default the examples of the batch.
        collate_fn: Makes a batch of a list of examples; PyTorch's default otherwise.
        evaluate: ``evaluate(model)`` -> float, for training to a target.
        batch_size: Examples per optimizer step that you train with today, over all devices.
        num_workers: Loader processes that you train with.
        clip_grad_norm: The norm that you clip gradients to, if you do.
        max_batch_size: Never try more examples than this.
        worst_case: ``worst_case(size)`` -> the batch of so many examples that needs most memory, on
            the host. By default copies of the longest example found, where lengths differ.
        device: Where batches go; the model's device by default.
        name: What reports call this task.

    Raises:
        TaskError: If something above cannot be trained or drawn from; the message says what to do.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> dataset = [(torch.randn(2), torch.randn(1)) for _ in range(10)]
        >>> task = Task(model, optimizer, dataset, supervised(nn.functional.mse_loss), batch_size=4)
        >>> task.num_examples, task.max_batch_size
        (10, 10)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        dataset: Any,
        loss: Loss,
        *,
        weight: Callable[[Any], float] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        batch_size: int | None = None,
        num_workers: int = 0,
        clip_grad_norm: float | None = None,
        max_batch_size: int | None = None,
        worst_case: Callable[[int], Any] | None = None,
        device: torch.device | str | None = None,
        name: str | None = None,
    ) -> None:
        _check_trainable(model, optimizer)
        _check_functions(
            loss=loss,
            weight=weight,
            collate_fn=collate_fn,
            evaluate=evaluate,
            worst_case=worst_case,
        )
        batch_size = _whole_number("batch_size", batch_size, at_least=1)
        max_batch_size = _whole_number("max_batch_size", max_batch_size, at_least=1)
        workers = _whole_number("num_workers", num_workers, at_least=0) or 0
        _check_clipping(clip_grad_norm)
        self.model = model
        self.optimizer = optimizer
        self.source: Source = source_from(dataset, collate_fn=collate_fn, num_workers=workers)
        self.clip_grad_norm = clip_grad_norm
        self.evaluate = evaluate
        self.worst_case = worst_case
        self.name = name or type(model).__name__
        self.device = _place(device, next(model.parameters()).device)
        self._loss = loss
        self._weight = weight
        sizes = [size for size in (self.source.num_examples, max_batch_size) if size is not None]
        self.max_batch_size: int | None = min(sizes) if sizes else None
        self.batch_size = batch_size if batch_size is not None else self.source.batch_size
        if self.batch_size and self.max_batch_size and self.batch_size > self.max_batch_size:
            raise TaskError(
                f"`batch_size` must not exceed the data set or `max_batch_size`, "
                f"got batch_size={self.batch_size} and a cap of {self.max_batch_size}. "
                "No step ever sees more: name the size that you train with today."
            )
        self._warnings: tuple[str, ...] | None = None

    @property
    def num_examples(self) -> int | None:
        """Examples in one epoch; ``None`` for a stream."""
        return self.source.num_examples

    @property
    def num_workers(self) -> int:
        """Loader processes."""
        return self.source.num_workers

    @property
    def default_batch_size(self) -> int:
        """Today's batch size; 32 (or the cap, if smaller) where none was named."""
        return self.batch_size or min(32, self.max_batch_size or 32)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains, each parameter once (tied ones too)."""
        groups = (group["params"] for group in self.optimizer.param_groups)
        return list(dict.fromkeys(p for group in groups for p in group if p.requires_grad))

    def loader(self, size: int, *, seed: int = 0, epochs: int | None = None) -> DataLoader[Any]:
        """Build a private loader; its batches are still on the host. See `Source.loader`."""
        return self.source.loader(size, seed=seed, epochs=epochs)

    def batches(self, size: int, *, seed: int = 0, epochs: int | None = None) -> Iterator[Any]:
        """Yield batches of ``size`` examples on the task's device, shuffled by ``seed``.

        Args:
            size: Examples per batch.
            seed: Of the shuffle.
            epochs: Passes over the data; ``None``: endless, and every batch is full. With a
                number, every example comes once per epoch and the last batch may be smaller.
        """
        for batch in self.loader(size, seed=seed, epochs=epochs):
            yield to_device(batch, self.device)

    def loss(self, batch: Any) -> tuple[Tensor, float]:
        """Return the mean loss over the batch's units (0-d, with graph), and their number.

        Raises:
            TaskError: If the loss is not a scalar with a graph, or the weight not positive.
        """
        value = self._loss(self.model, batch)
        if not isinstance(value, Tensor) or value.dim() != 0 or value.is_complex():
            got = repr(value)
            if isinstance(value, Tensor):
                got = f"a {value.dtype} tensor of shape {tuple(value.shape)}"
            raise TaskError(
                f"`loss(model, batch)` must return a real scalar tensor, got {got:.200}. "
                "Average over the batch: use reduction='mean', or call .mean()."
            )
        if not value.requires_grad:
            raise TaskError(
                f"`loss(model, batch)` must have a graph to differentiate, got {value!r} without "
                "one. Do not detach it, call .item(), or compute it under torch.no_grad()."
            )
        return value, self.weigh(batch)

    def weigh(self, batch: Any) -> float:
        """Return how many units the batch's mean loss runs over.

        Raises:
            TaskError: If the number is not positive and finite, or cannot be told.
        """
        units = self._weight(batch) if self._weight else examples_in(batch)
        if units is None:
            raise TaskError(
                f"cannot count the examples of a batch of type {type(batch).__name__}. "
                "Pass `weight=` to say how many units its mean loss runs over."
            )
        units = float(units)
        if not (math.isfinite(units) and units > 0):
            raise TaskError(
                f"`weight(batch)` must be positive and finite, got {units!r}. "
                "A batch without units has no mean loss: drop such examples from the data set."
            )
        return units

    def step(self, batch: Any) -> Tensor:
        """Take one optimizer step as the user's loop would; return the loss, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, _ = self.loss(batch)
        loss.backward()
        if self.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
        self.optimizer.step()
        return loss.detach()

    def preserved(self, *, weights: bool = True) -> AbstractContextManager[None]:
        """Restore model, optimizer and random states bit for bit on leaving the ``with`` block.

        And what the loss and hooks keep for themselves: averages of the model, queues of features.

        Args:
            weights: ``False`` where no step is taken inside: parameters and optimizer state are
                then not copied.

        Example:
            >>> model = nn.Linear(1, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> data = [(torch.ones(1), torch.ones(1))] * 4
            >>> task = Task(model, optimizer, data, supervised(nn.functional.mse_loss))
            >>> before = model.weight.item()
            >>> with task.preserved():
            ...     _ = task.step(next(task.batches(2)))
            >>> model.weight.item() == before
            True
        """
        code = (self._loss, self._weight, self.model)
        return preserved(
            self.model,
            self.optimizer,
            weights=weights,
            code=(*code, self.optimizer) if weights else code,
            apart=(self, *owned_by(self.source)),
        )

    def check(self) -> tuple[str, ...]:
        """Look before anything is measured; return what the user should know, a sentence each.

        The first call tries two passes over one batch; later calls return the same answer.

        Raises:
            TaskError: If the task cannot be measured; the message says what to do.
            NotRepeatable: If two passes at one random state disagree.
        """
        if self._warnings is None:
            self._warnings = preflight(self)
        return self._warnings

    def warn(self, sentence: str) -> None:
        """Add to what `check` says, once."""
        self._warnings = tuple(dict.fromkeys((*self.check(), sentence)))

    def facts(self) -> TaskFacts:
        """Describe the task for the results file."""
        group = _numbers(self.optimizer.param_groups[0])
        return TaskFacts(
            name=self.name,
            parameters=sum(p.numel() for p in self.parameters),
            examples=self.num_examples,
            batch_size=self.batch_size,
            learning_rate=group.get("lr"),
            optimizer=type(self.optimizer).__name__,
            hyperparameters=group,
            num_workers=self.num_workers,
            warnings=self.check(),
        )


def _numbers(group: dict[str, Any]) -> dict[str, float]:
    """Pick an optimizer group's finite numbers; ``betas`` become ``beta1`` and ``beta2``."""
    betas = {f"beta{i}": beta for i, beta in enumerate(group.get("betas") or (), start=1)}
    numbers: dict[str, float] = {}
    for key, value in {**group, **betas}.items():
        if isinstance(value, Tensor) and value.numel() == 1:  # a capturable learning rate
            value = value.item()
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and math.isfinite(value):
            numbers[key] = float(value)
    return numbers


def _place(named: torch.device | str | None, own: torch.device) -> torch.device:
    """Complete a name such as "cuda": some of torch's functions refuse it, and the model tells."""
    place = own if named is None else torch.device(named)
    return own if place.index is None and place.type == own.type else place


def _whole_number(name: str, value: Any, *, at_least: int) -> int | None:
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < at_least:
        raise TaskError(
            f"`{name}` must be a whole number of at least {at_least}, got {value!r}. "
            "It counts examples or processes: pass an int, or leave it out."
        )
    return number


def _check_clipping(clip_grad_norm: float | None) -> None:
    if clip_grad_norm is not None and not clip_grad_norm > 0:
        raise TaskError(
            f"`clip_grad_norm` must be positive, got {clip_grad_norm!r}. "
            "It would erase every gradient: leave it out if you do not clip."
        )


def _check_functions(**functions: Any) -> None:
    hints = {
        "loss": "rightbatch.supervised(criterion) makes one for (inputs, targets).",
        "weight": "weight(batch) says how many units the mean loss runs over.",
        "collate_fn": "collate_fn(examples) makes a batch of a list of examples.",
        "evaluate": "evaluate(model) returns the float that a target is set for.",
        "worst_case": "worst_case(size) returns the largest batch of so many examples.",
    }
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "loss"):
            raise TaskError(
                f"`{name}` must be a function, got {type(function).__name__}. {hints[name]}"
            )


def _check_trainable(model: nn.Module, optimizer: Optimizer) -> None:
    if not isinstance(model, nn.Module):
        raise TaskError(
            f"`model` must be a torch.nn.Module, got {type(model).__name__}. "
            "Its parameters are what is trained and what is put back afterwards."
        )
    if not isinstance(optimizer, Optimizer):
        raise TaskError(
            f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}. "
            "Build one over the model's parameters, with the settings that you train with."
        )
    if any(nn.parameter.is_lazy(part) for part in (*model.parameters(), *model.buffers())):
        raise TaskError(
            f"`model` must have all its shapes, got lazy layers in {type(model).__name__}. "
            "They have nothing to copy and put back yet: run the model on one batch first."
        )
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise TaskError(
            "`model` must have a trainable parameter, got none with requires_grad=True. "
            "There is no gradient to measure: unfreeze what you train."
        )
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in trained for p in trainable):
        raise TaskError(
            "`optimizer` must train the model's parameters, got an optimizer that holds none of "
            "them. Build it after the model was moved or wrapped: Optimizer(model.parameters())."
        )
    for index, group in enumerate(optimizer.param_groups):
        rate = float(group.get("lr", math.nan))
        if not (math.isfinite(rate) and rate > 0):
            raise TaskError(
                f"`optimizer` must have a positive, finite learning rate, got lr={rate!r} in "
                f"group {index}. A run that stands still has nothing to tell: "
                "set the rate that you train with."
            )
