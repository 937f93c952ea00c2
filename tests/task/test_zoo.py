"""Every specimen of the zoo works as a task, or is refused by name."""

from itertools import islice

import pytest
import torch

from rightbatch.task.preflight import preflight
from tests.laws import assert_world_unchanged
from tests.zoo import REFUSED, WORKING, ZOO, Specimen


def test_names_are_unique() -> None:
    assert len({specimen.name for specimen in ZOO}) == len(ZOO)


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_check_finds_what_is_expected_and_nothing_else(specimen: Specimen) -> None:
    task = specimen.make()
    found = " ".join(task.check())
    assert specimen.match in found
    assert bool(found) == bool(specimen.match)


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_trains_and_is_put_back(specimen: Specimen) -> None:
    task = specimen.make()

    def train() -> None:
        with task.preserved():
            losses = [task.step(batch).item() for batch in islice(task.batches(4), 3)]
        assert all(map(torch.isfinite, map(torch.tensor, losses)))

    assert_world_unchanged(task, train)


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_is_put_back_from_the_middle_of_a_run(specimen: Specimen) -> None:
    """With gradients, optimizer state and moved buffers there from the start."""
    task = specimen.make()
    for batch in islice(task.batches(4, seed=1), 3):
        task.step(batch)

    def train() -> None:
        with task.preserved():
            for batch in islice(task.batches(4), 3):
                task.step(batch)

    assert_world_unchanged(task, train)


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_preflight_leaves_the_world_alone(specimen: Specimen) -> None:
    task = specimen.make()
    assert_world_unchanged(task, lambda: preflight(task))


@pytest.mark.parametrize("specimen", REFUSED, ids=str)
def test_is_refused_by_name(specimen: Specimen) -> None:
    assert specimen.error is not None
    with pytest.raises(specimen.error, match=specimen.match):
        specimen.make().check()
