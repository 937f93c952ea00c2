"""Running averages that belong to no optimizer: BatchNorm's statistics and an average of the model.

Each keeps a number that says how much of it a new batch replaces, and no ``state_dict`` of torch
holds that number. Here it follows the batch size, and is put back when a run is resumed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from rightbatch.scaling import Change
from rightbatch.scaling.attached import Write, batch_norm_moves, ema_move


@final
class RunningAverages:
    """Keep the memory of running averages in examples, while the batch size moves.

    Every move starts from the setting of before the first one, so that going back restores it to
    the bit, also where a batch was so large that its share had become 1. A setting that somebody
    changes in between is taken as it is.

    The trap: BatchNorm updates its statistics once per forward pass. So its share follows the
    micro-batch, and stays where a larger batch is only accumulated; the model average, updated
    once per optimizer step, follows the batch.

    Args:
        model: Whose BatchNorm layers follow; those that average over all batches
            (``momentum=None``) stay. ``None``: none do.
        model_ema: torch's ``AveragedModel`` with one of torch's own exponential averages, or any
            object with a ``decay``. ``None``: there is none.
        batch_size: That the decay of ``model_ema`` suits now.
        micro_batch_size: That the momentum of the layers suits now.

    Raises:
        ValueError: If the decay of ``model_ema`` cannot be read or set.

    Example:
        >>> norm = nn.BatchNorm1d(3, momentum=0.5)
        >>> averages = RunningAverages(norm, None, 8, 8)
        >>> _ = averages.move(16, 16)
        >>> norm.momentum
        0.75
        >>> [change.after for change in averages.move(8, 8)]
        [0.5]
    """

    def __init__(
        self, model: nn.Module | None, model_ema: Any, batch_size: int, micro_batch_size: int
    ) -> None:
        if isinstance(model_ema, int | float):
            raise ValueError(
                f"`model_ema` must be an AveragedModel or an object with a `decay`, got "
                f"model_ema={model_ema!r}. A bare number cannot be changed for you: pass the "
                "object that averages."
            )
        layers = [] if model is None else list(model.modules())
        self._layers = [
            _layer_setting(layer, micro_batch_size)
            for layer in layers
            if isinstance(layer, _BatchNorm) and layer.momentum is not None
        ]
        self._ema = [] if model_ema is None else [_ema_setting(model_ema, batch_size)]

    def move(self, batch_size: int, micro_batch_size: int) -> tuple[Change, ...]:
        """Set everything for another size.

        Args:
            batch_size: Examples per optimizer step from now on.
            micro_batch_size: Examples per forward pass of a device from now on.

        Returns:
            What changed, equal changes of several layers once.
        """
        changes = [setting.move(batch_size) for setting in self._ema]
        changes += [setting.move(micro_batch_size) for setting in self._layers]
        return tuple(dict.fromkeys(changes))

    def state_dict(self) -> dict[str, Any]:
        """Return each setting's origin: for how many examples it was what."""
        return {
            "batch_norm": [setting.origin() for setting in self._layers],
            "model_ema": [setting.origin() for setting in self._ema],
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state of other averages.

        Raises:
            ValueError: If the numbers of layers or averages differ.
        """
        for name, own in (("batch_norm", self._layers), ("model_ema", self._ema)):
            if len(state[name]) != len(own):
                raise ValueError(
                    f"`state` must be of the same `model` and `model_ema`, got {len(state[name])} "
                    f"settings of {name} for {len(own)}. They would be set for another batch "
                    "size: make the controller with the arguments that the run began with."
                )

    def load_state_dict(
        self, state: Mapping[str, Any], batch_size: int, micro_batch_size: int
    ) -> None:
        """Put every setting back, as it is for these sizes."""
        self.check_state(state)
        for setting, origin in zip(self._ema, state["model_ema"], strict=True):
            setting.begin_anew(origin, batch_size)
        for setting, origin in zip(self._layers, state["batch_norm"], strict=True):
            setting.begin_anew(origin, micro_batch_size)


@final
@dataclass(slots=True)
class _Setting:
    """A number that follows the size, and what it was before the first move."""

    size: int  # that it is set for now
    prepare: Callable[[float], tuple[Change, Write]]  # ratio of sizes -> change of what it is now
    write: Callable[[float], None]
    first_size: int
    first: float
    last: float  # what the last move left: another value now is somebody's own choice

    def origin(self) -> list[float]:
        """Say for how many examples it was what, by its owner's own choice."""
        now = self.prepare(1.0)[0].before
        if now != self.last:
            self.first_size, self.first, self.last = self.size, now, now
        return [self.first_size, self.first]

    def move(self, size: int) -> Change:
        """Set it for another size."""
        first_size, first = self.origin()
        before = self.last
        self.write(first)
        change, write = self.prepare(size / first_size)
        write()
        self.size, self.last = size, change.after
        return replace(change, before=before)

    def begin_anew(self, origin: list[float], size: int) -> None:
        """Take an origin from a checkpoint, and set it for a size."""
        self.first_size, self.first = int(origin[0]), origin[1]
        self.write(self.first)
        self.last = self.first
        self.move(size)


def _layer_setting(layer: _BatchNorm, size: int) -> _Setting:
    def prepare(ratio: float) -> tuple[Change, Write]:
        return next(batch_norm_moves(layer, ratio))

    def write(momentum: float) -> None:
        layer.momentum = momentum

    return _setting(prepare, write, size)


def _ema_setting(model_ema: Any, size: int) -> _Setting:
    def prepare(ratio: float) -> tuple[Change, Write]:
        return ema_move(model_ema, ratio)

    def write(decay: float) -> None:
        if not isinstance(model_ema, AveragedModel):
            model_ema.decay = decay
        elif model_ema.multi_avg_fn is not None:
            model_ema.multi_avg_fn = get_ema_multi_avg_fn(decay)
        else:
            model_ema.avg_fn = get_ema_avg_fn(decay)

    return _setting(prepare, write, size)


def _setting(
    prepare: Callable[[float], tuple[Change, Write]], write: Callable[[float], None], size: int
) -> _Setting:
    value = prepare(1.0)[0].before
    return _Setting(size, prepare, write, first_size=size, first=value, last=value)
