"""Laws that hold for every instrument, one line each to apply.

assert_world_unchanged(task, lambda: measure_noise(task))   # also when interrupted half-way
assert_world_unchanged(task, run, interrupt=False)           # for what catches interrupts
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rightbatch.errors import TaskError
from rightbatch.task import Task

Snapshot = dict[str, Any]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


class Interrupted(Exception):
    """What the tripwire raises where a test does not choose."""


def snapshot(task: Task) -> Snapshot:
    """Take down all that a measurement must leave alone: every bit, and which object holds it.

    The memory addresses are part of it, so two snapshots of one task in one process agree,
    and nothing else does.
    """
    world: Snapshot = {"sampler": _content(getattr(task.source.sampler, "generator", None))}
    tensors = dict(task.model.named_parameters(remove_duplicate=False))
    for index, group in enumerate(task.optimizer.param_groups):
        tensors |= {f"group {index} parameter {i}": p for i, p in enumerate(group["params"])}
    for name, parameter in tensors.items():
        world[f"{name}"] = _content(parameter)
        world[f"{name}.grad"] = _content(parameter.grad)
        world[f"{name} hooks"] = _hooks_of_tensor(parameter)
    for name, module in task.model.named_modules():
        world |= {f"module {name}: {key}": value for key, value in _module(module).items()}
    world |= _optimizer(task.optimizer)
    world |= _random_states()
    world["settings"] = (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
    )
    return world


def assert_same_world(before: Snapshot, after: Snapshot) -> None:
    """Name every part in which two snapshots differ."""
    changed = [key for key in before | after if before.get(key) != after.get(key)]
    assert not changed, f"changed behind the user's back: {', '.join(changed)}"


def assert_world_unchanged(task: Task, run: Callable[[], Any], *, interrupt: bool = True) -> None:
    """Run, then run again with the loss raising half-way; nothing of the task may change.

    Args:
        task: The task that ``run`` measures.
        run: Measures it. It must get as far as calling the loss twice.
        interrupt: Whether to try it with an error and with Ctrl-C half-way too.
    """
    with averaged(task) as average:

        def world() -> Snapshot:
            return snapshot(task) | {f"average {key}": _content(average[key]) for key in average}

        before = world()
        with tripwire(task) as calls:
            run()
        assert_same_world(before, world())
        assert len(calls) >= 2, f"the loss was called {len(calls)} times: nothing was measured"
        for error in (Interrupted, KeyboardInterrupt) if interrupt else ():
            half_way = (len(calls) + 1) // 2
            with (
                tripwire(task, at=half_way, error=error),
                pytest.raises((error, TaskError), match=f"at call {half_way} of the loss"),
            ):
                run()
            assert_same_world(before, world())


@contextmanager
def averaged(task: Task) -> Iterator[dict[str, Any]]:
    """Keep an average of what is trained in a hook of the optimizer, as many loops do.

    Yields:
        The average: how many steps it was updated in, and its tensors.
    """
    average = {"steps": 0, "values": [p.detach().clone() for p in task.parameters]}

    def update(*_: Any) -> None:
        average["steps"] += 1
        for mean, parameter in zip(average["values"], task.parameters, strict=False):
            mean.lerp_(parameter.detach().to(mean), 0.5)

    hook = task.optimizer.register_step_post_hook(update)
    try:
        yield average
    finally:
        hook.remove()


@contextmanager
def tripwire(
    task: Task, *, at: int | None = None, error: type[BaseException] = Interrupted
) -> Iterator[list[int]]:
    """Count the task's loss calls, and raise at call number ``at`` once the loss was computed.

    Yields:
        The numbers of the calls so far.
    """
    loss = task._loss

    class Seen:
        calls: ClassVar[list[int]] = []  # a class's own, since what the loss keeps is put back

    def counted(model: nn.Module, batch: Any) -> Tensor:
        value = loss(model, batch)
        Seen.calls.append(len(Seen.calls) + 1)
        if len(Seen.calls) == at:
            raise error(f"at call {at} of the loss")
        return value

    task._loss = counted
    try:
        yield Seen.calls
    finally:
        task._loss = loss


def _content(value: Any) -> Any:
    """Turn a value into what can be compared: bits, layout and identity for tensors."""
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        bits = dense.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        place = (value.data_ptr(), value.stride()) if value.layout is torch.strided else ()
        return (id(value), bits, value.dtype, value.device, value.requires_grad, *place)
    if isinstance(value, np.ndarray):
        return (id(value), value.tobytes())
    if isinstance(value, torch.Generator):
        return (id(value), value.get_state().numpy().tobytes())
    if isinstance(value, dict):
        return (id(value), [(key, _content(item)) for key, item in value.items()])
    if isinstance(value, set):
        return (id(value), sorted(map(repr, value)))
    if isinstance(value, list | tuple):
        return (id(value), [_content(item) for item in value])
    return value


def _module(module: nn.Module) -> Snapshot:
    seen_elsewhere = {"_parameters", "_modules"}
    contents = {
        key: _content(value)
        for key, value in vars(module).items()
        if key not in seen_elsewhere and key not in _HOOKS
    }
    contents["children"] = [(name, id(child)) for name, child in module._modules.items()]
    contents["parameters"] = [(name, id(p)) for name, p in module._parameters.items()]
    contents["buffers"] = [(name, _content(b)) for name, b in module._buffers.items()]
    contents["hooks"] = [sorted(map(str, getattr(module, name, {}))) for name in _HOOKS]
    return contents


def _hooks_of_tensor(tensor: Tensor) -> tuple[int, int]:
    return (
        len(tensor._backward_hooks or ()),
        len(getattr(tensor, "_post_accumulate_grad_hooks", None) or ()),
    )


def _optimizer(optimizer: torch.optim.Optimizer) -> Snapshot:
    world: Snapshot = {
        f"optimizer {key}": _content(value)
        for key, value in vars(optimizer).items()
        if key not in {"state", "param_groups"}
    }
    for index, group in enumerate(optimizer.param_groups):
        world[f"group {index}"] = (id(group), list(group))
        world[f"group {index} parameters"] = [id(p) for p in group["params"]]
        world |= {
            f"group {index} {key}": _content(value)
            for key, value in group.items()
            if key != "params"
        }
    world["parameters with state"] = [id(p) for p in optimizer.state]
    for index, state in enumerate(optimizer.state.values()):
        world |= {f"state {index} {key}": _content(value) for key, value in state.items()}
    return world


def _random_states() -> Snapshot:
    name, keys, *rest = np.random.get_state()
    return {
        "python's random state": random.getstate(),
        "numpy's random state": (name, np.asarray(keys).tobytes(), *rest),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "cuda's random state": [state.tobytes() for state in map(np.asarray, _cuda_states())],
    }


def _cuda_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
