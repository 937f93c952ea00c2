"""Turn a model's batch normalisation into its ghost form, and back, in place."""

from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rightbatch.errors import CannotConvert
from rightbatch.norm.ghost import (
    GhostBatchNorm,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    check_ghost_size,
)

Model = TypeVar("Model", bound=nn.Module)

_GHOST_OF: dict[type[nn.Module], type[GhostBatchNorm]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}
_ORDINARY_OF = {ghost: ordinary for ordinary, ghost in _GHOST_OF.items()}
_MOST_NAMED = 5


def convert_ghost_batch_norm(model: Model, size: int | None, *, subsample: bool = False) -> Model:
    """Turn each BatchNorm layer of a model into ghost batch normalisation, or back.

    The layers stay the same objects, of another class: parameters, and so the optimizer that holds
    them, buffers, hooks, the training flag and every place that shares a layer are untouched. State
    of either form loads into the other. Ghost layers that are there already take the new options.

    Traps: a model that `torch.compile` has traced compiles once more. A model without BatchNorm is
    returned as it is.

    Args:
        model: Changed in place.
        size: Wanted examples per ghost, at least 2; ``None``: back to ordinary BatchNorm.
        subsample: Normalise the whole batch by the statistics of its first ghost.

    Returns:
        The model.

    Raises:
        CannotConvert: If a layer is neither ordinary nor ghost: SyncBatchNorm, one that is lazy
            and has seen no data, or one derived from BatchNorm. Nothing is changed then.
        ValueError: If ``size`` is neither ``None`` nor a whole number of at least 2.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> convert_ghost_batch_norm(model, 64)[1].ghost_size
        64
        >>> type(convert_ghost_batch_norm(model, None)[1])
        <class 'torch.nn.modules.batchnorm.BatchNorm1d'>

    References:
        Hoffer, Hubara and Soudry (2017), Train longer, generalize better,
        https://arxiv.org/abs/1705.08741.
    """
    if size is not None:
        check_ghost_size(size)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
    known = _GHOST_OF.keys() | _ORDINARY_OF.keys()
    others = {name: layer for name, layer in layers.items() if type(layer) not in known}
    if others:
        raise _cannot_convert(others)
    for layer in layers.values():
        if size is None:
            _make_ordinary(layer)
        else:
            _make_ghost(layer, size, subsample)
    return model


def _make_ghost(layer: nn.Module, size: int, subsample: bool) -> None:
    if not isinstance(layer, GhostBatchNorm):
        # The same object of another class: what refers to it needs no change. torch's own lazy
        # layers become ordinary ones in this way.
        layer.__class__ = _GHOST_OF[type(layer)]
    layer.ghost_size, layer.subsample = size, subsample  # pyright: ignore


def _make_ordinary(layer: nn.Module) -> None:
    if isinstance(layer, GhostBatchNorm):
        layer.__class__ = _ORDINARY_OF[type(layer)]  # pyright: ignore
        del layer.ghost_size, layer.subsample


def _cannot_convert(layers: dict[str, _BatchNorm]) -> CannotConvert:
    named = [f"{name or 'the model'} ({type(layer).__name__})" for name, layer in layers.items()]
    listed = ", ".join(named[:_MOST_NAMED])
    if any(isinstance(layer, nn.SyncBatchNorm) for layer in layers.values()):
        reason = (
            "SyncBatchNorm takes its statistics from all devices, which is the opposite of ghosts: "
            "keep BatchNorm, and average the running statistics with `synchronize_batch_norm`."
        )
    else:
        reason = (
            "Their own behaviour would be lost: convert before wrapping them, run one batch "
            "through lazy ones, or build them on a GhostBatchNorm."
        )
    return CannotConvert(
        "each layer must be BatchNorm1d, 2d or 3d, or the ghost form of one, "
        f"got {len(named)} of another class: {listed}. {reason}"
    )
