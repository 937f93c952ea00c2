"""Put everything back: the promise that no measurement changes anything behind your back.

`preserved` copies to host memory whatever training touches and restores it in place, so that
every tensor, dictionary and list keeps its identity: parameters, buffers, gradients (also their
absence), optimizer state (also its absence) and groups, train/eval flags, ``requires_grad``,
hooks, the attributes that modules set on themselves, every random state, and what the loss and
hooks keep for themselves: averages of the model, running centres, queues of features.
"""

import random
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch.task.kept import keep_reached, keep_references, keep_tensor, keep_values
from rightbatch.task.reachable import reachable
from rightbatch.task.storages import Restore

# Files, threads, loaders and compiled code go with their objects; a clock never runs backwards.
_MACHINERY: Final = (
    *("_io.", "_queue.", "_thread.", "asyncio.", "concurrent.", "io.", "logging.", "queue."),
    *("multiprocessing.", "selectors.", "socket.", "ssl.", "subprocess.", "threading."),
    *("torch._", "torch.distributed.", "torch.fx.", "torch.utils.data."),
)


@contextmanager
def preserved(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    weights: bool = True,
    code: Iterable[Any] = (),
    apart: Iterable[Any] = (),
) -> Iterator[None]:
    """Restore model, optimizer and random states bit for bit on leaving, however it is left.

    A Ctrl-C that arrives while things are put back waits until they are. What iterators have given
    out, what a class keeps in its own attributes, and what files, queues and threads hold cannot be
    put back; counts and records without tensors that are no module's go on.

    Args:
        model: Whose parameters, buffers, gradients, flags and attributes to keep.
        optimizer: Whose state and groups to keep.
        weights: Whether parameters and optimizer state may change. ``False`` where the work
            inside takes no step: then no copy of them is made.
        code: Functions and objects that are called inside. What they refer to is kept as well:
            see `reachable` and `keep_reached`.
        apart: What `code` may refer to and nobody changes: the data set.

    Yields:
        Nothing.
    """
    # Parameters that the optimizer trains but the model does not own (a temperature in the
    # loss) are trained too, so they are kept too.
    parameters = dict.fromkeys(model.parameters())
    parameters.update(dict.fromkeys(p for group in optimizer.param_groups for p in group["params"]))
    restorers = [_keep_random_states(), _keep_flags(model, list(parameters))]
    seen: dict[int, Any] = {}
    if not weights:
        moments = (value for state in optimizer.state.values() for value in state.values())
        seen.update({id(kept): kept for kept in (*parameters, *moments)})
        apart = (*apart, optimizer, optimizer.state, optimizer.param_groups)
    for parameter in parameters:
        _keep((parameter, parameter.grad), restorers, seen)
    # Scripted modules hold their buffers out of sight of `vars`.
    parts = [*map(vars, model.modules()), tuple(model.buffers())]
    for part in [*parts, vars(optimizer)] if weights else parts:
        _keep(part, restorers, seen)
    restorers += _keep_code(code, apart, seen)
    try:
        yield
    finally:
        with _interrupts_held_back(), torch.no_grad(), ExitStack() as stack:
            # The last first, so that gradients come after the values whose type they must have;
            # every one of them, whatever another one raises.
            for restore in restorers:
                stack.callback(restore)


def _keep(value: Any, restorers: list[Restore], seen: dict[int, Any]) -> None:
    """Add what puts a mutable value back in place; follow containers into their items."""
    if id(value) in seen:
        return
    if isinstance(value, Tensor):
        restore = keep_tensor(value)
    elif isinstance(value, dict | list | set):
        restore = keep_references(value)
    else:
        restore = keep_values(value)
    if restore is not None:
        seen[id(value)] = value
        restorers.append(restore)
    if isinstance(value, dict | list | tuple):
        for item in list(value.values() if isinstance(value, dict) else value):
            _keep(item, restorers, seen)


def _keep_code(code: Iterable[Any], apart: Iterable[Any], seen: Mapping[int, Any]) -> list[Restore]:
    """List what puts back all that code refers to and that is not kept yet."""
    outside = {id(thing): thing for thing in apart}

    def is_outside(thing: Any) -> bool:
        return id(thing) in outside or _is_machinery(type(thing))

    reached = reachable(code, skipped=is_outside)
    return keep_reached(
        [thing for thing in reached if id(thing) not in seen],
        own=[kept for kept in seen.values() if isinstance(kept, Tensor)],
        data=[thing for thing in outside.values() if isinstance(thing, Tensor)],
    )


@lru_cache(maxsize=4096)
def _is_machinery(kind: type) -> bool:
    """Whether objects of a class cannot be turned back, for what goes with them."""
    if issubclass(kind, nn.Module | Tensor | torch.Generator):
        return False
    if issubclass(kind, BaseException):  # with what was noted on it, it is told to the user
        return True
    names = [f"{base.__module__}." for base in kind.__mro__]
    return any(name.startswith(_MACHINERY) for name in names)


def _keep_flags(model: nn.Module, parameters: list[Tensor]) -> Restore:
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]

    def restore() -> None:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad

    return restore


def _keep_random_states() -> Restore:
    python_state, numpy_state = random.getstate(), np.random.get_state()
    cpu_state = torch.get_rng_state()
    kinds = [kind for kind in (torch.cuda, torch.xpu) if kind.is_initialized()]
    device_states = [(kind, kind.get_rng_state_all()) for kind in kinds]
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu_state)
        for kind, states in device_states:
            kind.set_rng_state_all(states)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)

    return restore


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let a Ctrl-C wait for the end of the block, where this thread is the one that gets it."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)
