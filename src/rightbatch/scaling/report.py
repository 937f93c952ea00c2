"""What a change of batch size did to every setting, from what to what, why, and if it holds."""

from dataclasses import dataclass
from typing import final

from rightbatch._format import format_setting
from rightbatch.results import Change, Validity


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingReport:
    """Every setting that the batch size touches, and what the change is worth."""

    optimizer: str  # class name
    from_batch_size: int
    to_batch_size: int
    rule: str  # of the learning rate, as applied
    changes: tuple[Change, ...]
    warnings: tuple[str, ...] = ()  # a sentence each
    not_scaled: tuple[str, ...] = ()  # settings that no rule covers
    model_ema: float | None = None  # decay of the model average to use from now on

    @property
    def valid(self) -> bool:
        """Whether every rule was applied where it is known to hold."""
        return not self.not_scaled and all(c.validity is Validity.HOLDS for c in self.changes)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """New values by name, of the first group where groups differ."""
        return {c.parameter: c.after for c in self.changes if c.group in (None, 0)}

    def after(self, parameter: str, group: int = 0) -> float:
        """Look a setting's new value up.

        Args:
            parameter: Its name in the table.
            group: Index of the parameter group.

        Raises:
            KeyError: If the report has no such setting.
        """
        for change in self.changes:
            if change.parameter == parameter and change.group in (None, group):
                return change.after
        raise KeyError(
            f"the report has no {parameter!r} of group {group}, "
            f"only {', '.join(dict.fromkeys(c.parameter for c in self.changes))}."
        )

    def __str__(self) -> str:
        """Lay the changes out as a table, one line each, warnings below."""
        head = f"{self.optimizer}: batch size {self.from_batch_size} -> {self.to_batch_size}"
        rows = [("parameter", "from", "to", "valid", "why")]
        rows += [
            (
                change.parameter if change.group is None else f"{change.parameter}[{change.group}]",
                format_setting(change.before),
                format_setting(change.after),
                change.validity.value,
                change.why,
            )
            for change in self.changes
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]])
            for row in rows
        ]
        notes = [f"not scaled: {', '.join(self.not_scaled)}"] if self.not_scaled else []
        return "\n".join([f"{head} (rule {self.rule})", *lines, *notes, *self.warnings])
