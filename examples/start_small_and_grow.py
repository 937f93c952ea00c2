"""Start small and grow: let the batch grow while the model learns, instead of decaying the rate.

    python examples/start_small_and_grow.py

One loop trains three times from the same weights, each time by another schedule: the rate is
divided by five after 6 and 9 of 12 epochs; the batch grows five-fold there instead; the batch
follows the noise that is measured on the way.
"""

from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb
from rightbatch.control import Move

BATCH_SIZE, LEARNING_RATE, EPOCHS = 16, 0.1, 12
FITS_IN_MEMORY = 64  # examples; larger batches are accumulated


def make_data() -> tuple[TensorDataset, TensorDataset]:
    """Handwritten digits of 8 x 8 pixels, for training and for testing."""
    pixels, labels = load_digits(return_X_y=True)
    digits = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    return TensorDataset(*(part[:1400] for part in digits)), TensorDataset(
        *(part[1400:] for part in digits)
    )


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)


def make_task() -> rb.Task:
    """The same training as a task: rightbatch find examples/start_small_and_grow.py:make_task."""
    model = make_model()
    data, _ = make_data()
    loss = rb.supervised(F.cross_entropy)
    return rb.Task(model, make_optimizer(model), data, loss, batch_size=BATCH_SIZE)


def follow_the_noise(num_examples: int) -> rb.BatchSizeSchedule:
    """Double the batch when the noise clearly asks for it, at most once an epoch."""
    return rb.BatchSizeSchedule.noise(BATCH_SIZE, max_batch_size=256, dwell_examples=num_examples)


def watch(model: nn.Module, optimizer: torch.optim.Optimizer, num_examples: int) -> rb.NoiseMonitor:
    # Measured at every step, and not as often as the time allows, so that each run is the same.
    # A gradient of 16 examples is mostly noise: it takes epochs of them to see past it.
    return rb.NoiseMonitor(
        model, optimizer, every=1, examples=8, half_life_examples=4 * num_examples
    )


def accuracy(model: nn.Module) -> float:
    """Share of right answers on the test examples."""
    inputs, labels = make_data()[1].tensors
    return (model(inputs).argmax(1) == labels).double().mean().item()


def train(
    schedule: rb.BatchSizeSchedule,
    *,
    num_workers: int = 0,
    log: Callable[[Move], Any] | None = None,
) -> tuple[int, float]:
    """Train by a schedule; return the number of updates and the share of right answers."""
    model = make_model()
    optimizer = make_optimizer(model)
    data, _ = make_data()
    # Workers load ahead. In chunks, a size that is decided on the way arrives at once all the same.
    sampler = rb.BatchSizeSampler(data, BATCH_SIZE, chunk_size=BATCH_SIZE)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=num_workers)
    monitor = watch(model, optimizer, len(data))
    controller = rb.BatchSizeController(
        optimizer,
        schedule,
        sampler=sampler,
        max_micro_batch_size=FITS_IN_MEMORY,
        monitor=monitor,
        log=log,
    )
    with monitor:
        for _ in range(EPOCHS):
            for batch in sampler.follow(loader):
                optimizer.zero_grad()
                for (inputs, labels), weight in controller.micro_batches(batch):
                    (weight * F.cross_entropy(model(inputs), labels)).backward()
                    monitor.observe(len(labels), factor=weight)
                optimizer.step()
                controller.step()  # the size and the rate of the next batch
    return sampler.delivered, accuracy(model)


def main() -> None:
    num_examples = len(make_data()[0])
    milestones = [6 * num_examples, 9 * num_examples]
    smith = rb.BatchSizeSchedule.smith
    schedules = {
        # A batch that may not grow leaves the whole decay to the rate.
        "decay the rate": smith(BATCH_SIZE, 5, milestones, max_batch_size=BATCH_SIZE),
        "grow the batch": smith(BATCH_SIZE, 5, milestones, max_batch_size=400),
        "follow the noise": follow_the_noise(num_examples),
    }
    for name, schedule in schedules.items():
        moves: list[Move] = []
        updates, right = train(schedule, log=moves.append)
        sizes = dict.fromkeys([BATCH_SIZE, *(move.to_batch_size for move in moves)])
        print(f"{name}: batch {' -> '.join(map(str, sizes))}, {updates} updates, {right:.1%} right")
        for move in moves:
            print(f"  {move}")


if __name__ == "__main__":
    main()
