"""Predict the peak memory of a training step of any size without memory, data or state.

    parameters, buffers, optimizer state   --swapped for fakes-->   full steps on a fake batch,
    what else the task's code refers to    --one fake each------>   while LiveBytes counts
    two small real batches                 --their shapes------->

A fake tensor has a shape, a type and a device, but no numbers. Two small batches of real data tell
which dimensions grow with the batch. Afterwards everything real is back in its place, and nothing
fake is left in a criterion, a list of losses or a hook's record.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, is_fake
from torch.optim import Optimizer
from torch.utils._foreach_utils import _get_foreach_kernels_supported_devices
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from rightbatch.errors import RightBatchError
from rightbatch.hardware.compiled import is_compiled
from rightbatch.hardware.leftovers import no_fakes_left
from rightbatch.hardware.live_bytes import LiveBytes
from rightbatch.hardware.templates import SIZES, check_alike, resized
from rightbatch.hardware.workload import (
    data_tensors,
    held_tensors,
    take_step,
    what_runs,
    without_storages_of,
)
from rightbatch.task import Task
from rightbatch.task.data import to_device
from rightbatch.task.reachable import reachable

_CUDA_GRANULE = 512  # bytes; what the caching allocator rounds up to
_DRAWS = 8  # of three widths at random, all are alike once in 6,561 times
_STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class CannotPredict(RightBatchError):
    """The task's step does not run on tensors without numbers."""


@final
class FakeSteps:
    """Peaks of full steps at any batch size, in bytes of live tensors.

    Args:
        task: What is trained. It must not be used by anything else inside `fakes_of`.
        templates: Real batches of 2 and of 3 examples on the host, alike but for their size.
        accumulation_steps: Micro-batches per step; from the second on gradients are held.
    """

    def __init__(
        self,
        task: Task,
        templates: tuple[Any, Any],
        *,
        accumulation_steps: int,
        mode: FakeTensorMode,
        runs: Sequence[Any],
        data: Sequence[Tensor],
    ) -> None:
        self._task, self._templates = task, templates
        self._accumulation_steps = accumulation_steps
        self._mode, self._runs = mode, runs
        self._code = (task._loss, task._weight, task.model)  # whose keeping a size makes itself
        self._data = data
        self._fakes: dict[int, tuple[Tensor, Tensor]] = {}  # with what is real, whose id it is
        self._guard = _ScalarGuard()
        self._peaks: dict[int, int] = {}
        self._keeps = False

    @property
    def guarded(self) -> bool:
        """Whether the step asked for a number, which was made up."""
        return self._guard.asked

    @property
    def sizes(self) -> dict[int, int]:
        """All peaks so far, by batch size."""
        return dict(self._peaks)

    def peak_bytes(self, size: int) -> int:
        """Predict the peak of one step, all that training holds on the device included.

        Raises:
            CannotPredict: If the step cannot run without numbers.
        """
        if size not in self._peaks:
            try:
                self._peaks[size] = self._run(size)
            except Exception as error:
                raise CannotPredict(
                    f"a training step must run on tensors without numbers to predict its memory, "
                    f"got {type(error).__name__}: {str(error)[:200]}. Real steps are tried instead."
                ) from error
        return self._peaks[size]

    def _run(self, size: int) -> int:
        granule = 1 if self._task.device.type == "cpu" else _CUDA_GRANULE
        data = [self._fake(tensor) for tensor in self._data]
        # A compiled function that runs under a mode once is never compiled again.
        eager = torch.compiler.set_stance("force_eager")
        with eager, no_fakes_left(self._code), self._mode:
            held, kept = self._held(), self._kept()
            with LiveBytes(held, uncounted=data, granularity=granule) as alive:
                with self._guard.unless_asked_by(self._task.optimizer):
                    # The first step of all makes the optimizer's state, and the first of each size
                    # what the code keeps until the next.
                    for _ in range(1 if self._peaks and not self._keeps else 2):
                        take_step(self._task, lambda: self._batch(size), self._accumulation_steps)
                        before, held = held, self._held()
                        alive.let_go(without_storages_of(held, before))
                        self._keeps = self._keeps or not self._kept() <= kept
                    self._task.optimizer.zero_grad(set_to_none=True)
                return alive.peak_bytes

    def _held(self) -> list[Tensor]:
        """List what training holds now; in the place of what is real, what its code computes on."""
        found = held_tensors(self._task, self._runs, self._data)
        return [self._fake(tensor) for tensor in found]

    def _kept(self) -> set[int]:
        """Name the tensors that the code refers to, but for gradients that the next step drops."""
        groups = self._task.optimizer.param_groups
        dropped = {id(parameter.grad) for group in groups for parameter in group["params"]}
        return {id(thing) for thing in reachable(self._code) if isinstance(thing, Tensor)} - dropped

    def _fake(self, tensor: Tensor) -> Tensor:
        """Return the one fake of a tensor, which operations on it use as well while it lives."""
        if is_fake(tensor):
            return tensor
        if id(tensor) not in self._fakes:
            try:
                fake = self._mode.from_tensor(tensor, static_shapes=True)
            except Exception:
                fake = tensor  # of a kind that has no fake; it takes its memory all the same
            self._fakes[id(tensor)] = tensor, fake
        return self._fakes[id(tensor)][1]

    def _batch(self, size: int) -> Any:
        return to_device(resized(*self._templates, size), self._task.device)


