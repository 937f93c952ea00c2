"""The results hold still, and their statuses speak. Oracle: law."""

import dataclasses

import pytest

from rightbatch import results
from rightbatch.results import MemoryPoint, Status

KINDS = [
    kind
    for kind in vars(results).values()
    if dataclasses.is_dataclass(kind) and isinstance(kind, type)
]


@pytest.mark.parametrize("status", Status)
def test_every_status_has_a_sentence_of_its_own(status: Status) -> None:
    assert status.sentence.endswith(".")
    assert status.sentence[0].isupper()
    others = {other.sentence for other in Status if other is not status}
    assert status.sentence not in others


def test_a_status_is_its_value() -> None:
    assert Status("at_least") is Status.AT_LEAST
    assert f"{Status.AT_LEAST}" == "at_least"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_results_are_frozen_slotted_and_keyword_only(kind: type) -> None:
    fields = dataclasses.fields(kind)
    assert all(field.kw_only for field in fields)
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}(")  # what dataclass writes by itself


def test_a_result_cannot_be_changed() -> None:
    point = MemoryPoint(batch_size=8, peak_bytes=100, source="real", outcome="ok")
    with pytest.raises(dataclasses.FrozenInstanceError, match="peak_bytes"):
        point.peak_bytes = 0  # type: ignore[misc]
