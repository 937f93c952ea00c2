"""What was found out about a task: saved, shown, and set on the user's optimizer."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import nn
from torch.optim import Optimizer

from rightbatch import _codec
from rightbatch.errors import CannotPlan, ResultsError
from rightbatch.report import render_html, render_text
from rightbatch.results import Plan, Results, Status
from rightbatch.scaling import ScalingReport, batch_size_set_for, scale_hyperparameters
from rightbatch.scaling.attached import batch_norm_moves


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Findings(Results):
    """All that was found out about one task, ready to be saved, shown and planned from.

    ``print(findings)`` shows one screen; the parts are attributes: ``findings.plan.batch_size``.
    """

    def save(self, path: str | Path) -> None:
        """Write the results file.

        Args:
            path: The file; its folder must exist.

        Raises:
            ResultsError: If it cannot be written.
        """
        _codec.write(self, path)

    def to_html(self, path: str | Path) -> None:
        """Write the report: one page that needs nothing else.

        Args:
            path: The file; its folder must exist.

        Raises:
            ResultsError: If it cannot be written.
        """
        try:
            Path(path).write_text(render_html(self), encoding="utf-8")
        except OSError as error:
            raise ResultsError(
                f"cannot write {str(path)!r}: {error.strerror}. "
                "Name a folder that you may write to."
            ) from error

    def apply(
        self,
        optimizer: Optimizer,
        *,
        scheduler: Any = None,
        model: nn.Module | None = None,
        model_ema: Any = None,
        warmup_examples: float | None = None,
        dry_run: bool = False,
    ) -> ScalingReport:
        """Set an optimizer's hyperparameters to those of the plan; its state is kept.

        The learning rate becomes the plan's, and everything that goes with the batch size moves
        from today's size to the plan's, as `rightbatch.scale_hyperparameters` does it. BatchNorm
        follows the micro-batch, which is what it sees. Applied once more, nothing moves again.

        The traps: the loader is yours. Give it ``plan.micro_batch_size``, and accumulate over
        ``plan.accumulation_steps``. And when a run is resumed, apply first and load the states
        of optimizer and scheduler then: they know of moves, BatchNorm layers do not, and a rate
        that has decayed without a scheduler's ``initial_lr`` would be set back.

        Args:
            optimizer: Of the class that was measured, with today's settings or already applied.
            scheduler: As of `rightbatch.scale_hyperparameters`, also for the four below.
            model: Whose BatchNorm layers are to keep their memory in examples.
            model_ema: A decay, or what holds one.
            warmup_examples: Length of the warm-up.
            dry_run: Only report.

        Returns:
            Every setting from what to what and why, with warnings.

        Raises:
            CannotPlan: If there is no plan to apply, or it is for another kind of optimizer.

        Example:
            Four times the batch: Adam's betas to the fourth power, and the rate as it was found.

            >>> import torch
            >>> from rightbatch.results import TaskFacts
            >>> task = TaskFacts(name="toy", parameters=1, examples=None, batch_size=8,
            ...     learning_rate=0.1, optimizer="Adam", hyperparameters={})
            >>> made = Plan(batch_size=32, micro_batch_size=32, accumulation_steps=1, devices=1,
            ...     learning_rate=0.3, hyperparameters={}, low=32, high=32, objective="time",
            ...     candidates=(), current=None, speedup=None, speedup_low=None,
            ...     speedup_high=None, reasons=(), status=Status.OK)
            >>> weight = torch.nn.Parameter(torch.ones(1))
            >>> optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.5, 0.75))
            >>> _ = Findings(task=task, environment={}, plan=made).apply(optimizer)
            >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]
            (0.3, (0.0625, 0.31640625))
        """
        made = self._plan_for(optimizer)
        now = batch_size_set_for(optimizer)
        before = now or self.task.batch_size or made.batch_size
        report = scale_hyperparameters(
            optimizer,
            round(before),
            made.batch_size,
            learning_rate=made.learning_rate,
            noise_scale=None if self.noise is None else self.noise.noise_scale,
            critical_batch_size=(
                None if self.critical_batch_size is None else self.critical_batch_size.value
            ),
            scheduler=scheduler,
            model_ema=model_ema,
            warmup_examples=warmup_examples,
            dry_run=dry_run,
        )
        # Statistics are updated once per forward pass, so they follow the micro-batch.
        passes = 1.0 if now == made.batch_size else made.micro_batch_size / before
        moves = [] if model is None else list(batch_norm_moves(model, passes))
        for _, write in moves:
            if not dry_run:
                write()
        changes = (*report.changes, *dict.fromkeys(change for change, _ in moves))
        return replace(report, changes=changes)

    def _plan_for(self, optimizer: Optimizer) -> Plan:
        if self.plan is None or self.plan.status is Status.NOTHING_FITS:
            raise CannotPlan(
                "`apply` needs a plan, got findings without one. Run rightbatch.find, or "
                "rightbatch.plan with more results."
            )
        kinds = [kind.__name__ for kind in type(optimizer).__mro__]
        if self.task.optimizer not in kinds:
            raise CannotPlan(
                f"`apply` sets the kind of optimizer that was measured, {self.task.optimizer}, "
                f"got {kinds[0]}: its learning rates mean something else. Find its own plan."
            )
        return self.plan

    def __str__(self) -> str:
        return render_text(self)


def load(path: str | Path) -> Findings:
    """Read a results file.

    Args:
        path: What `Findings.save` or ``rightbatch find --output DIR`` wrote.

    Returns:
        The findings, equal to those that were saved.

    Raises:
        ResultsError: If the file is missing, truncated, of another schema, or holds NaN.
    """
    return _codec.read(path, Findings)
