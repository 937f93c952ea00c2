"""What a measured step holds, counted byte by byte: the batch's tensors are freed as without us."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import rightbatch as rb
from rightbatch.hardware.live_bytes import LiveBytes

BATCH = 256


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 3),
    ), torch.randn(BATCH, 1, 12, 12)


def tokens_with_places():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(11, 32), nn.Embedding(16, 32)
            self.layers = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.LayerNorm(32))
            self.head = nn.Linear(32, 3)

        def forward(self, ids):
            return self.head(self.layers(self.words(ids) + self.places(torch.arange(16))))

    return Model(), torch.randint(11, (BATCH, 16))


def peak_bytes(model, inputs, *, watched):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = rb.NoiseMonitor(model, optimizer, every=1)
    with monitor if watched else nullcontext(), LiveBytes(model.parameters()) as alive:
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            if watched:
                monitor.observe(BATCH)
            optimizer.step()
    assert not watched or monitor.result().steps_measured == 2  # the first step shows the batch
    return alive.peak_bytes


@pytest.mark.parametrize("make", [convolutions, tokens_with_places])
def test_a_measured_step_frees_the_batch_as_early(make):
    plain = peak_bytes(*make(), watched=False)
    # A 64th of the examples, unfolded for a 3 x 3 kernel, is a tenth of the batch; holding on to
    # the batch's own tensors takes a third and more.
    assert plain <= peak_bytes(*make(), watched=True) <= 1.1 * plain
