"""Small handwritten digits: the task that needs no download and learns in seconds."""

import torch
from torch import nn
from torch.nn import functional as F

from rightbatch.errors import MissingExtra
from rightbatch.task import Task, supervised
from rightbatch.tasks.building import default_device, seeded_float32, split_rows
from rightbatch.tasks.rows import Rows, correct, evaluate_rows, take

_TRAIN_EXAMPLES = 1_500


def digits(*, seed: int = 0, device: torch.device | str | None = None) -> Task:
    """Build the digits task: 1,500 images of 8x8 pixels, a small convolutional network.

    9,930 parameters; SGD with learning rate 0.05 and momentum 0.9; batch size 32. `Task.evaluate`
    is the accuracy on the other 297 images, a share in [0, 1]: higher is better.

    Args:
        seed: Of the initial weights. The split into training and test images never changes.
        device: Where to train; the accelerator if there is one.

    Raises:
        MissingExtra: If scikit-learn, whose package the images are part of, is not installed.
    """
    images, labels = _images_and_labels()
    train, test = split_rows(len(images), _TRAIN_EXAMPLES)
    held_out = Rows(images[test], labels[test])
    with seeded_float32(seed):
        model = _two_convolutions().to(device or default_device())
    return Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        Rows(images[train], labels[train]),
        supervised(F.cross_entropy),
        collate_fn=take,
        evaluate=lambda trained: evaluate_rows(trained, held_out, correct),
        batch_size=32,
        name="digits",
    )


def _images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra(
            "the task 'digits' needs scikit-learn, which its images ship with, and importing it "
            f"failed: {error}. Install it: pip install 'rightbatch[demo]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).to(torch.float32).div_(16)  # pixels count up to 16
    return images.reshape(-1, 1, 8, 8), torch.from_numpy(labels).to(torch.int64)


def _two_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )
