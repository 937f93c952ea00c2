"""Oracle: closed form. What three ways of training must share, count and be judged by."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import rightbatch as rb
from benchmarks import increase_batch
from benchmarks.increase_batch import as_markdown, train, tuned_rate
from benchmarks.increase_batch_claims import judge, mean_and_deviation, paired, pooled_deviation
from benchmarks.increase_batch_picture import PICTURE, figure_of
from benchmarks.increase_batch_tasks import CIFAR_FILE, Problem, cifar, decoded
from rightbatch.errors import DataUnavailable
from rightbatch.tasks.rows import Rows

RESULTS = Path(increase_batch.__file__).parent / "results"
NUM_TRAIN = 200


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> Problem:
    """Two clouds of points; 50 batches of 4 an epoch, then 10 of 20, then 2 of 100."""
    monkeypatch.setattr(increase_batch, "BATCH_SIZE", 4)
    monkeypatch.setattr(increase_batch, "MAX_BATCH_SIZE", 100)
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (NUM_TRAIN,), generator=draws)
    inputs = torch.randn(NUM_TRAIN, 2, generator=draws, dtype=torch.float32) + labels[:, None]
    rows = Rows(inputs, labels)
    return Problem(
        name="clouds",
        train=rows,
        validation=rows,
        test=rows,
        make_model=lambda: nn.Linear(2, 2),
    )


def run(problem: Problem, way: str) -> dict[str, Any]:
    return train(problem, way, rate=0.05, seed=3, judged_on=problem.test)


def test_all_ways_are_one_until_the_first_change_and_see_the_same_examples(
    problem: Problem,
) -> None:
    constant, decay, grow = (run(problem, way)["curve"] for way in ("constant", "decay", "grow"))
    assert constant[:8] == decay[:8] == grow[:8]  # 4 epochs, two points in each
    assert len({tuple(curve[8].items()) for curve in (constant, decay, grow)}) == 3
    assert [point["examples"] for point in grow] == [100 * (index + 1) for index in range(16)]
    assert {len(constant), len(decay)} == {16}


@pytest.mark.parametrize(
    ("way", "updates", "sizes", "rates"),
    [
        ("constant", 8 * 50, [4, 4, 4], [0.05, 0.05, 0.05]),
        ("decay", 8 * 50, [4, 4, 4], [0.05, 0.01, 0.002]),
        ("grow", 4 * 50 + 2 * 10 + 2 * 2, [4, 20, 100], [0.05, 0.05, 0.05]),
    ],
)
def test_updates_sizes_and_rates_follow_the_schedule(
    problem: Problem, way: str, updates: int, sizes: list[int], rates: list[float]
) -> None:
    done = run(problem, way)
    assert (done["updates"], done["examples"]) == (updates, 8 * NUM_TRAIN)
    assert [done["curve"][index]["batch_size"] for index in (7, 8, 12)] == sizes
    found = [done["curve"][index]["learning_rate"] for index in (7, 8, 12)]
    assert found == pytest.approx(rates, rel=1e-12)
    assert done["accuracy"] == done["curve"][-1]["accuracy"] > 0.6


def test_train_loss_is_the_mean_over_the_examples_since_the_point_before(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate of 0 all losses are those of the first weights."""
    monkeypatch.setattr(increase_batch, "EPOCHS", 1)
    curve = train(problem, "constant", rate=0.0, seed=3, judged_on=problem.test)["curve"]
    inputs, labels = problem.train.columns
    whole = nn.functional.cross_entropy(problem.model(3)(inputs), labels).item()
    assert np.mean([point["train_loss"] for point in curve]) == pytest.approx(whole, rel=1e-6)
    assert curve[0]["train_loss"] != curve[1]["train_loss"]


