"""Put everything back: the promise that no measurement changes anything behind your back.

`preserved` copies to host memory whatever training touches and restores it in place, so that
tensors keep their identity: parameters, buffers, gradients (also their absence), optimizer
state (also its absence) and groups, train/eval flags, ``requires_grad``, and every random state.
"""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@contextmanager
def preserved(
    model: nn.Module, optimizer: Optimizer, generators: tuple[torch.Generator, ...] = ()
) -> Iterator[None]:
    """Restore model, optimizer and random states bit for bit on leaving, however it is left.

    Python attributes that a module's ``forward`` sets on itself cannot be seen and stay changed.

    Args:
        model: Whose parameters, buffers, gradients and flags to keep.
        optimizer: Whose state and groups to keep.
        generators: Further random generators to keep, such as a sampler's own.

    Yields:
        Nothing.
    """
    # Parameters that the optimizer trains but the model does not own (a temperature in the
    # loss) are trained too, so they are kept too.
    owned = dict.fromkeys(model.parameters())
    owned.update(dict.fromkeys(p for group in optimizer.param_groups for p in group["params"]))
    restorers = [
        _keep_parameters(list(owned)),
        _keep_modules(model),
        _keep_optimizer(optimizer),
        _keep_random_states(generators),
    ]
    try:
        yield
    finally:
        for restore in restorers:
            restore()


Restore = Callable[[], None]


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _keep_parameters(parameters: list[nn.Parameter]) -> Restore:
    saved = [
        (p, _to_host(p), p.requires_grad, p.grad, None if p.grad is None else _to_host(p.grad))
        for p in parameters
    ]

    @torch.no_grad()
    def restore() -> None:
        for parameter, value, requires_grad, grad, grad_value in saved:
            parameter.copy_(value)
            parameter.requires_grad_(requires_grad)
            if grad is not None:
                grad.copy_(grad_value)  # type: ignore[arg-type]
            parameter.grad = grad

    return restore


def _keep_modules(model: nn.Module) -> Restore:
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else _to_host(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]

    @torch.no_grad()
    def restore() -> None:
        for module, training in flags:
            module.training = training
        for module, name, buffer, value in buffers:
            if buffer is not None:
                buffer.copy_(value)  # type: ignore[arg-type]
            module._buffers[name] = buffer

    return restore


def _keep_optimizer(optimizer: Optimizer) -> Restore:
    groups = [
        {
            key: copy.deepcopy(value) if not isinstance(value, Tensor) else (value, value.clone())
            for key, value in group.items()
            if key != "params"
        }
        for group in optimizer.param_groups
    ]
    state = {
        parameter: {
            key: (value, _to_host(value))
            if isinstance(value, Tensor)
            else (None, copy.deepcopy(value))
            for key, value in entries.items()
        }
        for parameter, entries in optimizer.state.items()
    }

    @torch.no_grad()
    def restore() -> None:
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            for key in group.keys() - values.keys() - {"params"}:
                del group[key]
            for key, value in values.items():
                if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
                    tensor, saved = value
                    group[key] = tensor.copy_(saved)
                else:
                    group[key] = value
        optimizer.state.clear()
        for parameter, entries in state.items():
            optimizer.state[parameter] = {
                key: saved if tensor is None else tensor.copy_(saved)
                for key, (tensor, saved) in entries.items()
            }

    return restore


def _keep_random_states(generators: tuple[torch.Generator, ...]) -> Restore:
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    generator_states = [(generator, generator.get_state()) for generator in generators]

    def restore() -> None:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(cpu_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)
        for generator, state in generator_states:
            generator.set_state(state)

    return restore


