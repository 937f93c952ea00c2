"""The example runs, and shows what it says: fewer updates, as good a model."""

import runpy
from pathlib import Path
from typing import Any

import pytest

import rightbatch as rb

EXAMPLE = Path(__file__).parents[2] / "examples" / "start_small_and_grow.py"

pytestmark = [
    pytest.mark.usefixtures("float32"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def test_growing_takes_fewer_updates_to_as_good_a_model(
    example: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    example["main"]()
    lines = capsys.readouterr().out.splitlines()
    decaying, growing, following = (line for line in lines if not line.startswith(" "))
    # 1,400 examples make 88 batches of 16. In the other: six epochs of 88, three of 18 batches of
    # 80, and three of 400.
    assert "batch 16, 1056 updates" in decaying
    assert "batch 16 -> 80 -> 400" in growing
    assert "batch 16 -> 32" in following
    assert "is wanted" in lines[-1], "each move says why"
    updates = [
        int(line.split(" updates")[0].split()[-1]) for line in (decaying, growing, following)
    ]
    assert updates[2] < updates[0]
    assert updates[1] == 6 * 88 + 3 * 18 + 3 * 4
    right = [float(line.split("% right")[0].split()[-1]) for line in (decaying, growing, following)]
    # In percent. The standard error of a share of 92 % of 397 test examples is 1.4.
    assert right[1] >= right[0] - 1.4
    assert right[2] >= right[0] - 1.4


def test_following_the_noise_is_the_same_in_each_run(
    example: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with workers that load ahead: sizes that are decided on the way arrive at once."""
    monkeypatch.setitem(example["train"].__globals__, "EPOCHS", 3)
    moves: list[list[Any]] = [[], []]
    first = example["train"](example["follow_the_noise"](1400), log=moves[0].append)
    second = example["train"](example["follow_the_noise"](1400), num_workers=1, log=moves[1].append)
    assert first == second
    assert moves[0] == moves[1]
    assert moves[0][0].to_batch_size == 32


@pytest.mark.slow
def test_workers_change_nothing(example: dict[str, Any]) -> None:
    schedule = rb.BatchSizeSchedule.smith(100, 2, [1400], max_batch_size=200)
    assert example["train"](schedule) == example["train"](schedule, num_workers=2)
