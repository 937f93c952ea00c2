"""The digits task. Oracle: scikit-learn's own arrays, one image at a time."""

import sys

import pytest
import torch
from sklearn.datasets import load_digits

from rightbatch.errors import MissingExtra
from rightbatch.tasks import BUILT_IN
from rightbatch.tasks.building import split_rows
from rightbatch.tasks.digits import digits

PIXELS, LABELS = load_digits(return_X_y=True)
TRAIN, TEST = split_rows(1_797, 1_500)


def test_examples_are_the_training_images_scaled_to_one() -> None:
    images, labels = digits(device="cpu").source.dataset.columns
    assert images.shape == (1_500, 1, 8, 8)
    assert torch.equal(images.flatten(1), torch.from_numpy(PIXELS)[TRAIN].float() / 16)
    assert labels.tolist() == LABELS[TRAIN].tolist()


def test_metric_is_the_share_of_held_out_images_told_right() -> None:
    task = digits(device="cpu")
    for batch in task.batches(32, epochs=1):
        task.step(batch)
    with torch.no_grad():
        said = [
            int(task.model(torch.from_numpy(PIXELS[i]).float().view(1, 1, 8, 8) / 16).argmax())
            for i in TEST
        ]
    right = sum(a == b for a, b in zip(said, LABELS[TEST], strict=True))
    assert task.evaluate is not None
    assert task.evaluate(task.model) == pytest.approx(right / 297)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'rightbatch\[demo\]'"):
        digits()


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
def test_the_target_is_reached_within_ten_epochs() -> None:
    task = digits(device="cpu")
    assert task.evaluate is not None
    for epoch in range(10):
        for batch in task.batches(32, seed=epoch, epochs=1):
            task.step(batch)
        if BUILT_IN["digits"].reached(task.evaluate(task.model)):
            return
    pytest.fail(f"accuracy is {task.evaluate(task.model)} after ten epochs")
