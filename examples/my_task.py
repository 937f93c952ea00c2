"""A training task of your own, in a file: ``rightbatch find examples/my_task.py:make_task``."""

import torch
from torch import nn
from torch.nn import functional as F

import rightbatch as rb


def make_task() -> rb.Task:
    """Two moons of points, a small perceptron."""
    angle = torch.linspace(0, torch.pi, 2000)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    points = torch.cat([upper, 1 - upper]) + 0.2 * torch.randn(4000, 2)
    labels = torch.arange(4000) // 2000
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
    return rb.Task(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        torch.utils.data.TensorDataset(points, labels),
        rb.supervised(F.cross_entropy),
        batch_size=64,
    )
