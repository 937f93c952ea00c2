"""The studies by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from rightbatch.studies import noise_estimators
from rightbatch.studies.study import Study


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One study: what it is about, and the function that runs it."""

    claims: tuple[str, ...]  # keys of the published claims that it judges
    title: str
    run: Callable[..., Study]  # options: seed, quick, progress


STUDIES: dict[str, Entry] = {
    noise_estimators.NAME: Entry(
        claims=("C2", "C3"), title=noise_estimators.TITLE, run=noise_estimators.run
    ),
}
