"""Running averages beside an optimizer that move with it: of the model, and of BatchNorm."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from rightbatch.results import Change, Validity
from rightbatch.scaling.settings import decay_over_examples, share_over_examples

Write = Callable[[], None]


def ema_move(model_ema: Any, kappa: float) -> tuple[Change, Write]:
    """Keep the half-life of a model average in examples.

    Args:
        model_ema: A decay; or an object with a ``decay``; or torch's ``AveragedModel`` with one
            of torch's own exponential averages.
        kappa: Ratio of the batch sizes.

    Returns:
        The change, and a function that makes it.

    Raises:
        ValueError: If no decay in [0, 1] can be found.
    """
    if isinstance(model_ema, AveragedModel):
        return _averaged_model_move(model_ema, kappa)
    if isinstance(model_ema, int | float):
        return _ema_change(float(model_ema), kappa), lambda: None
    decay = getattr(model_ema, "decay", None)
    if not isinstance(decay, int | float):
        raise ValueError(
            "`model_ema` must be a decay, an object with a number `decay`, or an AveragedModel, "
            f"got {type(model_ema).__name__}. Pass the decay and use report.model_ema."
        )
    change = _ema_change(float(decay), kappa)
    return change, _set(model_ema, "decay", change.after)


def batch_norm_moves(model: nn.Module, kappa: float) -> Iterator[tuple[Change, Write]]:
    """Keep the memory of running statistics in examples, layer by layer.

    Args:
        model: Any; layers that average over all batches (``momentum=None``) stay.
        kappa: Ratio of the batch sizes.

    Yields:
        The change of each layer, and a function that makes it.
    """
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum is not None:
            share = float(layer.momentum)
            change = Change(
                parameter="batch_norm_momentum",
                before=share,
                after=share_over_examples(share, kappa),
                why="running statistics remember as many examples",
                validity=_memory(share, kappa),
            )
            yield change, _set(layer, "momentum", change.after)


def _averaged_model_move(model_ema: AveragedModel, kappa: float) -> tuple[Change, Write]:
    for name, make in (("multi_avg_fn", get_ema_multi_avg_fn), ("avg_fn", get_ema_avg_fn)):
        average = vars(model_ema).get(name)
        if average is None:
            continue
        decay = inspect.getclosurevars(inspect.unwrap(average)).nonlocals.get("decay")
        if isinstance(decay, int | float):
            change = _ema_change(float(decay), kappa)
            return change, _set(model_ema, name, make(change.after))
    raise ValueError(
        "`model_ema` must average with torch's get_ema_multi_avg_fn or get_ema_avg_fn, got an "
        "AveragedModel with another function. Its decay cannot be read: pass the decay itself and "
        "use report.model_ema, or leave out an equal average (SWA), which has none."
    )


def _ema_change(decay: float, kappa: float) -> Change:
    if not 0 <= decay <= 1:
        raise ValueError(
            f"`model_ema` must have a decay in [0, 1], got {decay!r}. "
            "It is the share of the average that stays at each step."
        )
    return Change(
        parameter="model_ema",
        before=decay,
        after=decay_over_examples(decay, kappa),
        why="half-life kept in examples",
        validity=_memory(1 - decay, kappa),
    )


def _memory(share: float, kappa: float) -> Validity:
    """A half-life in examples can be kept only while it is longer than one step, and known."""
    forgets = kappa > 1 and kappa * share >= 1
    return Validity.OUTSIDE if forgets or (kappa < 1 and share >= 1) else Validity.HOLDS


def _set(holder: Any, name: str, value: Any) -> Write:
    return lambda: setattr(holder, name, value)
