"""The bikes task. Oracle: the definition, computed row by row from the file."""

import math
import statistics
from pathlib import Path

import pytest
import torch

from rightbatch.task import Task
from rightbatch.tasks.bike_table import (
    CATEGORIES,
    NUMBERS,
    BikeTable,
    bike_table_sha256,
    read_bike_table,
)
from rightbatch.tasks.bikes import BIKES_FILE, bikes
from rightbatch.tasks.building import split_rows
from rightbatch.tasks.data_files import locate
from tests.tasks.small_files import write_bikes


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BikeTable:
    monkeypatch.setenv("RIGHTBATCH_DATA", str(tmp_path))
    return read_bike_table(write_bikes(tmp_path))


@pytest.fixture
def task(table: BikeTable) -> Task:
    return bikes(device="cpu")


def test_examples_are_the_training_rows_of_the_file(table: BikeTable) -> None:
    rows = bikes(device="cpu").source.dataset
    train, _ = split_rows(120, 96)
    logs = [math.log1p(table["cnt"][index]) for index in train]
    hums = [table["hum"][index] for index in train]
    assert len(rows) == 96
    for place, index in enumerate(train.tolist()):
        categories, numbers, target = rows[place]
        codes = [table[name][index] - low for name, (low, _) in CATEGORIES.items()]
        assert categories.tolist() == codes
        log = (math.log1p(table["cnt"][index]) - statistics.mean(logs)) / statistics.pstdev(logs)
        hum = (table["hum"][index] - statistics.mean(hums)) / statistics.pstdev(hums)
        assert target.item() == pytest.approx(log, abs=1e-5)
        assert numbers[NUMBERS.index("hum")].item() == pytest.approx(hum, abs=1e-5)


def test_a_constant_column_says_nothing_but_is_finite(table: BikeTable) -> None:
    numbers = bikes(device="cpu").source.dataset.columns[1]
    assert len(set(table["windspeed"])) == 1
    assert numbers[:, NUMBERS.index("windspeed")].tolist() == [0.0] * 96


def test_metric_is_the_error_of_log_counts_on_the_held_out_rows(table: BikeTable) -> None:
    task = bikes(device="cpu")
    with torch.no_grad():  # a model that says the training mean for every hour
        for parameter in task.parameters:
            parameter.zero_()
    train, test = split_rows(120, 96)
    logs = [math.log1p(count) for count in table["cnt"]]
    mean = statistics.mean(logs[index] for index in train)
    slow = math.sqrt(statistics.mean((logs[index] - mean) ** 2 for index in test))
    assert task.evaluate is not None
    assert task.evaluate(task.model) == pytest.approx(slow, rel=1e-6)


def test_every_category_of_every_column_has_a_vector_of_its_own(task: Task) -> None:
    first_row = task.model.get_buffer("first_row").tolist()
    counts = [count for _, count in CATEGORIES.values()]
    used = [first + code for first, n in zip(first_row, counts, strict=True) for code in range(n)]
    assert used == list(range(task.model.get_parameter("embedding.weight").shape[0]))


def test_a_vector_moves_the_prediction_of_its_own_rows_only(task: Task) -> None:
    categories, numbers, _ = task.source.dataset.columns
    weight = task.model.get_parameter("embedding.weight")
    row = int(task.model.get_buffer("first_row")[3]) + 5  # five o'clock
    with torch.no_grad():
        before = task.model(categories, numbers)
        weight[row] += 1
        moved = task.model(categories, numbers) != before
    assert moved.tolist() == (categories[:, 3] == 5).tolist()
    assert moved.any()


@pytest.mark.data
def test_the_public_table_is_known_by_its_digest_in_both_date_styles(tmp_path: Path) -> None:
    table = read_bike_table(locate(BIKES_FILE))
    assert bike_table_sha256(table) == BIKES_FILE.sha256
    for style in ("iso", "american"):
        rows = []
        for instant, day, *rest in zip(*table.values(), strict=True):
            year, month, date = map(int, day.split("-"))
            written = day if style == "iso" else f"{month}/{date}/{year}"
            rows.append(",".join(map(str, (instant, written, *rest))))
        path = write_bikes(tmp_path, rows)
        assert read_bike_table(path) == table
        assert BIKES_FILE.digest(path) == BIKES_FILE.sha256
