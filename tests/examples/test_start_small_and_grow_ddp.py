"""The data-parallel example, as torchrun starts it. Oracles: the data set, the run not killed."""

import json
import os
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.examples.watched_rank import digest

ROOT = Path(__file__).parents[2]
RANK = Path(__file__).parent / "watched_rank.py"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float32")]


def launch(folder: Path, *, kill_after: int = 0) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--checkpoint", str(folder / "run.pt")]
    return subprocess.run(
        [sys.executable, "-m", *launcher, str(RANK), str(folder), str(kill_after), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def ended(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "run.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nobody killed: its folder, and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    done = launch(folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_ranks_grow_together_and_see_each_example_once_an_epoch(whole: tuple[Path, str]) -> None:
    folder, said = whole
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["moves"] == ranks[1]["moves"]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    sizes = [move.split(" -> ")[1].split()[0] for move in ranks[0]["moves"]]
    assert sizes[:1] == ["32"]
    assert said.splitlines()[:-1] == ranks[0]["moves"], "one rank says it, with the reason"
    data, _ = runpy.run_path(str(ROOT / "examples" / "start_small_and_grow.py"))["make_data"]()
    everything = Counter(digest(row) for row in data.tensors[0])
    for epoch in map(str, range(12)):
        assert Counter(ranks[0]["rows"][epoch] + ranks[1]["rows"][epoch]) == everything
    # 1,056 updates without growth. The plain run that decays its rate gets 92.2 % right, and the
    # standard error of a share of 397 examples is 1.4.
    updates, right = said.splitlines()[-1].split(", ")[1:]
    assert int(updates.split()[0]) == ended(folder)["sampler"]["delivered"] < 1056
    assert float(right.split("%")[0]) >= 92.2 - 1.4


def test_a_rank_that_is_killed_costs_nothing_but_time(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    expected = ended(whole[0])
    # The batch grows at step 133. Step 140 is past it, and the last checkpoint, 125, is not.
    moved_after = expected["controller"]["moves"][0]["examples_seen"] / 16
    assert 125 < moved_after < 140
    assert launch(tmp_path, kill_after=140).returncode != 0
    assert ended(tmp_path)["sampler"]["delivered"] == 125
    done = launch(tmp_path)
    assert done.returncode == 0, done.stderr
    found = ended(tmp_path)
    for name, weight in expected["model"].items():
        assert torch.equal(found["model"][name], weight), name
    for name in ("controller", "sampler"):
        assert found[name] == expected[name]