def test_a_constant_way_is_plain_sgd_with_momentum(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(increase_batch, "EPOCHS", 1)
    model = problem.model(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for numbers in rb.BatchSizeSampler(NUM_TRAIN, 4, seed=3):
        inputs, labels = (column[numbers] for column in problem.train.columns)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    curve = run(problem, "constant")["curve"]
    by_hand = [float(np.mean(losses[:25])), float(np.mean(losses[25:]))]
    assert [point["train_loss"] for point in curve] == pytest.approx(by_hand, rel=1e-6)


def test_seeds_differ_in_weights_and_order_and_the_judge_is_the_rows_given(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(increase_batch, "EPOCHS", 1)
    inputs, labels = problem.test.columns

    def ends(seed: int, judged_on: Rows, rate: float = 0.05) -> dict[str, Any]:
        done = train(problem, "constant", rate=rate, seed=seed, judged_on=judged_on)
        return done["curve"][0]

    same_order = {ends(seed, problem.test)["train_loss"] for seed in (3, 3, 4)}
    assert len(same_order) == 2
    right, wrong = (ends(3, Rows(inputs, said))["accuracy"] for said in (labels, 1 - labels))
    assert right + wrong == pytest.approx(1.0)
    # The same weights for all seeds, which do not move: the halves differ by their order alone.
    fixed = nn.Linear(2, 2, dtype=torch.float32)
    monkeypatch.setattr(Problem, "model", lambda self, seed: fixed)
    assert ends(3, problem.test, 0.0)["train_loss"] != ends(4, problem.test, 0.0)["train_loss"]


def test_the_rate_is_chosen_by_the_decaying_way_on_validation_rows_and_a_seed_of_its_own(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, float, int, str]] = []
    validation = Rows(*problem.test.columns)
    split = Problem(
        name="clouds",
        train=problem.train,
        validation=validation,
        test=problem.test,
        make_model=problem.make_model,
    )

    def recorded(
        problem: Problem, way: str, *, rate: float, seed: int, judged_on: Rows
    ) -> dict[str, Any]:
        calls.append((way, rate, seed, "validation" if judged_on is validation else "test"))
        return {"accuracy": 0.9 if rate == 0.02 else 0.5}

    monkeypatch.setattr(increase_batch, "train", recorded)
    done = increase_batch._compare(split, lambda _: None)
    assert calls[:4] == [("decay", rate, 1000, "validation") for rate in (0.01, 0.02, 0.04, 0.08)]
    assert sorted(calls[4:]) == sorted(
        (way, 0.02, seed, "test") for way in ("constant", "decay", "grow") for seed in range(4)
    )
    assert done["learning_rate"] == 0.02
    assert {way: len(runs) for way, runs in done["runs"].items()} == dict.fromkeys(
        ("constant", "decay", "grow"), 4
    )


@pytest.mark.parametrize("best", [0.0025, 0.01, 0.02, 0.08, 0.32])
def test_the_search_goes_on_while_the_best_rate_is_at_an_end(best: float) -> None:
    rate, tried = tuned_rate(lambda rate: -abs(np.log(rate / best)))
    assert rate == pytest.approx(best)
    assert min(tried) < rate < max(tried)


def test_of_equally_good_rates_the_least_is_taken() -> None:
    assert tuned_rate(lambda rate: float(rate in {0.02, 0.04}))[0] == 0.02


def test_spreads_are_those_within_samples() -> None:
    assert mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert pooled_deviation([0.0, 2.0], [10.0, 16.0]) ** 2 == pytest.approx((2 + 18) / 2)


def made_up(*, constant: float, grow: float, updates: int = 56) -> dict[str, Any]:
    """Accuracies around 0.9 for the decayed rate; every deviation is 0.01."""

    def runs(mean: float, updates: int) -> list[dict[str, Any]]:
        return [{"accuracy": mean + off, "updates": updates} for off in (-0.01, 0.0, 0.01)]

    return {
        "name": "made up",
        "runs": {
            "constant": runs(constant, 100),
            "decay": runs(0.9, 100),
            "grow": runs(grow, updates),
        },
    }


def test_pairs_are_of_one_seed() -> None:
    mean, error = paired(made_up(constant=0.8, grow=0.905), "grow", "decay")
    assert (mean, error) == (pytest.approx(0.005), pytest.approx(0.0, abs=1e-12))


@pytest.mark.parametrize(
    ("tasks", "same", "saves"),
    [
        ([{"constant": 0.85, "grow": 0.895}], "holds", "holds"),
        ([{"constant": 0.85, "grow": 0.885}], "does not hold", "does not hold"),
        ([{"constant": 0.85, "grow": 0.915}], "does not hold", "holds"),  # better is not the same
        ([{"constant": 0.85, "grow": 0.9, "updates": 61}], "holds", "holds in part"),
        ([{"constant": 0.85, "grow": 0.9, "updates": 60}], "holds", "holds"),
        ([{"constant": 0.895, "grow": 0.9}], "cannot tell here", "cannot tell here"),
        ([{"constant": 0.92, "grow": 0.9}], "cannot tell here", "cannot tell here"),
        (
            [{"constant": 0.85, "grow": 0.9}, {"constant": 0.85, "grow": 0.8}],
            "holds in part",
            "holds in part",
        ),
        (
            [{"constant": 0.85, "grow": 0.9, "updates": 61}, {"constant": 0.85, "grow": 0.8}],
            "holds in part",
            "holds in part",
        ),
        (
            [{"constant": 0.9, "grow": 0.9}, {"constant": 0.85, "grow": 0.8}],
            "does not hold",
            "does not hold",
        ),
    ],
)
def test_verdicts_follow_the_rules(tasks: list[dict[str, Any]], same: str, saves: str) -> None:
    c10, c24 = judge([made_up(**task) for task in tasks])
    assert (c10.verdict, c24.verdict) == (same, saves)


def test_images_are_decoded_in_order() -> None:
    files = []
    for red in (10, 200):
        pixels = np.zeros((8, 8, 3), dtype=np.uint8)
        pixels[..., 0] = red
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG")
        files.append(stream.getvalue())
    data = np.frombuffer(b"".join(files), dtype=np.uint8)
    offsets = np.cumsum([0, *map(len, files)])
    images = decoded(data, offsets)
    assert images.shape == (2, 3, 8, 8)
    assert images[:, 0].mean((1, 2)) == pytest.approx([10, 200], abs=3)  # JPEG rounds


def test_without_its_file_cifar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGHTBATCH_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataUnavailable, match=f"{CIFAR_FILE.name!r} must be in"):
        cifar()


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads((RESULTS / "increase_batch.json").read_text())


def test_the_table_and_the_verdicts_are_those_of_the_committed_runs(
    committed: dict[str, Any],
) -> None:
    assert as_markdown(committed) == (RESULTS / "increase_batch.md").read_text()
    for told, judged in zip(committed["claims"], judge(committed["tasks"]), strict=True):
        assert (told["verdict"], told["evidence"]) == (judged.verdict, judged.evidence)


def test_the_picture_shows_the_committed_runs(committed: dict[str, Any]) -> None:
    task = committed["tasks"][-1]
    traces: Any = figure_of(task).data
    over_updates = [trace for trace in traces if trace.xaxis == "x4" and trace.name]
    ends = {trace.name: (trace.x[-1], trace.y[-1]) for trace in over_updates}
    for way, name in increase_batch.WAYS.items():
        runs = task["runs"][way]
        mean = 100 * np.mean([run["accuracy"] for run in runs])
        assert ends[name] == (runs[0]["updates"], pytest.approx(mean))
    assert 10_000 < PICTURE.stat().st_size < 200_000
