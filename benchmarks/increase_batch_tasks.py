"""What the batch is increased on: MNIST and part of CIFAR-10, small networks for two CPU cores.

Both are cut alike: 16,000 images to train on, 4,000 to choose the learning rate by, and the test
images, which nothing is chosen by.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rightbatch.errors import DataUnavailable, MissingExtra
from rightbatch.tasks.building import seeded_float32
from rightbatch.tasks.data_files import DataFile, find_here, locate
from rightbatch.tasks.mnist import MNIST_FILE, _three_convolutions, read_mnist
from rightbatch.tasks.rows import Rows

NUM_TRAIN, NUM_VALIDATION = 16_000, 4_000
# 20,000 + 4,000 images of CIFAR-10 (Krizhevsky, 2009), each as the bytes of a JPEG file.
CIFAR_FILE = DataFile(name="cifar10_jpeg_subset.npz", url="", sha256="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Data split in three, and a network."""

    name: str
    train: Rows
    validation: Rows
    test: Rows
    make_model: Callable[[], nn.Module]

    def model(self, seed: int) -> nn.Module:
        """Make the network anew."""
        with seeded_float32(seed):
            return self.make_model()


def mnist() -> Problem:
    """Digits, and the network of the built-in task: three convolutions, nothing normalised."""
    images, labels, test_images, test_labels = read_mnist(locate(MNIST_FILE))
    train, test = (images[:, None], labels), (test_images[:, None], test_labels)
    return _problem("mnist", train, test, _three_convolutions)


def cifar() -> Problem:
    """Photographs of ten kinds of things, and three convolutions with BatchNorm.

    Raises:
        DataUnavailable: If the file is not in ``$RIGHTBATCH_DATA``; it has no public home.
        MissingExtra: If Pillow is not installed.
    """
    path = find_here(CIFAR_FILE)
    if path is None:
        raise DataUnavailable(
            f"the data file {CIFAR_FILE.name!r} must be in $RIGHTBATCH_DATA, and is not. It has no "
            "public home: make one of train_bytes, train_offsets, train_labels, and the same for "
            "test, where image i is the JPEG file bytes[offsets[i]:offsets[i + 1]]."
        )
    with np.load(path, allow_pickle=False) as archive:
        train, test = (
            (
                decoded(archive[f"{part}_bytes"], archive[f"{part}_offsets"]),
                archive[f"{part}_labels"],
            )
            for part in ("train", "test")
        )
    return _problem("cifar10", train, test, _normalised_convolutions)


def decoded(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Decode JPEG files that lie one after the other: images ``[N, 3, height, width]``."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra(
            f"decoding the images of CIFAR-10 needs Pillow, and importing it failed: {error}. "
            "Install it: pip install pillow"
        ) from error
    files = data.tobytes()
    images = [
        np.asarray(Image.open(io.BytesIO(files[start:end]))) for start, end in pairwise(offsets)
    ]
    return np.stack(images).transpose(0, 3, 1, 2)


def _problem(
    name: str,
    images_and_labels: tuple[NDArray[Any], NDArray[Any]],
    test: tuple[NDArray[Any], NDArray[Any]],
    make_model: Callable[[], nn.Module],
) -> Problem:
    """Cut and standardise; both files are shuffled already."""
    images, labels = images_and_labels
    end = NUM_TRAIN + NUM_VALIDATION
    train = _pixels(images[:NUM_TRAIN])
    dims = (0, 2, 3)
    mean, std = train.mean(dims, keepdim=True), train.std(dims, keepdim=True)

    def rows(images: NDArray[Any], labels: NDArray[Any]) -> Rows:
        return Rows((_pixels(images) - mean) / std, torch.from_numpy(labels).to(torch.int64))

    return Problem(
        name=name,
        train=rows(images[:NUM_TRAIN], labels[:NUM_TRAIN]),
        validation=rows(images[NUM_TRAIN:end], labels[NUM_TRAIN:end]),
        test=rows(*test),
        make_model=make_model,
    )


def _pixels(images: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32) / 255


def _normalised_convolutions() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))
