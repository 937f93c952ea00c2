"""What follows the batch size: the optimizer, the rate schedule, and running averages."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from torch.optim import Optimizer

from rightbatch.batches import Decision
from rightbatch.control.averages import RunningAverages
from rightbatch.lr import ExampleLR
from rightbatch.scaling import Change, scale_hyperparameters
from rightbatch.scaling.schedulers import write_number


@final
class Following:
    """Set everything that follows, as a schedule's decision says.

    Args:
        optimizer: Whose hyperparameters follow.
        scheduler: Whose rates follow, if there is one.
        averages: Whose memory follows.
        options: For `rightbatch.scale_hyperparameters`: how the optimizer follows.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scheduler: ExampleLR | None,
        averages: RunningAverages,
        options: Mapping[str, Any],
    ) -> None:
        if scheduler is not None and not isinstance(scheduler, ExampleLR):
            raise TypeError(
                f"`scheduler` must be a rightbatch.ExampleLR, got {type(scheduler).__name__}. "
                "Schedulers of torch count steps, and how many an epoch has changes with the "
                "batch: read yours by rightbatch.lr.FromTorch."
            )
        self._optimizer, self._scheduler = optimizer, scheduler
        self.averages = averages
        self._options = {"scheduler": scheduler, **options}
        self.rate_factor: float | None = None  # that is in the rates now, by the schedule's word

    def try_size(self, from_batch_size: int, to_batch_size: int) -> None:
        """Refuse now what would fail when the size moves there; change nothing.

        Raises:
            ValueError: As of `rightbatch.scale_hyperparameters`.
        """
        scale_hyperparameters(
            self._optimizer, from_batch_size, to_batch_size, dry_run=True, **self._options
        )

    def move(
        self,
        from_batch_size: int,
        decision: Decision,
        micro_batch_size: int,
        noise_scale: float | None,
    ) -> tuple[str, bool | None]:
        """Follow a decision.

        Args:
            from_batch_size: Examples per optimizer step until now.
            decision: What holds from now on.
            micro_batch_size: Examples per forward pass of a device from now on.
            noise_scale: As measured, if it was; else the one of the options holds.

        Returns:
            What became of everything, in words, and whether every rule holds there; ``None``
            where the schedule says the rate.
        """
        sizes = decision.batch_size, micro_batch_size
        factor, before = decision.rate_factor, self.rate_factor
        if factor is not None:
            ratio = factor / (before or 1.0)
            self._multiply_rates(ratio)
            self.rate_factor = factor
            return _sentence(ratio, self.averages.move(*sizes)), None
        options = self._options
        if noise_scale is not None:
            options = {**options, "noise_scale": noise_scale}
        report = scale_hyperparameters(
            self._optimizer, from_batch_size, decision.batch_size, **options
        )
        report = replace(report, changes=(*report.changes, *self.averages.move(*sizes)))
        return str(report), report.valid

    def _multiply_rates(self, ratio: float) -> None:
        if self._scheduler is not None:
            self._scheduler.scale(ratio)
            return
        # All are read before one is written: groups may share one tensor.
        rates = [
            (group, name, float(group[name]) * ratio)
            for group in self._optimizer.param_groups
            for name in ("lr", "initial_lr")
            if name in group
        ]
        for group, name, rate in rates:
            write_number(group, name, rate)


def _sentence(ratio: float, changes: tuple[Change, ...]) -> str:
    said = f"the schedule says the rate: times {ratio:.4g}"
    moved = (c for c in changes if c.before != c.after)
    rows = [f"{c.parameter} from {c.before:.6g} to {c.after:.6g}" for c in moved]
    return ", ".join([said, *rows, "nothing else"])
