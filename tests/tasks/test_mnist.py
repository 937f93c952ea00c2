"""MNIST: reading its file, and the task made of it. Oracle: the definition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rightbatch.errors import DataUnavailable
from rightbatch.tasks.mnist import mnist, read_mnist
from tests.tasks.small_files import mnist_arrays, write_mnist

ARRAYS = mnist_arrays()


def test_arrays_are_those_of_the_file(tmp_path: Path) -> None:
    for got, name in zip(read_mnist(write_mnist(tmp_path)), ARRAYS, strict=True):
        assert np.array_equal(got, ARRAYS[name])


@pytest.mark.parametrize("key", list(ARRAYS))
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataUnavailable, match=f"but {key} is missing, got keys="):
        read_mnist(write_mnist(tmp_path, **{key: None}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": ARRAYS["x_train"][:, :27]}, r"x_train' must be uint8 .*uint8 \[80, 27, 28\]"),
        ({"x_test": ARRAYS["x_test"] / 255}, r"x_test' must be uint8 .*float64 \[10, 28, 28\]"),
        ({"x_test": ARRAYS["x_test"].reshape(10, 784)}, r"x_test' must be .*uint8 \[10, 784\]"),
        ({"y_train": ARRAYS["y_train"][1:]}, r"y_train' must be 80 integers, got uint8 \[79\]"),
        ({"y_test": np.eye(10)}, r"y_test' must be 10 integers, got float64 \[10, 10\]"),
        ({"y_test": np.arange(1, 11)}, r"y_test' must be digits from 0 to 9, got 1 to 10"),
        ({"x_train": ARRAYS["x_train"][:63]}, r"x_train' must hold at least 64 images, got 63"),
        ({"x_test": ARRAYS["x_test"][:0]}, r"x_test' must hold at least 1 images, got 0"),
    ],
)
def test_a_wrong_shape_or_kind_is_named(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataUnavailable, match=message):
        read_mnist(write_mnist(tmp_path, **changed))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_says_how_to_get_a_whole_one(tmp_path: Path, share: float) -> None:
    path = write_mnist(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataUnavailable, match=r"must be an \.npz archive.*delete it to download"):
        read_mnist(path)


def test_a_damaged_member_is_an_error(tmp_path: Path) -> None:
    path = write_mnist(tmp_path)
    content = bytearray(path.read_bytes())
    content[5_000] ^= 0xFF  # inside the first array
    path.write_bytes(content)
    with pytest.raises(DataUnavailable, match="BadZipFile"):
        read_mnist(path)


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    with (tmp_path / "mnist.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(DataUnavailable, match=r"x_test, y_test is missing, got keys=\[\]"):
        read_mnist(tmp_path / "mnist.npz")


def test_images_are_standardised_and_labels_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("RIGHTBATCH_DATA", str(tmp_path))
    rows = mnist(device="cpu").source.dataset
    image, label = rows[7]
    assert image.shape == (1, 28, 28)
    expected = (torch.from_numpy(ARRAYS["x_train"][7]) / 255 - 0.1307) / 0.3081
    assert torch.allclose(image[0], expected.float(), rtol=0, atol=1e-6)
    assert (label.item(), label.dtype) == (7, torch.int64)


def test_metric_is_the_share_of_test_images_told_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("RIGHTBATCH_DATA", str(tmp_path))
    task = mnist(device="cpu")
    pixels = (torch.from_numpy(ARRAYS["x_test"]) / 255 - 0.1307) / 0.3081
    with torch.no_grad():
        said = [int(task.model(image[None, None].float()).argmax()) for image in pixels]
    right = sum(a == b for a, b in zip(said, ARRAYS["y_test"], strict=True))
    assert task.evaluate is not None
    assert task.evaluate(task.model) == pytest.approx(right / 10)


@pytest.mark.data
def test_pixels_of_the_public_file_have_mean_zero_and_spread_one() -> None:
    images = mnist(device="cpu").source.dataset.columns[0]
    assert images.mean().item() == pytest.approx(0.0, abs=2e-3)
    assert images.std().item() == pytest.approx(1.0, abs=2e-3)
