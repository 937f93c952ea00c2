"""A program that makes its tensors on another device by default. Oracle: the same on the host.

The default is "meta", which has no numbers: whatever is asked of it there fails. Generators exist
for real devices alone, so of those only the requests are seen.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler

from rightbatch._comm import Alone
from rightbatch.batches.drawing import Order
from rightbatch.hardware.pool import random_examples
from rightbatch.noise.calibrate import _Known
from rightbatch.task.data import Source, source_from
from rightbatch.testing import QuadraticTask


@pytest.fixture
def elsewhere() -> Iterator[Callable[[], None]]:
    """Set the default device of a test; it is put back."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_order_is_drawn_on_the_host(shuffle: bool, elsewhere: Callable[[], None]) -> None:
    order = Order(num_examples=16, seed=3, shuffle=shuffle)
    expected = order.of(1).tolist()
    elsewhere()
    assert order.of(1).tolist() == expected


def test_examples_are_chosen_on_the_host(elsewhere: Callable[[], None]) -> None:
    source = QuadraticTask(examples=16).task
    expected = [x.tolist() for x in random_examples(source, seed=3)]
    elsewhere()
    assert [x.tolist() for x in random_examples(source, seed=3)] == expected


def test_what_is_calibrated_against_is_made_on_the_host(elsewhere: Callable[[], None]) -> None:
    expected = _Known("float32", torch.device("cpu"), 3, Alone())
    elsewhere()
    found = _Known("float32", torch.device("cpu"), 3, Alone())
    assert (found.grad_sq, found.trace_cov) == (expected.grad_sq, expected.trace_cov)
    assert torch.equal(found.inputs, expected.inputs)


def test_loaders_and_samplers_draw_where_torch_makes_their_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch refuses a generator of the host where the default device is a GPU."""
    made: list[str] = []
    real = torch.Generator

    def generator(device: torch.device | str = "cpu") -> torch.Generator:
        made.append(str(device))
        return real()

    monkeypatch.setattr(torch, "Generator", generator)
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cuda:0"))
    plain = Source(dataset=list(range(8)))
    plain.loader(4, seed=0, epochs=1)
    assert sorted(made) == ["cpu", "cuda:0"]  # our own order is drawn on the host
    made.clear()
    weighted = DataLoader(list(range(8)), 4, sampler=WeightedRandomSampler([1.0] * 8, 8))
    source_from(weighted, collate_fn=None, num_workers=0).loader(4, seed=0, epochs=1)
    assert made == ["cuda:0", "cuda:0"]


@pytest.mark.gpu
def test_batches_are_loaded_where_the_default_device_is_an_accelerator(
    device: torch.device, elsewhere: Callable[[], None]
) -> None:
    source = Source(dataset=list(range(8)))
    expected = [batch.tolist() for batch in source.loader(4, seed=0, epochs=1)]
    torch.set_default_device(device)
    assert [batch.tolist() for batch in source.loader(4, seed=0, epochs=1)] == expected
