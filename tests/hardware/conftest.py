"""Quick garbage collection: the instruments collect, and pytest holds a million objects."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _frozen_garbage() -> Iterator[None]:
    """Leave what was imported out of every later collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
