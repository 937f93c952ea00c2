"""The noise scale of a run, while it runs, for a share of the time that you choose.

    step:      |backward|observe|backward|observe|clip|optimizer.step|   every n-th is measured
    measured:   hooks: |g_1|^2           |g_2|^2   |g_1 + g_2|^2   ->  both parts, summed up

Small and big gradients are taken at the same weights. Both parts are averaged and divided once,
at the end, so a step that could not resolve ``|G|^2`` by itself still tells something.
"""

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, Self, final

import torch
from torch import nn
from torch.optim import Optimizer

from rightbatch._comm import Comm, comm_for, is_sharded
from rightbatch._time import Clock, wall_clock
from rightbatch.errors import MixesExamples, TaskError
from rightbatch.noise.averages import Averages
from rightbatch.noise.geometry import fitting_geometry, preconditioners
from rightbatch.noise.measured_step import MeasuredStep
from rightbatch.noise.pacing import Pace
from rightbatch.noise.small_gradients import (
    ExtraPass,
    Loss,
    Reported,
    SingleExamples,
    Source,
    Units,
    WholeMicroBatches,
)
from rightbatch.noise.squares import Squares, named_parameters
from rightbatch.results import NoiseScale
from rightbatch.task.preflight import mixes_examples

_ONE_OF, _MOST_EXAMPLES = 64, 8  # single examples of a batch; they take as much of its memory
_FORGOTTEN = 3  # optimizer steps without a call of `observe` before we say so
_HALF_LIFE_STEPS = 50  # measured steps that a half-life spans, where none was given
_STATE_VERSION = 1
_COUNTS = ("_steps", "_examples_seen", "_expected", "_batch_size")


class Scaler(Protocol):
    """What we use of ``torch.amp.GradScaler``."""

    def get_scale(self) -> float:
        """Return the factor in force."""
        ...


class Writer(Protocol):
    """What we use of TensorBoard's ``SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Log one number."""
        ...


