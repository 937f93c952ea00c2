"""The calibration, and planted faults in the engine, each of which it must notice."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import rightbatch as rb
from rightbatch.cli.commands import app
from rightbatch.noise import calibrate as calibrate_function
from rightbatch.noise.squares import Squares

pytestmark = pytest.mark.usefixtures("float32")
WAYS = [
    "probe, whole data set",
    "probe, a part of it",
    "monitor, unequal micro-batches",
    "monitor, single examples",
]


def test_every_way_finds_the_known_answer_in_every_precision() -> None:
    found = rb.calibrate(("float64", "float32", "bf16", "fp16"), device="cpu")
    assert [row.name for row in found.rows] == WAYS * 4
    assert [row.precision for row in found.rows[::4]] == ["float64", "float32", "bf16", "fp16"]
    assert all(row.passed for row in found.rows)
    assert found.passed
    assert (found.device, found.ranks) == ("cpu", 1)
    exact = found.rows[0]
    # The whole data set is drawn without replacement: N - 1 in the place of N.
    assert exact.estimate == pytest.approx(exact.truth * 512 / 511, rel=1e-9)


@pytest.mark.slow
def test_it_passes_for_many_seeds() -> None:
    for seed in range(1, 25):
        found = rb.calibrate(("float64",), device="cpu", seed=seed)
        assert found.passed, [row for row in found.rows if not row.passed]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'fp8'"):
        rb.calibrate(("fp8",))  # type: ignore[arg-type]


def plug_in(small: Any, big: Any, *, small_inverse: float, big_inverse: float) -> Any:
    """The big gradient's square taken for |G|^2: it holds the noise of the batch."""
    return (small - big) / (small_inverse - big_inverse), big


def without_sizes(small: Any, big: Any, *, small_inverse: float, big_inverse: float) -> Any:
    """The factor of the batch size forgotten in the variance."""
    gap = small_inverse - big_inverse
    return (small - big), (small_inverse * big - big_inverse * small) / gap


@pytest.mark.parametrize(
    ("fault", "noticed"),
    [(plug_in, set(WAYS[2:])), (without_sizes, {WAYS[2]})],  # of single examples the size is 1
)
def test_a_wrong_formula_is_noticed(
    fault: Callable[..., Any], noticed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rightbatch.noise.measured_step.two_sizes", fault)
    found = rb.calibrate(("float64",), device="cpu")
    assert {row.name for row in found.rows if not row.passed} == noticed


def test_gradients_clipped_before_the_hook_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Squares.take

    def clipped(self: Squares, index: int, gradient: torch.Tensor, before: Any) -> None:
        norm = float(gradient.norm())
        take(self, index, gradient * min(1.0, 0.2 / max(norm, 1e-12)), before)

    monkeypatch.setattr(Squares, "take", clipped)
    found = rb.calibrate(("float64",), device="cpu")
    assert {row.name for row in found.rows if not row.passed} >= set(WAYS[:3])


def test_a_forgotten_loss_scale_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda _: 1.0)
    found = rb.calibrate(("fp16",), device="cpu")
    assert {row.name for row in found.rows if not row.passed} == {WAYS[2], WAYS[3]}


def test_the_command_shows_each_row_and_passes() -> None:
    done = CliRunner().invoke(app, ["doctor", "--calibrate"])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("pass") == 12
    assert "FAIL" not in done.stdout
    assert all(way in done.stdout for way in WAYS)


def test_the_command_fails_where_a_row_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rightbatch.noise.measured_step.two_sizes", plug_in)
    done = CliRunner().invoke(app, ["doctor", "--calibrate"])
    assert done.exit_code == 1
    assert done.stdout.count("FAIL") == 6
    assert "6 of 12 rows missed the known answer: monitor, unequal micro-batches" in done.stderr


@pytest.mark.slow
def test_two_launched_ranks_agree() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "rightbatch", "doctor", "--calibrate"],
        capture_output=True, text=True, timeout=240, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("monitor, uneven ranks") == 3  # from the first rank alone
    assert done.stdout.count("pass") == 15
    assert "2 ranks" in done.stdout


def test_the_rows_are_plain_data() -> None:
    found = calibrate_function(("float64",), device="cpu")
    numbers = [[row.truth, row.estimate, row.low, row.high] for row in found.rows]
    assert json.loads(json.dumps(numbers)) == numbers
