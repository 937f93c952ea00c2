"""Does growing the batch do what decaying the learning rate does, with fewer updates?

Both tasks train three ways, from the same weights and in the same order of examples: the rate is
divided by five after 4 and 6 of 8 epochs; the batch grows five-fold there instead; nothing changes,
which shows whether decaying matters at all. The starting rate is the same for all three: the best
for the way that decays it, on validation images and with a seed of its own.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import rightbatch as rb
from benchmarks.increase_batch_claims import judge, mean_and_deviation, paired
from benchmarks.increase_batch_picture import draw
from benchmarks.increase_batch_tasks import Problem, cifar, mnist
from rightbatch._environment import describe_environment
from rightbatch._format import format_learning_rate
from rightbatch.tasks.rows import Rows, correct, evaluate_rows, take

RESULTS = Path(__file__).parent / "results"
SEEDS = range(4)
TUNING_SEED = 1000
BATCH_SIZE, FACTOR, MAX_BATCH_SIZE = 64, 5, 1600  # the largest is a tenth of the images
EPOCHS, MILESTONE_EPOCHS = 8, (4, 6)
MOMENTUM = 0.9
RATES = (0.01, 0.02, 0.04, 0.08)  # and further by factors of two while the best is at an end
POINTS_PER_EPOCH = 2  # of the learning curves
WAYS = {"constant": "neither", "decay": "decay the rate", "grow": "grow the batch"}


def schedule_of(way: str, num_train: int) -> rb.BatchSizeSchedule:
    """Write the schedule of one way; where the batch may not grow, the rate decays instead."""
    if way == "constant":
        return rb.BatchSizeSchedule.table({0: BATCH_SIZE})
    return rb.BatchSizeSchedule.smith(
        BATCH_SIZE,
        FACTOR,
        [epochs * num_train for epochs in MILESTONE_EPOCHS],
        max_batch_size={"decay": BATCH_SIZE, "grow": MAX_BATCH_SIZE}[way],
    )


def train(problem: Problem, way: str, *, rate: float, seed: int, judged_on: Rows) -> dict[str, Any]:
    """Train once; return the learning curve and where it ended."""
    model = problem.model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)
    num_train = len(problem.train)
    sampler = rb.BatchSizeSampler(problem.train, BATCH_SIZE, seed=seed)
    loader = DataLoader(problem.train, batch_sampler=sampler, collate_fn=take)
    controller = rb.BatchSizeController(optimizer, schedule_of(way, num_train), sampler=sampler)
    updates, loss_sum, examples, curve = 0, 0.0, 0, []
    for inputs, labels in _batches(sampler, loader):
        size, rate_now = len(labels), optimizer.param_groups[0]["lr"]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        controller.step()
        updates, loss_sum, examples = updates + 1, loss_sum + size * loss.item(), examples + size
        if controller.examples_seen * POINTS_PER_EPOCH >= (len(curve) + 1) * num_train:
            curve.append(
                {
                    "examples": controller.examples_seen,
                    "updates": updates,
                    "batch_size": size,
                    "learning_rate": rate_now,
                    "train_loss": loss_sum / examples,  # of the batches since the point before
                    "accuracy": evaluate_rows(model, judged_on, correct),
                }
            )
            loss_sum, examples = 0.0, 0
    return {
        "seed": seed,
        "accuracy": curve[-1]["accuracy"],
        "updates": updates,
        "examples": controller.examples_seen,
        "moves": [asdict(move) for move in controller.moves],
        "curve": curve,
    }


def _batches(sampler: rb.BatchSizeSampler, loader: DataLoader[Any]) -> Iterator[tuple[Tensor, ...]]:
    for _ in range(EPOCHS):
        yield from sampler.follow(loader)


def tuned_rate(validation_accuracy: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """Find the rate with the best validation accuracy, in factors of two.

    Returns:
        The rate, and the accuracy at each one tried; the least of equals wins.

    Example:
        >>> tuned_rate(lambda rate: 0.9 - abs(rate - 0.16))[0]
        0.16
    """
    tried = {rate: validation_accuracy(rate) for rate in RATES}
    while True:
        best = max(sorted(tried), key=lambda rate: tried[rate])
        if best == min(tried):
            tried[best / 2] = validation_accuracy(best / 2)
        elif best == max(tried):
            tried[best * 2] = validation_accuracy(best * 2)
        else:
            return best, tried


def increase_batch(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Compare the three ways on both tasks; half an hour on a busy machine, less on a free one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.monotonic()
    try:
        tasks = [_compare(problem, say) for problem in (mnist(), cifar())]
    finally:
        torch.set_num_threads(num_threads)
    return {
        "environment": describe_environment(),
        "seconds": time.monotonic() - start,
        "settings": {
            "batch_size": BATCH_SIZE,
            "factor": FACTOR,
            "max_batch_size": MAX_BATCH_SIZE,
            "epochs": EPOCHS,
            "milestone_epochs": list(MILESTONE_EPOCHS),
            "momentum": MOMENTUM,
            "seeds": list(SEEDS),
            "tuning_seed": TUNING_SEED,
        },
        "tasks": tasks,
        "claims": [asdict(claim) for claim in judge(tasks)],
    }


def _compare(problem: Problem, say: Callable[[str], None]) -> dict[str, Any]:
    def validation_accuracy(rate: float) -> float:
        run = train(problem, "decay", rate=rate, seed=TUNING_SEED, judged_on=problem.validation)
        say(f"{problem.name}: rate {rate:g}, validation accuracy {run['accuracy']:.2%}")
        return run["accuracy"]

    rate, tried = tuned_rate(validation_accuracy)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in SEEDS:
        for way in WAYS:
            run = train(problem, way, rate=rate, seed=seed, judged_on=problem.test)
            say(f"{problem.name}, {way}, seed {seed}: {run['accuracy']:.2%}")
            runs[way].append(run)
    return {
        "name": problem.name,
        "num_train": len(problem.train),
        "num_validation": len(problem.validation),
        "num_test": len(problem.test),
        "learning_rate": rate,
        "validation_accuracy_by_rate": [[at, tried[at]] for at in sorted(tried)],
        "runs": runs,
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out: the verdicts, then the table they rest on."""
    settings = result["settings"]
    lines = ["# Growing the batch instead of decaying the learning rate", ""]
    lines += ["| claim | rule | verdict | what was measured |", "|---|---|---|---|"]
    lines += [
        f"| {claim['key']}: {claim['text']} | {claim['rule']} | **{claim['verdict']}** | "
        f"{claim['evidence']} |"
        for claim in result["claims"]
    ]
    lines += [
        "",
        "| task | way | batch | rate | test accuracy | over decay, in pairs | last train loss "
        "| updates | examples |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(task, way) for task in result["tasks"] for way in WAYS),
        "",
        f"Mean ± standard deviation of {len(settings['seeds'])} seeds; in pairs, of the same seed, "
        "mean ± standard error. Last train loss: over the last half of an epoch. SGD with momentum "
        f"{settings['momentum']}, {settings['epochs']} epochs, changes after "
        f"{' and '.join(map(str, settings['milestone_epochs']))}; all three ways begin with the "
        "rate that is best for decaying it, on validation images. "
        f"{result['seconds']:.0f} s on one thread.",
        "",
        "Machine: " + ", ".join(f"{k} {v}" for k, v in result["environment"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def _row(task: dict[str, Any], way: str) -> str:
    runs = task["runs"][way]
    mean, deviation = mean_and_deviation([run["accuracy"] for run in runs])
    loss, _ = mean_and_deviation([run["curve"][-1]["train_loss"] for run in runs])
    sizes, rates = (
        " → ".join(map(words, dict.fromkeys(point[key] for point in runs[0]["curve"])))
        for key, words in (("batch_size", str), ("learning_rate", format_learning_rate))
    )
    difference = "" if way == "decay" else "{:+.2%} ± {:.2%}".format(*paired(task, way, "decay"))
    return (
        f"| {task['name']} | {WAYS[way]} | {sizes} | {rates} | {mean:.2%} ± {deviation:.2%} | "
        f"{difference} | {loss:.3g} | {runs[0]['updates']:,} | {runs[0]['examples']:,} |"
    )


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table, and draw the picture of the documentation."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "increase_batch.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "increase_batch.md").write_text(as_markdown(result))
    draw(result)
