import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from rightbatch.hardware.live_bytes import LiveBytes

pytestmark = pytest.mark.usefixtures("float32")


def train(model, optimizer, inputs):
    model(inputs).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def small_network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 50), nn.Linear(50, 1)
    )


def library_peak(model, optimizer, inputs):
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        train(model, optimizer, inputs)
    (totals,) = tracker.get_tracker_snapshot("peak").values()
    return totals["Total"]


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("examples", [1, 7, 64])
def test_counts_what_torchs_own_tracker_counts(fake, examples):
    with FakeTensorMode() if fake else torch.no_grad(), torch.enable_grad():
        model, inputs = small_network(), torch.randn(examples, 1, 8, 8)
        optimizer = torch.optim.AdamW(model.parameters())
        train(model, optimizer, inputs)
        expected = library_peak(model, optimizer, inputs)
        states = [s for state in optimizer.state.values() for s in state.values()]
        with LiveBytes([*model.parameters(), *states]) as alive:
            train(model, optimizer, inputs)
    assert alive.peak_bytes == expected


def test_counts_a_module_that_is_called_twice():
    layer, inputs = nn.Linear(10, 10, bias=False), torch.ones(5, 10)
    with LiveBytes(layer.parameters()) as alive, torch.no_grad():
        a, b = layer(inputs), layer(inputs)
    assert alive.bytes == alive.peak_bytes == 4 * (100 + 50 + 50)
    del a, b
    assert alive.bytes == 400


def test_views_and_changes_in_place_cost_nothing():
    with LiveBytes() as alive:
        a = torch.zeros(100)
        a[:50].add_(1).view(5, 10).mul_(2)
    assert alive.peak_bytes == 400


def test_a_sparse_gradient_counts_its_parts():
    table = nn.Embedding(1000, 4, sparse=True)
    with LiveBytes() as alive:
        table(torch.tensor([1, 2])).sum().backward()
    assert table.weight.grad.is_sparse
    assert 2 * 8 + 2 * 4 * 4 <= alive.bytes < 1000


def test_a_storage_may_be_resized():
    with LiveBytes() as alive:
        a = torch.zeros(10)
        a.resize_(100)
        assert alive.bytes == 400
        del a
    assert (alive.bytes, alive.peak_bytes) == (0, 400)


def test_what_is_let_go_counts_no_more_until_it_is_used():
    kept, others = torch.zeros(100), torch.zeros(10)
    with LiveBytes([kept, others]) as alive:
        alive.let_go([kept[5:], kept])
        assert alive.bytes == 40
        kept.add_(1)
        assert alive.bytes == 440
        alive.let_go([kept])
        del kept
    assert (alive.bytes, alive.peak_bytes) == (40, 440)


def test_what_is_not_to_be_counted_is_not_in_a_view_either():
    data = torch.zeros(100)
    with LiveBytes([data], uncounted=[data]) as alive:
        part = data[:10]
        more = part + 1
    assert alive.peak_bytes == more.nbytes


def test_rounds_up_to_the_allocators_granularity():
    with LiveBytes(granularity=512) as alive:
        kept = [torch.zeros(1), torch.zeros(128), torch.zeros(129)]
    assert len(kept) == 3
    assert alive.bytes == 512 + 512 + 1024
