"""Handwritten digits: the task most claims about batch sizes are told on."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from rightbatch.errors import DataUnavailable
from rightbatch.task import Task, supervised
from rightbatch.tasks.building import default_device, seeded_float32
from rightbatch.tasks.data_files import DataFile, locate
from rightbatch.tasks.rows import Rows, correct, evaluate_rows, take

MNIST_FILE = DataFile(
    name="mnist.npz",
    url="https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    sha256="731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
)
_BATCH_SIZE = 64
_MEAN, _STD = 0.1307, 0.3081  # of the training images' pixels in [0, 1]


def mnist(*, seed: int = 0, device: torch.device | str | None = None) -> Task:
    """Build the MNIST task: 60,000 images of digits, a network of three convolutions.

    29,994 parameters; SGD with learning rate 0.02 and momentum 0.5; batch size 64. `Task.evaluate`
    is the accuracy on the 10,000 test images, a share in [0, 1]: higher is better.

    Args:
        seed: Of the initial weights.
        device: Where to train; the accelerator if there is one.

    Raises:
        DataUnavailable: If ``mnist.npz`` cannot be found, downloaded or read.
    """
    images, labels, test_images, test_labels = read_mnist(locate(MNIST_FILE))
    test = _rows(test_images, test_labels)
    with seeded_float32(seed):
        model = _three_convolutions().to(device or default_device())
    return Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.5),
        _rows(images, labels),
        supervised(F.cross_entropy),
        collate_fn=take,
        evaluate=lambda trained: evaluate_rows(trained, test, correct),
        batch_size=_BATCH_SIZE,
        name="mnist",
    )


def read_mnist(path: Path) -> tuple[NDArray[np.uint8], ...]:
    """Read and check an ``mnist.npz`` in Keras' layout.

    Returns:
        Training images ``[N, 28, 28]`` and labels ``[N]``, test images and labels.

    Raises:
        DataUnavailable: If the file cannot be read, or a key is missing or of another shape.
    """
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            keys = list(archive.keys()) if isinstance(archive, np.lib.npyio.NpzFile) else []
            missing = [name for name in names if name not in keys]
            arrays = () if missing else tuple(archive[name] for name in names)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataUnavailable(
            f"{str(path)!r} must be an .npz archive, got {type(error).__name__}: {error}. "
            "It is truncated or something else: delete it to download it anew, or replace it."
        ) from error
    if missing:
        raise DataUnavailable(
            f"{str(path)!r} must hold the keys {', '.join(names)} (Keras' layout), but "
            f"{', '.join(missing)} is missing, got keys={keys[:5]}. Replace the file."
        )
    for images, labels in (names[:2], names[2:]):
        _check_arrays(path, dict(zip(names, arrays, strict=True)), images, labels)
    return arrays


def _check_arrays(
    path: Path, arrays: dict[str, NDArray[np.uint8]], images: str, labels: str
) -> None:
    x, y = arrays[images], arrays[labels]
    least = _BATCH_SIZE if images == "x_train" else 1
    wrong = None
    if x.ndim != 3 or x.shape[1:] != (28, 28) or x.dtype != np.uint8:
        wrong = f"{images!r} must be uint8 of shape [N, 28, 28], got {x.dtype} {list(x.shape)}"
    elif len(x) < least:
        wrong = f"{images!r} must hold at least {least} images, got {len(x)}"
    elif y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        wrong = f"{labels!r} must be {len(x)} integers, got {y.dtype} {list(y.shape)}"
    elif y.min() < 0 or y.max() > 9:
        wrong = f"{labels!r} must be digits from 0 to 9, got {y.min()} to {y.max()}"
    if wrong:
        raise DataUnavailable(f"{wrong}, in {str(path)!r}. Replace the file by Keras' mnist.npz.")


def _rows(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Rows:
    pixels = torch.from_numpy(images).unsqueeze(1).to(torch.float32)
    return Rows(pixels.div_(255).sub_(_MEAN).div_(_STD), torch.from_numpy(labels).to(torch.int64))


def _three_convolutions() -> nn.Module:
    # Strides instead of pooling: on a CPU, pooling costs more than the convolutions.
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )
