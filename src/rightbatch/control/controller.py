r"""Change the batch size of a run while it trains, and everything that changes with it.

After each optimizer step the controller counts the examples, asks the schedule, and where the size
moves sets the loader, the accumulation, the optimizer's hyperparameters and the learning-rate
schedule, in one place and on all devices alike:

    step:   |batch of this size|optimizer.step|controller.step|batch of that size| ...
                                               examples seen -> schedule -> a move

Always ``batch size = micro-batch size x accumulation steps x devices``, in whole numbers.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Protocol, final

import torch
from torch import nn
from torch.optim import Optimizer

from rightbatch._comm import Comm, default_comm
from rightbatch.batches import BatchSizeSchedule, Decision, micro_batches
from rightbatch.batches.sizes import check_whole
from rightbatch.control.accumulation import accumulation_for, check_devices, share_of_units
from rightbatch.control.averages import RunningAverages
from rightbatch.control.evidence import Agreed, Evidence, Monitor
from rightbatch.control.following import Following
from rightbatch.control.moves import Move, Waiting, move_from_state, waiting_from_state
from rightbatch.lr import ExampleLR
from rightbatch.scaling.move import AutoRule

_STATE_VERSION = 2
_NOTHING = object()  # no noise, and not even none


class Loader(Protocol):
    """What is asked of a sampler; `BatchSizeSampler` and `Regrouped` have it."""

    @property
    def examples_seen(self) -> int:
        """Examples delivered since training began, over all devices."""
        ...

    @property
    def world_size(self) -> int:
        """Devices that share a batch."""
        ...

    def set_batch_size(self, batch_size: int) -> int | None:
        """Set the size over all devices; return how many batches of earlier sizes still come."""
        ...


@final
class BatchSizeController:
    r"""Drive the batch size of a training loop, and all that must follow it.

    Cut each batch with `micro_batches`, whose weights make the accumulated gradient exactly that
    of the mean over all units of the whole batch, and call `step` after ``optimizer.step()``.
    With a sampler whose workers load ahead, a move waits until the first batch of the new size is
    due, so that hyperparameters never meet batches that they are not meant for; its
    ``chunk_size`` makes that at once.

    The traps: start with hyperparameters that suit the schedule's first size. Save the states of
    model, optimizer, sampler, scheduler, monitor and model average beside the controller's, which
    holds none of them, only how fast running averages forget. A pass over the loader that is left
    early drops batches that a move may wait for.

    Args:
        optimizer: Its hyperparameters are scaled by `rightbatch.scale_hyperparameters`.
        schedule: Says the size. Where it says the rate too (`BatchSizeSchedule.smith` and
            ``seesaw``), the rate alone is set and nothing else of the optimizer is scaled.
        sampler: A `BatchSizeSampler` or `rightbatch.batches.Regrouped`, made with a number as its
            batch size; it is set at once to the schedule's. ``None``: the loop loads as many
            examples as `batch_size` says, by itself.
        max_micro_batch_size: Examples of one device that fit in its memory; larger batches are
            accumulated. ``None``: no limit.
        rule: Of the learning rate, as of `rightbatch.scale_hyperparameters`.
        scheduler: The learning-rate schedule. The controller steps it: do not do so yourself.
        monitor: A `NoiseMonitor`, for schedules that follow the noise, and as evidence for the
            rule. Rank 0's measurement holds for all.
        noise_scale: In examples, measured before; the monitor's takes its place once resolved.
        critical_batch_size: As of `rightbatch.scale_hyperparameters`.
        edge: The largest stable learning rate, as of `rightbatch.scale_hyperparameters`.
        model: Whose BatchNorm layers shall keep the memory of running statistics in examples.
            They are updated once per forward pass, so it is the micro-batch that they follow.
        model_ema: torch's ``AveragedModel`` with an exponential average, or any object with a
            ``decay``: its half-life in examples is kept. Update it yourself, once a step.
        comm: The ranks. Default: the process group that is initialised, if any.
        log: Called with every `Move`, on every rank.

    Attributes:
        batch_size: Examples of the next optimizer step over all devices.
        accumulation_steps: Micro-batches of one device in it.
        micro_batch_size: Examples of one device in each of them.
        examples_seen: Since training began, over all devices.
        moves: All of them so far.

    Raises:
        ValueError: If a size of the schedule cannot be shared out or accumulated (the nearest
            valid sizes are named), the sampler cannot supply it, a rule cannot be applied, or the
            decay of ``model_ema`` cannot be set.
        TypeError: If the scheduler counts steps instead of examples.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> schedule = BatchSizeSchedule.parse("0:8 16:32")
        >>> controller = BatchSizeController(optimizer, schedule, max_micro_batch_size=16)
        >>> for examples in (8, 8):
        ...     optimizer.step()
        ...     controller.step(examples)
        >>> controller.batch_size, controller.micro_batch_size, controller.accumulation_steps
        (32, 16, 2)
        >>> optimizer.param_groups[0]["lr"]
        0.4
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: BatchSizeSchedule,
        *,
        sampler: Loader | None = None,
        max_micro_batch_size: int | None = None,
        rule: AutoRule = "auto",
        scheduler: ExampleLR | None = None,
        monitor: Monitor | None = None,
        noise_scale: float | None = None,
        critical_batch_size: float | None = None,
        edge: float | None = None,
        model: nn.Module | None = None,
        model_ema: Any = None,
        comm: Comm | None = None,
        log: Callable[[Move], Any] | None = None,
    ) -> None:
        if max_micro_batch_size is not None:
            max_micro_batch_size = check_whole("max_micro_batch_size", max_micro_batch_size)
        self._schedule, self._sampler, self._scheduler = schedule, sampler, scheduler
        self._most, self._log = max_micro_batch_size, log
        place = optimizer.param_groups[0]["params"][0].device
        self._comm = default_comm(place) if comm is None else comm
        self._evidence = Evidence(monitor, self._comm)
        self.examples_seen = 0 if sampler is None else sampler.examples_seen
        self.moves: tuple[Move, ...] = ()
        self._waiting: Waiting | None = None
        self._stays_until: float = 0  # examples; before it, there is nothing to decide
        self._judged: object = _NOTHING  # the noise that left the size as it is
        if sampler is not None:
            check_devices(sampler.world_size, self._comm.world_size)
        self._schedule.within(multiple_of=self._comm.world_size)
        first = schedule.size_at(self.examples_seen)
        self._take_size(first.batch_size, *self._cut_of(first.batch_size))
        options = {
            "rule": rule,
            "noise_scale": noise_scale,
            "critical_batch_size": critical_batch_size,
            "edge": edge,
        }
        averages = RunningAverages(model, model_ema, self.batch_size, self.micro_batch_size)
        self._following = Following(optimizer, scheduler, averages, options)
        self._following.rate_factor = first.rate_factor
        self._try_every_size()

    def _try_every_size(self) -> None:
        """Refuse now what would fail hours into the run; the sampler ends at the present size."""
        for size in self._schedule.sizes:
            self._cut_of(size)
            if self._sampler is not None:
                self._sampler.set_batch_size(size)
            if self._following.rate_factor is None:
                self._following.try_size(self.batch_size, size)
        if self._sampler is not None:
            self._sampler.set_batch_size(self.batch_size)

    # What the loop asks.

    def micro_batches(
        self, batch: Any, *, units: Callable[[Any], float] | None = None
    ) -> Iterator[tuple[Any, float]]:
        """Cut a batch of this device into micro-batches, with the weights of their mean losses.

        Every rank must call it, once for each optimizer step: the weights rest on the units of
        all of them. A partial last batch makes fewer or smaller parts, with the right weights.

        Args:
            batch: Collated, of any structure that holds a tensor.
            units: Counts what the mean loss of a micro-batch runs over, such as unmasked tokens.
                Default: its examples. Where it may be 0, let the loss be 0 and not 0 / 0.

        Yields:
            A micro-batch and its `weight`: do ``(weight * mean_loss).backward()``.

        Raises:
            ValueError: If there are no units on any device.

        Example:
            >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
            >>> schedule = BatchSizeSchedule.parse("0:4")
            >>> controller = BatchSizeController(optimizer, schedule, max_micro_batch_size=2)
            >>> tokens = torch.tensor([[5, 5, 5], [5, 0, 0], [5, 5, 0], [5, 5, 0]])  # 0: padding
            >>> count = lambda part: (part > 0).sum().item()
            >>> [weight for _, weight in controller.micro_batches(tokens, units=count)]
            [0.5, 0.5]
        """
        if self._takes_whole and units is None:
            yield batch, 1.0
            return
        parts = list(micro_batches(batch, self.micro_batch_size))
        counts = [count if units is None else float(units(part)) for part, count in parts]
        total = self._agreed(math.fsum(counts))
        for (part, _), count in zip(parts, counts, strict=True):
            yield part, self.weight(count, total)

    def weight(self, units: float, total_units: float) -> float:
        """Return what to multiply the mean loss of a micro-batch by.

        Mean losses of unequal micro-batches must not be averaged equally. With this weight the
        gradient is that of the mean over all units, after data-parallel training has averaged
        over the devices.

        Args:
            units: That the mean loss ran over: examples, or unmasked tokens.
            total_units: Of the whole optimizer step: all micro-batches of all devices.

        Returns:
            ``units x devices / total_units``.

        Raises:
            ValueError: If the units are not between 0 and the total, or the total is 0.

        Example:
            >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
            >>> controller = BatchSizeController(optimizer, BatchSizeSchedule.parse("0:8"))
            >>> controller.weight(30, 40), controller.weight(10, 40)
            (0.75, 0.25)
        """
        return share_of_units(units, total_units, self._comm.world_size)

    # A step.

    def step(self, examples: int | None = None) -> None:
        """Count the examples of the optimizer step just made, and move the size if it is time.

        Args:
            examples: Of this device in that step. May be left out with a sampler, which counts.

        Raises:
            ValueError: If the examples are absent, or not those that the sampler delivered since
                the last call; or if somebody else stepped the scheduler. Nothing is counted then.
        """
        counted = self._counted(examples)
        if self._scheduler is not None:
            self._check_one_clock(self._scheduler)
        self.examples_seen += counted
        if self.examples_seen >= self._stays_until:  # most steps of a run end here
            self._advance()
        if self._scheduler is not None:
            # After a move, so that the rate is first rate times factor, as a resumed run has it.
            self._scheduler.step(counted)

    def _counted(self, examples: int | None) -> int:
        if self._sampler is None:
            check_whole("examples", examples)  # pyright: ignore - None is refused there
            return round(self._agreed(float(examples or 0)))
        delivered = self._sampler.examples_seen - self.examples_seen
        share = -(-delivered // self._comm.world_size)  # a last batch is padded to equal shares
        if delivered < 1 or examples not in (None, share):
            told = "" if examples is None else f" and examples={examples!r}"
            raise ValueError(
                "`step` must be called once for each batch that the sampler delivers, got "
                f"{delivered} examples from it since the last call{told}. Iterate "
                "`sampler.follow(loader)`, step once a batch, and when resuming load the states "
                "of both."
            )
        return delivered

    def _check_one_clock(self, scheduler: ExampleLR) -> None:
        if scheduler.examples_seen != self.examples_seen:
            raise ValueError(
                "`scheduler` must be stepped by the controller alone, got one after "
                f"{scheduler.examples_seen} examples where {self.examples_seen} were seen. "
                "Stepped twice it runs ahead: leave out your own `scheduler.step`, and when "
                "resuming load the states of both."
            )

    def _advance(self) -> None:
        noise = self._evidence.noise()
        if self._waiting is not None:
            self._waiting = self._waiting.after_a_batch()
            if self._waiting.batches:
                return
            decision, self._waiting = self._waiting.decision, None
            self._move(decision, noise)
        elif noise is self._judged or noise == self._judged:
            return
        decision = self._schedule.size_at(self.examples_seen, noise)
        lag = 0
        if decision.batch_size != self.batch_size and self._sampler is not None:
            lag = self._sampler.set_batch_size(decision.batch_size) or 0
        if lag:
            self._waiting = Waiting(decision, lag)
            self._stays_until = 0
            return
        self._stays_until = self._schedule.unchanged_until(self.examples_seen)
        if (
            decision.batch_size != self.batch_size
            or decision.rate_factor != self._following.rate_factor
        ):
            self._judged = _NOTHING
            self._move(decision, noise)
        else:
            # From then on, only something newly measured can change it.
            is_free = self._stays_until <= self.examples_seen
            self._judged = noise if is_free else _NOTHING

    def _move(self, decision: Decision, noise: Agreed | None) -> None:
        before, cut = self.batch_size, self._cut_of(decision.batch_size)
        scaling, valid = self._following.move(
            before, decision, cut[1], None if noise is None else noise.noise_scale
        )
        self._take_size(decision.batch_size, *cut)
        move = Move(
            examples_seen=self.examples_seen,
            from_batch_size=before,
            to_batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            accumulation_steps=self.accumulation_steps,
            reason=decision.reason,
            scaling=scaling,
            valid=valid,
        )
        self.moves = (*self.moves, move)
        if self._log is not None:
            self._log(move)

    def _cut_of(self, batch_size: int) -> tuple[int, int]:
        """Return the accumulation steps and the micro-batch size of a batch size."""
        devices = self._comm.world_size
        steps = accumulation_for(batch_size, devices, self._most)
        return steps, batch_size // (steps * devices)

    def _take_size(self, batch_size: int, accumulation_steps: int, micro_batch_size: int) -> None:
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.accumulation_steps = accumulation_steps
        alone = self._comm.world_size == 1 and self._sampler is not None
        self._takes_whole = alone and accumulation_steps == 1  # what the sampler delivers

    def _agreed(self, value: float) -> float:
        if self._comm.world_size == 1:
            return value
        return self._comm.sum(torch.tensor([value], dtype=torch.float64)).item()

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain JSON types; call it after `step`."""
        return {
            "version": _STATE_VERSION,
            "schedule": self._schedule.state_dict(),
            "examples_seen": self.examples_seen,
            "batch_size": self.batch_size,
            "rate_factor": self._following.rate_factor,
            "averages": self._following.averages.state_dict(),
            "waiting": None if self._waiting is None else asdict(self._waiting),
            "moves": [asdict(move) for move in self.moves],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another controller of the same schedule stood, to the bit.

        The states of model, optimizer, sampler, scheduler and monitor are loaded apart, before or
        after. The number of devices and what fits on one may differ: sizes count the examples of
        all devices, and are shared out and accumulated anew.

        Raises:
            ValueError: If the state is of another version or schedule; nothing is changed.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"`state` must be of version {_STATE_VERSION}, got {state.get('version')!r}. "
                "It was saved by another release: begin a new run."
            )
        self._following.averages.check_state(state["averages"])
        self._schedule.load_state_dict(state["schedule"])
        self.examples_seen = state["examples_seen"]
        self._take_size(state["batch_size"], *self._cut_of(state["batch_size"]))
        self._following.rate_factor = state["rate_factor"]
        self._following.averages.load_state_dict(
            state["averages"], self.batch_size, self.micro_batch_size
        )
        self._waiting = waiting_from_state(state["waiting"])
        self._stays_until, self._judged = 0, _NOTHING
        self.moves = tuple(move_from_state(move) for move in state["moves"])
        if self._sampler is not None:
            coming = self if self._waiting is None else self._waiting.decision
            self._sampler.set_batch_size(coming.batch_size)
