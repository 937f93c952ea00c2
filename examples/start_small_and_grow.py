"""Start small and grow: raise the batch where the learning rate would have decayed.

    python examples/start_small_and_grow.py

One loop trains twice from the same weights. Once the batch stays small and the rate is divided by
five after 6 and 9 of 12 epochs; once the rate stays and the batch grows five-fold there instead.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb

BATCH_SIZE, LEARNING_RATE, EPOCHS = 16, 0.1, 12


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


def train(schedule: rb.BatchSizeSchedule, *, num_workers: int = 0) -> tuple[int, float]:
    """Train by a schedule; return the number of updates and the share of right answers."""
    model = make_model()
    optimizer = make_optimizer(model)
    data, test_data = make_data()
    sampler = rb.BatchSizeSampler(data, schedule)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=num_workers)
    updates = 0
    for _ in range(EPOCHS):
        for inputs, labels in sampler.follow(loader):
            decision = schedule.size_at(sampler.examples_seen - len(labels))
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * decision.rate_factor
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            updates += 1
    inputs, labels = test_data.tensors
    return updates, (model(inputs).argmax(1) == labels).double().mean().item()


def main() -> None:
    num_examples = len(make_data()[0])
    milestones = [6 * num_examples, 9 * num_examples]
    for name, max_batch_size in (("decay the rate", BATCH_SIZE), ("grow the batch", 400)):
        # A batch that may not grow leaves the whole decay to the rate.
        schedule = rb.BatchSizeSchedule.smith(
            BATCH_SIZE, 5, milestones, max_batch_size=max_batch_size
        )
        updates, accuracy = train(schedule)
        sizes = " -> ".join(str(size) for size in schedule.sizes)
        print(f"{name}: batch {sizes}, {updates} updates, {accuracy:.1%} right")


if __name__ == "__main__":
    main()