@contextmanager
def fakes_of(
    task: Task, batch_of: Callable[[int], Any], *, accumulation_steps: int = 1
) -> Iterator[FakeSteps]:
    """Swap all that a task trains for fakes, for the time of a ``with`` block.

    Args:
        task: Left bit for bit as it was; see `no_fakes_left` for what its code keeps elsewhere.
        batch_of: Makes a real batch of so many examples on the host, another one at every call.
            Batches of one size must not differ in shape.
        accumulation_steps: Micro-batches per optimizer step.

    Yields:
        Predicts peaks.

    Raises:
        CannotPredict: If a parameter has no fake, the data has no batch dimension, shapes differ
            from draw to draw, or any of the code is compiled.

    Example:
        A weight of 1,000 floats, its gradient, inputs of 1,000 floats per example: with 3 examples
        the batch, their product with the weight (three numbers), and little else.

        >>> model = torch.nn.Linear(1000, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> task = Task(model, optimizer, torch.zeros(9, 1000), lambda m, x: m(x).mean())
        >>> with fakes_of(task, lambda size: torch.zeros(size, 1000)) as fakes:
        ...     small, large = fakes.peak_bytes(3), fakes.peak_bytes(103)
        >>> 100 * 4000 <= large - small < 100 * 4100
        True
    """
    if is_compiled(task):
        raise CannotPredict(
            "a step must run operation by operation to predict its memory, got compiled code, "
            "which takes less of it. Real steps are tried instead."
        )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    runs = what_runs(task)
    with task.preserved(weights=False), no_fakes_left(runs):
        templates = tuple(batch_of(size) for size in SIZES)
        draws = [batch_of(SIZES[0]) for _ in range(_DRAWS)]
        try:
            check_alike([templates[0], *draws])
        except ValueError as error:
            raise CannotPredict(f"{error}. Real steps are tried instead.") from error
        del draws
        data = data_tensors(task, runs)
        try:
            undo = _swap(task, runs, mode)
        except Exception as error:
            raise CannotPredict(
                f"every parameter must have a counterpart without numbers, got "
                f"{type(error).__name__}: {str(error)[:200]}. Real steps are tried instead."
            ) from error
        try:
            yield FakeSteps(
                task,
                (templates[0], templates[1]),
                accumulation_steps=accumulation_steps,
                mode=mode,
                runs=runs,
                data=data,
            )
        finally:
            undo()


