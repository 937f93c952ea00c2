"""Learning rates by examples seen instead of by steps, so that the batch size may change."""

import math
import numbers
import warnings
import weakref
from collections.abc import Callable
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rightbatch.lr.shapes import describe_shape

_ENTRIES = {"last_epoch", "base_lrs", "_last_lr", "schedule", "samples"}  # of a saved state
_SAMPLES = 16  # places up to now at which a schedule must agree with the one that was saved


@final
class ExampleLR(LRScheduler):
    """Schedule the learning rate by examples, or tokens, seen.

    After ``E`` examples each parameter group's rate is its first rate times ``schedule(E)``. How
    the examples came, in batches of what size, accumulated or over how many devices, does not
    matter. It is a scheduler of torch (``last_epoch``, ``get_last_lr`` and ``state_dict`` work as
    users know them), except that ``last_epoch`` counts examples and `step` is told how many.

    The first rates live in the groups, as ``initial_lr``, and are read at every step: what scales
    that entry, as `scale` and `rightbatch.scale_hyperparameters` do, moves the whole schedule up or
    down and keeps its shape.

    Args:
        optimizer: Whose rates are set, at once and after every `step`. A group that is added
            later starts from the rate that it is added with.
        schedule: Factor after so many examples: one of `rightbatch.lr.shapes`, such as
            ``Sequence(Warmup(10_000), Cosine(990_000))``, or any function of a number.

    Raises:
        TypeError: If ``optimizer`` is not one, or ``schedule`` cannot be called.
        ValueError: If the schedule returns what no rate can be multiplied by.

    Example:
        >>> import torch
        >>> from rightbatch.lr import ExampleLR, Linear
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
        >>> scheduler = ExampleLR(optimizer, Linear(1000))
        >>> for batch_size in (64, 64, 372):
        ...     optimizer.step()
        ...     scheduler.step(batch_size)
        >>> scheduler.examples_seen, optimizer.param_groups[0]["lr"]
        (500, 0.2)
    """

    def __init__(self, optimizer: Optimizer, schedule: Callable[[float], float]) -> None:
        # torch's own __init__ would call `step` without a number of examples.
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"`optimizer` must be a torch optimizer, got {type(optimizer).__name__}. "
                "Its parameter groups hold the rates: pass the optimizer itself."
            )
        if not callable(schedule):
            raise TypeError(
                f"`schedule` must be a function of examples, got {schedule!r}. "
                "Pass one of rightbatch.lr.shapes, such as Cosine(1_000_000)."
            )
        self.optimizer = optimizer
        self.schedule = schedule
        self.last_epoch: float = 0  # pyright: ignore - examples may be tokens of fractional weight
        self._watch()
        self._set_rates(self._factor(0))

    @property
    def examples_seen(self) -> float:
        """Examples, or tokens, of all optimizer steps so far."""
        return self.last_epoch

    @property
    def base_lrs(self) -> list[float]:  # pyright: ignore - torch has a list that goes stale
        """First rate of each parameter group, as the groups hold it now."""
        groups = self.optimizer.param_groups
        return [float(group.get("initial_lr", group["lr"])) for group in groups]

    def get_lr(self) -> list[float | Tensor]:
        """Return what the rates are after the examples seen."""
        factor = self._factor(self.last_epoch)
        return [rate * factor for rate in self.base_lrs]

    def step(self, examples: float | None = None) -> None:  # pyright: ignore - torch counts calls
        """Count the examples of the optimizer step just made, and set the rates for the next.

        Args:
            examples: Of that step, over all its micro-batches and devices; a tensor of one number
                will do. Where examples differ in length and the schedule counts tokens: tokens.

        Raises:
            ValueError: If ``examples`` is absent, not positive or not finite; nothing is counted.

        Warns:
            UserWarning: If no optimizer step was made since the last call. The examples count
                all the same: a step that a gradient scaler skips has seen its examples.
        """
        seen = self.last_epoch + _counted(examples)
        factor = self._factor(seen)
        if self._steps.since == 0:
            warnings.warn(
                f"ExampleLR.step({examples!r}) without an optimizer step since the last call. "
                "Called twice for one step, its examples count twice and the schedule runs ahead: "
                "call it once, after `optimizer.step()`. Where a gradient scaler skipped the step, "
                "counting its examples is right.",
                UserWarning,
                stacklevel=2,
            )
        self._steps.since = 0
        self.last_epoch = seen
        self._set_rates(factor)

    def scale(self, factor: float) -> None:
        """Multiply the first rates, and so the rest of the schedule, keeping its shape.

        Args:
            factor: For every group, such as the one by which a larger batch allows a larger rate.

        Raises:
            ValueError: If ``factor`` is not positive and finite.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(
                f"`factor` must be positive and finite, got factor={factor!r}. "
                "It multiplies every rate from now on: use 2.0 to double them."
            )
        # All are read before one is written: groups may share one tensor.
        scaled = [rate * factor for rate in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, scaled, strict=True):
            self._adopt(group)
            _write(group, "initial_lr", rate)
        self._set_rates(self._factor(self.last_epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs: numbers and text, not the schedule itself."""
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": self.base_lrs,
            "_last_lr": [float(group["lr"]) for group in self.optimizer.param_groups],
            "schedule": describe_shape(self.schedule),
            "samples": self._samples(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another process stopped; the rates are the same to the bit.

        Args:
            state_dict: From `state_dict`. The optimizer's own state is loaded apart, before or
                after.

        Raises:
            ValueError: If the state is of another kind of scheduler, of another schedule, or of
                another number of parameter groups; nothing is changed.
        """
        missing = _ENTRIES - state_dict.keys()
        if missing:
            raise ValueError(
                f"`state_dict` must come from ExampleLR.state_dict, got one without "
                f"{', '.join(sorted(missing))}. Schedulers of torch count steps, and how many "
                "examples those were is not in their state."
            )
        groups = self.optimizer.param_groups
        if len(state_dict["base_lrs"]) != len(groups):
            raise ValueError(
                "`state_dict` must hold a rate for each parameter group, "
                f"got {len(state_dict['base_lrs'])} for {len(groups)} groups. "
                "Add the groups that the saved run had before loading."
            )
        self._check_same_schedule(state_dict)
        # The rates of now too: scaled apart from the first ones, they are not quite the product.
        rates = zip(groups, state_dict["base_lrs"], state_dict["_last_lr"], strict=True)
        for group, first_rate, rate in rates:
            self._adopt(group)
            _write(group, "initial_lr", first_rate)
            _write(group, "lr", rate)
        self.last_epoch = state_dict["last_epoch"]
        self._steps.since = 0
        self._last_lr = [_copy(group["lr"]) for group in groups]

    def _check_same_schedule(self, state: dict[str, Any]) -> None:
        saved, own = state["schedule"], describe_shape(self.schedule)
        if saved != own:
            raise ValueError(
                f"`state_dict` must be of this schedule, got one of {saved}, and this is {own}. "
                "The rate would jump: resume with the schedule that was saved."
            )
        for seen, factor in state["samples"]:
            if self.schedule(seen) != factor:
                raise ValueError(
                    f"`state_dict` must be of this schedule, got one whose factor after {seen!r} "
                    f"examples was {factor!r}, and this one's is {self.schedule(seen)!r}. "
                    "The rate would jump: resume with the function that was saved."
                )

    def _samples(self) -> list[tuple[float, float]]:
        """Factors at places up to now: a function cannot be saved, but can be recognised."""
        places = {index * self.last_epoch // _SAMPLES for index in range(_SAMPLES)}
        return [(seen, self.schedule(seen)) for seen in sorted(places | {self.last_epoch})]

    def _factor(self, seen: float) -> float:
        factor = self.schedule(seen)
        if not (math.isfinite(factor) and factor >= 0):
            raise ValueError(
                "`schedule` must return a factor of at least 0, "
                f"got {factor!r} after {seen!r} examples. "
                "The rate is the first rate times this factor."
            )
        return float(factor)

    def _set_rates(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            self._adopt(group)
            _write(group, "lr", float(group["initial_lr"]) * factor)
        self._last_lr = [_copy(group["lr"]) for group in self.optimizer.param_groups]

    @staticmethod
    def _adopt(group: dict[str, Any]) -> None:
        """Take the rate of a group that is new as its first one."""
        if "initial_lr" not in group:
            group["initial_lr"] = _copy(group["lr"])

    def _watch(self) -> None:
        """Count optimizer steps for as long as this scheduler lives."""
        self._steps = _Steps()
        handle = self.optimizer.register_step_post_hook(self._steps)
        weakref.finalize(self, handle.remove)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_steps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch()

    def __repr__(self) -> str:
        return f"ExampleLR({self.schedule!r}, examples_seen={self.examples_seen!r})"


@final
class _Steps:
    """Optimizer steps since the scheduler's last call."""

    def __init__(self) -> None:
        self.since = 0

    def __call__(self, *_: Any) -> None:
        self.since += 1


def _counted(examples: Any) -> float:
    """Return a number of examples as Python's own, whole where it was whole."""
    if isinstance(examples, Tensor) and examples.numel() == 1:
        examples = examples.item()
    is_number = isinstance(examples, numbers.Real) and not isinstance(examples, bool)
    if not is_number or not (math.isfinite(examples) and float(examples) > 0):
        raise ValueError(
            f"`examples` must be positive and finite, got examples={examples!r}. The schedule "
            "counts examples, not calls: pass those of the step just made, over all "
            "micro-batches and devices."
        )
    return int(examples) if isinstance(examples, numbers.Integral) else float(examples)


def _copy(rate: float | Tensor) -> float | Tensor:
    return rate.detach().clone() if isinstance(rate, Tensor) else rate


def _write(group: dict[str, Any], name: str, value: float) -> None:
    """Set an entry; a tensor is filled, since a captured or compiled step reads that tensor."""
    if isinstance(group.get(name), Tensor):
        group[name].fill_(value)
    else:
        group[name] = value
