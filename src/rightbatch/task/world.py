"""Put everything back: the promise that no measurement changes anything behind your back.

`preserved` copies to host memory whatever training touches and restores it in place, so that
every tensor, dictionary and list keeps its identity: parameters, buffers, gradients (also their
absence), optimizer state (also its absence) and groups, train/eval flags, ``requires_grad``,
hooks, the attributes that modules set on themselves, and every random state.
"""

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Restore = Callable[[], None]


@contextmanager
def preserved(model: nn.Module, optimizer: Optimizer, *, weights: bool = True) -> Iterator[None]:
    """Restore model, optimizer and random states bit for bit on leaving, however it is left.

    A Ctrl-C that arrives while things are put back waits until they are. What modules hold in
    objects other than tensors, arrays, generators, dictionaries, lists and sets cannot be seen:
    such an object is put back, but not what ``forward`` changed inside it.

    Args:
        model: Whose parameters, buffers, gradients, flags and attributes to keep.
        optimizer: Whose state and groups to keep.
        weights: Whether parameters and optimizer state may change. ``False`` where the work
            inside takes no step: then no copy of them is made.

    Yields:
        Nothing.
    """
    # Parameters that the optimizer trains but the model does not own (a temperature in the
    # loss) are trained too, so they are kept too.
    parameters = dict.fromkeys(model.parameters())
    parameters.update(dict.fromkeys(p for group in optimizer.param_groups for p in group["params"]))
    restorers = [_keep_random_states(), _keep_flags(model, list(parameters))]
    seen: set[int] = set()
    for parameter in parameters:
        if not weights:
            seen.add(id(parameter))
        _keep((parameter, parameter.grad), restorers, seen)
    # Scripted modules hold their buffers out of sight of `vars`.
    parts = [*map(vars, model.modules()), tuple(model.buffers())]
    for part in [*parts, vars(optimizer)] if weights else parts:
        _keep(part, restorers, seen)
    try:
        yield
    finally:
        with _interrupts_held_back(), torch.no_grad(), ExitStack() as stack:
            # The last first, so that gradients come after the values whose type they must have;
            # every one of them, whatever another one raises.
            for restore in restorers:
                stack.callback(restore)


def _keep(value: Any, restorers: list[Restore], seen: set[int]) -> None:
    """Add what puts a mutable value back in place; follow containers into their items."""
    if id(value) in seen:
        return
    keeper = next((keep for kind, keep in _KEEPERS.items() if isinstance(value, kind)), None)
    if keeper is not None:
        seen.add(id(value))
        restorers.append(keeper(value))
    if isinstance(value, dict | list | tuple):
        for item in list(value.values() if isinstance(value, dict) else value):
            _keep(item, restorers, seen)


def _keep_tensor(tensor: Tensor) -> Restore:
    alias = tensor.detach()  # the memory that it has now, should `.data` be assigned
    value = _written_once(alias).to("cpu", copy=True)

    def restore() -> None:
        if alias.layout is not torch.strided:
            tensor.copy_(value)  # a sparse alias shares the numbers, but not how many they are
            return
        if tensor.data_ptr() != alias.data_ptr():
            tensor.data = alias
        _written_once(alias).copy_(value)

    return restore


def _written_once(tensor: Tensor) -> Tensor:
    """Narrow expanded dimensions, whose many elements are one number in memory."""
    if tensor.layout is torch.strided:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if stride == 0 and size > 1:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _keep_array(array: np.ndarray[Any, Any]) -> Restore:
    value = array.copy()

    def restore() -> None:
        if array.flags.writeable:
            array[...] = value

    return restore


def _keep_generator(generator: torch.Generator) -> Restore:
    state = generator.get_state()

    def restore() -> None:
        generator.set_state(state)

    return restore


def _keep_dict(mapping: dict[Any, Any]) -> Restore:
    saved = dict(mapping)
    identities = _identities(saved)

    def restore() -> None:
        if _identities(mapping) != identities:
            mapping.clear()
            mapping.update(saved)

    return restore


def _identities(mapping: dict[Any, Any]) -> list[tuple[int, int]]:
    return [(id(key), id(value)) for key, value in mapping.items()]


def _keep_list(items: list[Any]) -> Restore:
    saved = list(items)

    def restore() -> None:
        items[:] = saved

    return restore


def _keep_set(items: set[Any]) -> Restore:
    saved = set(items)

    def restore() -> None:
        items.clear()
        items.update(saved)

    return restore


_KEEPERS: dict[type, Callable[[Any], Restore]] = {
    Tensor: _keep_tensor,
    np.ndarray: _keep_array,
    torch.Generator: _keep_generator,
    dict: _keep_dict,
    list: _keep_list,
    set: _keep_set,
}


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
