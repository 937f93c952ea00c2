"""Data files like the public ones, but small enough for every test."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

BIKE_HEADER = (
    "instant,dteday,season,yr,mnth,hr,holiday,weekday,workingday,weathersit,"
    "temp,atemp,hum,windspeed,casual,registered,cnt"
)


def mnist_arrays(train: int = 80, test: int = 10) -> dict[str, Any]:
    """Random images whose labels go around."""
    draw = np.random.default_rng(0)
    return {
        "x_train": draw.integers(0, 256, (train, 28, 28), dtype=np.uint8),
        "y_train": np.arange(train, dtype=np.uint8) % 10,
        "x_test": draw.integers(0, 256, (test, 28, 28), dtype=np.uint8),
        "y_test": np.arange(test, dtype=np.uint8) % 10,
    }


def write_mnist(folder: Path, **changed: Any) -> Path:
    """Write ``mnist.npz``; a key given as ``None`` is left out."""
    arrays = {k: v for k, v in (mnist_arrays() | changed).items() if v is not None}
    np.savez(folder / "mnist.npz", **arrays)
    return folder / "mnist.npz"


def bike_rows(count: int = 120, *, iso: bool = True) -> list[str]:
    """Count hours from the first of December 2011; dates in either style."""
    rows = []
    for index in range(count):
        day, hour = divmod(index, 24)
        date = f"2011-12-{day + 1:02d}" if iso else f"12/{day + 1}/2011"
        rows.append(
            f"{index + 1},{date},{1 + index % 4},{index % 2},12,{hour},{index % 2},{day % 7},"
            f"{(index + 1) % 2},{1 + index % 4},{hour / 24:.2f},0.2879,{index % 100 / 100},"
            f"0,{index % 3},{index * 7 % 50},{index % 3 + index * 7 % 50}"
        )
    return rows


def write_bikes(folder: Path, rows: Iterable[str] | None = None, header: str = BIKE_HEADER) -> Path:
    """Write ``bike_sharing_hour.csv``."""
    path = folder / "bike_sharing_hour.csv"
    path.write_text("\n".join([header, *(bike_rows() if rows is None else rows)]) + "\n")
    return path


def write_shakespeare(folder: Path, length: int = 45 * 128) -> Path:
    """Write ``tinyshakespeare.txt``: words in an order that does not repeat soon."""
    draw = np.random.default_rng(0)
    words = ["to ", "be ", "or ", "not ", "that ", "is ", "the ", "question\n"]
    text = "".join(words[index] for index in draw.integers(0, len(words), length))
    path = folder / "tinyshakespeare.txt"
    path.write_text(text[:length])
    return path
