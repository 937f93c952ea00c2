"""The Shakespeare task. Oracles: the definition (slow attention, windows by hand), and laws."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rightbatch.errors import DataUnavailable
from rightbatch.task import Task
from rightbatch.tasks.shakespeare import _Block, _encode, _windows, shakespeare
from tests.tasks.small_files import write_shakespeare


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    write_shakespeare(tmp_path)
    monkeypatch.setenv("RIGHTBATCH_DATA", str(tmp_path))
    return shakespeare(device="cpu")


@pytest.mark.parametrize("length", [2, 128, 129, 130, 257, 300])
def test_windows_hold_every_step_of_the_text_once(length: int) -> None:
    codes = torch.arange(length) + 1000
    inputs, targets = _windows(codes).columns
    assert inputs.shape == targets.shape == (math.ceil((length - 1) / 128), 128)
    steps = [
        (a, b)
        for a, b in zip(inputs.flatten().tolist(), targets.flatten().tolist(), strict=True)
        if b != -100
    ]
    assert steps == [(1000 + i, 1001 + i) for i in range(length - 1)]


def test_characters_are_numbered_by_the_alphabet() -> None:
    codes, size = _encode("banana b")
    assert (codes.tolist(), size) == ([2, 1, 3, 1, 3, 1, 0, 2], 4)  # " abn"


def test_training_and_held_out_text_do_not_overlap(task: Task) -> None:
    length = 45 * 128
    boundary = round(0.9 * length)
    targets = task.source.dataset.columns[1]
    assert task.weigh(task.source.dataset.columns) == boundary - 1
    assert task.num_examples == len(targets) == math.ceil((boundary - 1) / 128)


def test_weight_counts_the_characters_that_have_a_target(task: Task) -> None:
    last = task.source.dataset.__getitems__([0, len(task.source.dataset) - 1])
    ragged = (round(0.9 * 45 * 128) - 1) % 128
    assert 0 < ragged < 128
    assert task.weigh(last) == 128 + ragged


def test_weighted_losses_of_parts_add_up_to_that_of_the_whole(task: Task) -> None:
    rows = task.source.dataset
    parts = [rows.__getitems__(part) for part in ([0, 1, 2], [3], [len(rows) - 1])]
    whole = rows.__getitems__([0, 1, 2, 3, len(rows) - 1])
    summed = sum(task.loss(part)[0].item() * task.weigh(part) for part in parts)
    assert task.loss(whole)[0].item() * task.weigh(whole) == pytest.approx(summed, rel=1e-5)


def test_padding_does_not_count_in_the_loss(task: Task) -> None:
    inputs, targets = task.source.dataset.__getitems__([len(task.source.dataset) - 1])
    length = int((targets != -100).sum())
    short = (inputs[:, :length], targets[:, :length])
    assert task.loss((inputs, targets))[0].item() == pytest.approx(
        task.loss(short)[0].item(), rel=1e-5
    )


def test_no_prediction_sees_a_later_character(task: Task) -> None:
    inputs = task.source.dataset.columns[0][:2]
    changed = inputs.clone()
    changed[:, 60] = (changed[:, 60] + 1) % 5
    with torch.no_grad():
        moved = (task.model(inputs) - task.model(changed)).abs().amax(dim=(0, 2))
    assert moved[:60].max().item() == 0.0
    assert moved[60:].min().item() > 0.0


def slow_attention(block: _Block, x: Tensor) -> Tensor:
    """Mix the values of earlier characters, one head and one character at a time."""
    projected = x @ block.query_key_value.weight.T + block.query_key_value.bias
    query, key, value = projected.split(128, dim=1)
    mixed = torch.zeros_like(x)
    for head in range(4):
        part = slice(32 * head, 32 * head + 32)
        for t in range(len(x)):
            score = key[: t + 1, part] @ query[t, part] / math.sqrt(32)
            mixed[t, part] = score.softmax(dim=0) @ value[: t + 1, part]
    return mixed @ block.attention_out.weight.T + block.attention_out.bias


def test_attention_is_its_definition_and_the_block_adds_to_its_input() -> None:
    block = _Block()  # float64, as the test session computes
    x = torch.randn(9, 128)
    with torch.no_grad():
        middle = x + slow_attention(block, block.attention_norm(x))
        expected = middle + block.perceptron(middle)
        assert torch.allclose(block(x[None])[0], expected, rtol=1e-10, atol=1e-12)


def test_an_untrained_model_knows_nothing(task: Task) -> None:
    vocabulary = task.model.get_parameter("characters.weight").shape[0]
    assert task.evaluate is not None
    assert task.evaluate(task.model) == pytest.approx(math.log(vocabulary), rel=0.05)


def test_a_short_text_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shakespeare(tmp_path, length=5_000)
    monkeypatch.setenv("RIGHTBATCH_DATA", str(tmp_path))
    with pytest.raises(DataUnavailable, match="at least 5120 characters, got 5000"):
        shakespeare()


def test_a_file_that_is_no_text_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tinyshakespeare.txt").write_bytes(b"\xff\xfe\x00" * 3_000)
    monkeypatch.setenv("RIGHTBATCH_DATA", str(tmp_path))
    with pytest.raises(DataUnavailable, match="must be a text in UTF-8, got UnicodeDecodeError"):
        shakespeare()


@pytest.mark.data
def test_held_out_windows_of_the_public_text_are_those_of_its_last_tenth() -> None:
    task = shakespeare(device="cpu")
    assert task.num_examples == 7_843
    assert task.weigh(task.source.dataset.columns) == round(0.9 * 1_115_394) - 1
