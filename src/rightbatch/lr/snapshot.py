"""Where one contender of a race stands, kept in host memory while another one trains.

The device holds one model and one optimizer state throughout; contenders take turns in it.
"""

import copy
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from rightbatch.task import Task


@final
@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor's value on the host, and the device it belongs to."""

    value: Tensor
    device: torch.device


@final
@dataclass(frozen=True, slots=True)
class Snapshot:
    """Values of everything that a training step changes in a task, except random states."""

    parameters: list[Tensor]
    buffers: dict[tuple[nn.Module, str], _Kept | None]
    state: dict[Any, dict[str, Any]]
    groups: list[dict[str, Any]]


@torch.no_grad()
def take_snapshot(task: Task) -> Snapshot:
    """Copy what training changes to host memory."""
    return Snapshot(
        parameters=[_to_host(parameter) for parameter in _trained(task)],
        buffers={place: _keep(buffer) for place, buffer in _buffers(task.model).items()},
        state={
            owner: {key: _keep(value) for key, value in entries.items()}
            for owner, entries in task.optimizer.state.items()
        },
        groups=[
            {key: _keep(value) for key, value in group.items() if key != "params"}
            for group in task.optimizer.param_groups
        ],
    )


@torch.no_grad()
def put_back(task: Task, snapshot: Snapshot) -> None:
    """Write a snapshot into the task, into the memory that is already there where it fits."""
    for parameter, value in zip(_trained(task), snapshot.parameters, strict=True):
        parameter.copy_(value)
        parameter.grad = None
    buffers = _buffers(task.model)
    for module, name in buffers.keys() - snapshot.buffers.keys():
        delattr(module, name)  # registered since then
    for (module, name), kept in snapshot.buffers.items():
        live = buffers.get((module, name))
        restored = _restored(live, kept)
        if restored is not live:
            setattr(module, name, restored)
    state = task.optimizer.state
    for owner in state.keys() - snapshot.state.keys():
        del state[owner]
    for owner, kept in snapshot.state.items():
        _update(state[owner], kept)
    for group, kept in zip(task.optimizer.param_groups, snapshot.groups, strict=True):
        _update(group, {"params": group["params"], **kept})


def _update(live: dict[str, Any], kept: dict[str, Any]) -> None:
    for key in live.keys() - kept.keys():
        del live[key]
    for key, value in kept.items():
        live[key] = _restored(live.get(key), value)


def _restored(live: Any, kept: Any) -> Any:
    if not isinstance(kept, _Kept):
        return copy.deepcopy(kept) if kept is not live else live
    if isinstance(live, Tensor) and _takes_copies(live, kept):
        return live.copy_(kept.value)
    return kept.value.to(kept.device, copy=True)


def _takes_copies(live: Tensor, kept: _Kept) -> bool:
    """Whether a tensor can be overwritten: expanded ones have many elements in one place."""
    expanded = live.layout is torch.strided and 0 in live.stride()
    same_kind = live.shape == kept.value.shape and live.dtype == kept.value.dtype
    return same_kind and live.device == kept.device and not expanded


def _keep(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Kept(_to_host(value), value.device)
    return copy.deepcopy(value)


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _trained(task: Task) -> list[Tensor]:
    """Parameters of the model and of the optimizer: a temperature in the loss is in the latter."""
    parameters = dict.fromkeys(task.model.parameters())
    for group in task.optimizer.param_groups:
        parameters.update(dict.fromkeys(group["params"]))
    return list(parameters)


def _buffers(model: nn.Module) -> dict[tuple[nn.Module, str], Tensor | None]:
    return {
        (module, name): buffer
        for module in model.modules()
        for name, buffer in module._buffers.items()
    }
