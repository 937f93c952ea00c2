"""What a study returns: claims, the rules that judge them, what was measured, and the verdicts."""

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, final

from rightbatch.errors import ResultsError

SCHEMA = "rightbatch-study/1"


class Verdict(StrEnum):
    """What a study says of a claim. A claim that does not hold is a result, not a failure."""

    HOLDS = "holds"
    IN_PART = "holds in part"
    DOES_NOT_HOLD = "does not hold"
    CANNOT_TELL = "cannot tell here"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One published claim, judged."""

    key: str  # such as "C2 (a)"
    text: str
    rule: str  # written before the run; the verdict is a pure function of it and the numbers
    verdict: Verdict
    evidence: str  # the numbers that the rule was applied to, a sentence or two


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTable:
    """Numbers as text, ready to show."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One figure with what it shows."""

    name: str
    title: str
    caption: str
    figure: dict[str, Any]  # plotly's JSON


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A finished study. Pure data: showing it needs no second run.

    Example:
        >>> claim = Claim(key="C0", text="Water is wet.", rule="Touch it.",
        ...               verdict=Verdict.HOLDS, evidence="It was.")
        >>> study = Study(name="water", title="Water", summary="Is it wet?", quick=False, seed=0,
        ...               claims=(claim,), tables=(), drawings=(), measurements={},
        ...               environment={}, seconds=1.0)
        >>> study.to_json()["claims"][0]["verdict"]
        'holds'
    """

    name: str
    title: str
    summary: str  # what was done, a few sentences
    quick: bool  # a trial: too few numbers to judge a claim by
    seed: int
    claims: tuple[Claim, ...]
    tables: tuple[StudyTable, ...]
    drawings: tuple[Drawing, ...]
    measurements: dict[str, Any]  # every number behind the tables, JSON types only
    environment: dict[str, str] = field(default_factory=dict[str, str])
    seconds: float  # that the run took

    def to_json(self) -> dict[str, Any]:
        """Translate into plain JSON types; drawings are left out, their numbers are not.

        Raises:
            ResultsError: If a number is NaN or infinite.
        """
        return json.loads(self.dumps())

    def dumps(self) -> str:
        """Write as the text of a JSON file.

        Raises:
            ResultsError: If a number is NaN or infinite.
        """
        plain = {key: value for key, value in asdict(self).items() if key != "drawings"}
        try:
            return json.dumps({"schema": SCHEMA, **plain}, indent=1, allow_nan=False) + "\n"
        except ValueError as error:
            raise ResultsError(
                f"a study may hold finite numbers only, got {error}. "
                "Write an unknown number as null."
            ) from error

    def save(self, path: Path) -> None:
        """Write the JSON file.

        Raises:
            ResultsError: If the file cannot be written, or a number is not finite.
        """
        write_text(path, self.dumps())


def write_text(path: Path, text: str) -> None:
    """Write a file, and make its folder if there is none.

    Raises:
        ResultsError: If the system refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultsError(
            f"cannot write to {str(path)!r}: {error.strerror}. Name a folder that you may write to."
        ) from error