@final
class NoiseMonitor:
    r"""Measure the noise scale inside your own training loop, without changing it.

    Use it as a context manager around the loop, and call `observe` after every backward pass,
    before gradients are clipped or unscaled. Small gradients come from what the loop offers, in
    this order: the micro-batches of gradient accumulation, the ranks of data-parallel training
    (``DistributedDataParallel`` or ``fully_shard``), the first few examples of a batch. Training
    is bit for bit what it would be without.

    Both parts are averaged over measured steps, forgetting by examples seen, so that a change of
    the batch size needs no change here. Steps with NaN or infinity are left out and counted.

    Traps: the average lags behind by about its half-life. With BatchNorm in train mode the
    micro-batch is the unit. Clipping before `observe` shows the clipped gradient. Single examples
    are seen in the model's forward pass: a penalty on weights that is part of the loss belongs
    into the optimizer (``weight_decay``).

    Args:
        model: The module whose forward pass the loop calls: with its data-parallel wrapper.
        optimizer: The optimizer that the loop steps.
        every: Measure every n-th step. Default: as often as ``budget`` allows.
        budget: Share of the training time that measuring may take, in (0, 1).
        examples: Single examples to look at, where no micro-batches or ranks are there. The
            error of ``|G|^2`` falls with ``1 + 1/examples``, so more than a few change little,
            and what is kept of them takes memory. Default: one of 64, at least 1, at most 8.
        half_life_examples: Examples after which a measurement counts half. Default: what 50
            measured steps see.
        loss: ``loss(model, batch)`` -> mean loss. Needed only for models whose single examples
            cannot be seen in one pass (compiled ones, recurrent ones); pass ``batch=`` to
            `observe` then.
        scaler: The ``GradScaler``, if you use one.
        comm: The ranks. Default: the process group, for data-parallel models.
        clock: Monotonic seconds.

    Attributes:
        averages: Both parts in every metric, as estimates with their variances.

    Raises:
        ValueError: If an option is out of range.
        TaskError: If the optimizer trains none of the model's parameters.

    Example:
        Four examples with gradients 3, 1, 1, -1 at weight 0, one micro-batch each: their mean is
        1 and their variance 8/3, so |G|^2 is 1 - (8/3)/4 = 1/3.

        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.zero_()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        >>> with NoiseMonitor(model, optimizer, every=1) as monitor:
        ...     for step in range(2):
        ...         optimizer.zero_grad()
        ...         for slope in (3.0, 1.0, 1.0, -1.0):
        ...             loss = model(torch.tensor([[slope]])).mean()
        ...             (loss / 4).backward()
        ...             monitor.observe(1, factor=1 / 4)
        ...         optimizer.step()
        >>> noise = monitor.result()
        >>> round(noise.grad_sq, 4), round(noise.trace_cov, 4)
        (0.3333, 2.6667)

    References:
        McCandlish et al. (2018), https://arxiv.org/abs/1812.06162, appendix A.1; averages of both
        parts instead of ratios, over any weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        every: int | None = None,
        budget: float = 0.01,
        examples: int | None = None,
        half_life_examples: float | None = None,
        loss: Loss | None = None,
        scaler: Scaler | None = None,
        comm: Comm | None = None,
        clock: Clock = wall_clock,
    ) -> None:
        _check_options(every, budget, examples, half_life_examples)
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._scaler, self._examples = scaler, examples
        self._comm = comm if comm is not None else comm_for(model)
        groups = (group["params"] for group in optimizer.param_groups)
        self._named = named_parameters(
            model, list(dict.fromkeys(p for group in groups for p in group if p.requires_grad))
        )
        if not self._named:
            raise TaskError(
                "`optimizer` must train a parameter, got none with requires_grad=True. "
                "There is no gradient to measure: unfreeze what you train."
            )
        self._parameters = [parameter for _, parameter in self._named]
        self._sharded = any(is_sharded(parameter) for parameter in self._parameters)
        self._pace = Pace(every, budget, clock, self._parameters[0].device)
        self.averages = Averages(self._named, half_life_examples)
        self._source_name = ""
        self._steps = 0
        self._examples_seen = 0.0  # by this rank
        self._expected = 0  # backward passes of the last whole step
        self._batch_size = 0  # examples of its last backward pass
        self._passes = 0  # backward passes of this step so far
        self._forgotten = 0  # steps without any
        self._logged = 0  # measured steps when `log` last wrote
        self._entered = False
        self._armed: MeasuredStep | None = None
        self._watching, self._hooks = ExitStack(), ExitStack()  # for a step, for the loop

    def __enter__(self) -> Self:
        """Begin to watch the optimizer's steps."""
        handle = self._optimizer.register_step_post_hook(lambda *_: self._step_ended())
        self._hooks.callback(handle.remove)
        self._entered, self._passes = True, 0
        self._arm_if_due()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove every hook."""
        self._entered = False
        self._disarm()
        self._hooks.close()

    def observe(
        self, units: Units, *, factor: float = 1.0, examples: int | None = None, batch: Any = None
    ) -> None:
        """Tell that a backward pass just ended; call it before clipping and `optimizer.step`.

        Args:
            units: What the mean loss ran over: examples, or unmasked tokens. One number, or one
                for each example of the batch.
            factor: What the mean loss was multiplied by before ``backward()``, such as
                ``1 / accumulation_steps``. The scaler's factor is added by itself.
            examples: Examples in the batch, where units are something else.
            batch: The batch, where the monitor was given a loss.

        Raises:
            ValueError: If units or factor are not positive and finite.
            TaskError: If small gradients cannot be had; the message says what to do.
        """
        reported = Reported(units, factor, examples, batch)
        self._passes += 1
        self._batch_size = round(reported.examples)
        self._examples_seen += reported.examples
        if self._armed is not None:
            with self._pace.working(), torch.no_grad():
                if self._scaler is not None:
                    reported.factor *= self._scaler.get_scale()
                self._armed.take(reported)

    def result(self) -> NoiseScale:
        """Return the average so far, in examples, with its interval.

        Returns:
            As of `measure_noise`; ``status`` is ``NOT_YET`` before the first measured step.
            ``loss`` is ``None``: the monitor never sees it.
        """
        return self.averages.result(
            small_gradients=self._source_name,
            ghost=mixes_examples(self._model),
            fitting=fitting_geometry(self._optimizer),
        )

    def log(
        self,
        writer: Writer | Callable[[str, float, int], Any],
        step: int | None = None,
        *,
        prefix: str = "noise/",
    ) -> None:
        """Log the averages, once per measured step; call it as often as you like.

        The ratio is that of the averages: averaging logged ratios in a dashboard would be biased.

        Args:
            writer: A TensorBoard ``SummaryWriter``, or a function of (name, value, step).
            step: Yours; by default the optimizer steps seen.
            prefix: Of the names.
        """
        if self.averages.measured == self._logged:
            return
        self._logged = self.averages.measured
        write = writer if callable(writer) else writer.add_scalar
        noise, at = self.result(), self._steps if step is None else step
        numbers = {
            "noise_scale": noise.noise_scale,
            "low": noise.low,
            "high": noise.high,
            "grad_sq": noise.grad_sq,
            "trace_cov": noise.trace_cov,
            "steps_skipped": noise.steps_skipped,
        }
        for name, value in numbers.items():
            if value is not None:  # an open end is no point in a chart
                write(prefix + name, float(value), at)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as plain JSON types; call it between steps."""
        return {
            "version": _STATE_VERSION,
            "parameters": [name for name, _ in self._named],
            "pace": self._pace.state_dict(),
            "averages": self.averages.state_dict(),
            "source": self._source_name,
            "counts": {name: getattr(self, name) for name in _COUNTS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another monitor of the same model stood; call it before the loop.

        Raises:
            ValueError: If the state is of another version or of another model.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"`state` must be of version {_STATE_VERSION}, got {state.get('version')!r}. "
                "It was saved by another release: start a new monitor."
            )
        names = [name for name, _ in self._named]
        if state["parameters"] != names:
            odd = sorted(set(state["parameters"]) ^ set(names))[:5]
            raise ValueError(
                f"`state` must be of the same parameters in the same order, got a difference in "
                f"{odd or 'their order'}. Build the same model and optimizer before loading."
            )
        self._pace.load_state_dict(state["pace"])
        self.averages.load_state_dict(state["averages"])
        self._source_name = state["source"]
        for name in _COUNTS:
            setattr(self, name, state["counts"][name])
        self._arm_if_due()

    # The life of a step.

    def _arm_if_due(self) -> None:
        self._disarm()
        if self._entered and self._pace.due(self._steps) and self._expected:
            with self._pace.working():
                metrics = None
                if not self._sharded:  # second moments of shards do not fit whole gradients
                    metrics = preconditioners(self._optimizer, self._parameters)
                squares = Squares(self._parameters, metrics)
                self._source_name, source = self._choose_source(squares)
                self._armed = MeasuredStep(self._model, squares, source, sharded=self._sharded)
                self._watching.enter_context(self._armed.watched())

    def _disarm(self) -> None:
        self._armed = None
        self._watching.close()

    def _choose_source(self, squares: Squares) -> tuple[str, Source]:
        if self._comm.world_size > 1:
            return "ranks", WholeMicroBatches(self._model, squares)
        if self._expected > 1:
            return "micro_batches", WholeMicroBatches(self._model, squares)
        if mixes_examples(self._model):
            raise MixesExamples(
                "single examples must have gradients of their own, but BatchNorm in train mode "
                "mixes them, and a step has one micro-batch only. Accumulate at least two "
                "micro-batches per step, use GroupNorm, or measure with rightbatch.measure_noise."
            )
        few = min(_MOST_EXAMPLES, max(1, self._batch_size // _ONE_OF))
        examples = few if self._examples is None else self._examples
        if self._loss is not None:
            return "extra_pass", ExtraPass(
                self._model, self._optimizer, squares, self._loss, examples=examples
            )
        return "examples", SingleExamples(
            self._model, squares, examples=examples, batch_size=self._batch_size
        )

    def _step_ended(self) -> None:
        armed, passes = self._armed, self._passes
        self._forgotten = 0 if passes else self._forgotten + 1
        if self._forgotten >= _FORGOTTEN:
            raise TaskError(
                f"`observe` must be called after each backward pass, got {_FORGOTTEN} optimizer "
                "steps without a call. Nothing is measured otherwise: call it before "
                "optimizer.step(), or leave the monitor's `with` block."
            )
        if armed is not None:
            with self._pace.working(), torch.no_grad():
                self._add(armed)
            self._disarm()
        self._expected, self._passes = passes, 0
        self._pace.ended(self._steps, self._comm, measured=armed is not None)
        self._steps += 1
        self._arm_if_due()

    def _add(self, armed: MeasuredStep) -> None:
        averages = self.averages
        solved = armed.solve(self._comm, examples_seen=self._examples_seen)
        averages.skipped += armed.abandoned + (solved is None)
        if solved is None:
            return
        uncovered = armed.source.uncovered
        if len(uncovered) == len(self._parameters):
            raise TaskError(
                "single examples' gradients must be visible in one pass, but no parameter's are: "
                "the model is compiled, or made of layers without a rule. Accumulate at least two "
                "micro-batches per step, or pass `loss=` to the monitor and `batch=` to `observe`."
            )
        if averages.half_life_examples is None and self._pace.every is not None:
            steps = _HALF_LIFE_STEPS * self._pace.every
            averages.half_life_examples = steps * solved.examples
        averages.add(solved, armed.names, uncovered)


def _check_options(
    every: int | None, budget: float, examples: int | None, half_life_examples: float | None
) -> None:
    if not 0 < budget < 1:
        raise ValueError(
            f"`budget` must lie between 0 and 1, got {budget!r}. It is the share of the training "
            "time that measuring may take: 0.01 is a good choice."
        )
    for name, value, why in (
        ("every", every, "It counts optimizer steps: leave it out to keep to the budget."),
        ("examples", examples, "It counts single examples: leave it out for one of 64."),
        ("half_life_examples", half_life_examples, "Leave it out for 50 measured steps."),
    ):
        if value is not None and not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value!r}. {why}")