def _swap(task: Task, runs: Sequence[Any], mode: FakeTensorMode) -> Callable[[], None]:
    """Put fakes in the place of parameters, buffers and state; return the optimizer's way back.

    Also in modules beside the model: a criterion may have parameters that are trained. `preserved`
    puts the model's own back, and `no_fakes_left` the others'.
    """
    fakes: dict[int, Tensor] = {}
    reals: list[Tensor] = []  # kept alive, so that their ids stay theirs

    def fake(real: Any) -> Any:
        if not isinstance(real, Tensor):
            return real
        if id(real) not in fakes:
            reals.append(real)
            fakes[id(real)] = mode.from_tensor(real, static_shapes=True)
        return fakes[id(real)]

    own = dict.fromkeys(task.model.modules())
    found = [thing for thing in reachable(runs) if isinstance(thing, nn.Module)]
    for part in own:
        _swap_in(vars(part), fake)
    for part in found:
        if part not in own:
            # A kind that has no fake may never be asked, or work as it is.
            with suppress(Exception):
                _swap_in(vars(part), fake)
    return _swap_optimizer(task.optimizer, fake)


def _swap_in(module: dict[str, Any], fake: Callable[[Any], Any]) -> None:
    for tensors in (module["_parameters"], module["_buffers"]):
        tensors.update({name: fake(real) for name, real in tensors.items()})


def _swap_optimizer(optimizer: Optimizer, fake: Callable[[Any], Any]) -> Callable[[], None]:
    state = optimizer.state
    # Hooks of a step tell the world outside, such as an average of the model: not of fakes.
    hooks = {name: getattr(optimizer, name) for name in _STEP_HOOKS}
    groups = [dict(group) for group in optimizer.param_groups]
    params = [list(group["params"]) for group in groups]

    def undo() -> None:
        optimizer.state = state
        for name, own in hooks.items():
            setattr(optimizer, name, own)
        for group, before, trained in zip(optimizer.param_groups, groups, params, strict=True):
            group.update(before)
            group["params"] = trained

    try:
        for name in hooks:
            setattr(optimizer, name, OrderedDict())
        optimizer.state = defaultdict(
            dict, {fake(parameter): tree_map(fake, own) for parameter, own in state.items()}
        )
        for group in optimizer.param_groups:
            group["params"] = [fake(parameter) for parameter in group["params"]]
            group.update({k: fake(value) for k, value in group.items() if k != "params"})
            if _steps_on_lists(group):
                group["foreach"] = True  # torch would not choose it for a fake
    except BaseException:
        undo()
        raise
    return undo


def _steps_on_lists(group: dict[str, Any]) -> bool:
    """Whether torch steps on all tensors at once by default: on a device, with a copy of them."""
    if group.get("foreach", False) is not None or group.get("fused") or group.get("differentiable"):
        return False
    if isinstance(group.get("lr"), Tensor) and not group.get("capturable"):
        return False
    kinds = _get_foreach_kernels_supported_devices()
    return all(parameter.device.type in kinds for parameter in group["params"])


@final
class _ScalarGuard(TorchDispatchMode):
    """Answers when a step asks for a number: one, or that a condition does not hold.

    It follows one branch of whatever depends on the data, so it remembers that it was asked;
    optimizers that read their own step counter do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked = False
        self._in_optimizer = False

    @contextmanager
    def unless_asked_by(self, optimizer: Optimizer) -> Iterator[None]:
        """Answer for the time of a ``with`` block."""

        def set_to(inside: bool) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                self._in_optimizer = inside

            return hook

        handles = [
            optimizer.register_step_pre_hook(set_to(True)),
            optimizer.register_step_post_hook(set_to(False)),
        ]
        try:
            with self:
                yield
        finally:
            self._in_optimizer = False
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Pass everything on but requests for a number."""
        if func is not torch.ops.aten._local_scalar_dense.default:
            return func(*args, **(kwargs or {}))
        self.asked = self.asked or not self._in_optimizer
        dtype = args[0].dtype
        if dtype == torch.bool:
            return False
        if dtype.is_complex:
            return complex(1.0)
        return 1.0 if dtype.is_floating_point else 1
