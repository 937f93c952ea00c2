"""Does the automatic rule find the settings of a larger batch without a search?

Small networks on digits and MNIST, trained with SGD and Adam for a fixed number of examples.
The rate is tuned at a small batch. Then the batch grows 4, 8 and 16 times: once with the
settings of `rightbatch.scale_hyperparameters`, fed with what the instruments measured at the
small batch, and once with a rate that is tuned anew. Other rules are run beside them.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import rightbatch as rb
from rightbatch._environment import describe_environment
from rightbatch._format import format_learning_rate, format_number
from rightbatch.tasks.data_files import locate
from rightbatch.tasks.mnist import MNIST_FILE, read_mnist
from rightbatch.tasks.rows import Rows, take

RESULTS = Path(__file__).parent / "results"
RATIOS = (4, 8, 16)
SEEDS = range(24)
BOUND = 1.1  # of the tuned validation loss
_DIVERGED = 1e3  # a validation loss that counts as one

Settings = dict[str, float]
Evidence = dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Data split in two, how long to train, and the batch size to grow from."""

    name: str
    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    hidden: int
    num_examples: int  # seen in a run
    small: dict[str, int]  # batch size to grow from, by optimizer: Adam's noise reaches further
    losses: dict[Any, Tensor] = field(default_factory=dict)  # [seed], of settings already run

    def model(self, seed: int) -> nn.Sequential:
        """Make the network anew."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Linear(self.train[0].shape[1], self.hidden),
                nn.ReLU(),
                nn.Linear(self.hidden, 10),
            )


class Stack(nn.Module):
    """The networks of all seeds as one: their optimizers act entry by entry, so none mixes."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        models = [problem.model(seed) for seed in SEEDS]
        pairs = [(model[0], model[2]) for model in models]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for layers in zip(*pairs, strict=True):
            self.weights.append(torch.stack([layer.weight.detach().T for layer in layers]))
            self.biases.append(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``[seed, example, feature]`` to logits ``[seed, example, class]``."""
        hidden = torch.baddbmm(self.biases[0], inputs, self.weights[0]).relu()
        return torch.baddbmm(self.biases[1], hidden, self.weights[1])


def scaling(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Compare the rules with tuned rates on every problem and optimizer."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.monotonic()
    try:
        rows = [
            row
            for problem in (_digits(), _mnist())
            for name in ("SGD", "Adam")
            for row in _compare(problem, name, say)
        ]
    finally:
        torch.set_num_threads(num_threads)
    return {
        "environment": describe_environment(),
        "seeds": len(SEEDS),
        "seconds": time.monotonic() - start,
        "rows": rows,
    }


def _digits() -> Problem:
    pixels, classes = load_digits(return_X_y=True)
    shuffled = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    flat = torch.from_numpy(pixels)[shuffled].to(torch.float32) / 16
    labels = torch.from_numpy(classes)[shuffled]
    return Problem(
        name="digits",
        train=(flat[:1100], labels[:1100]),
        held_out=(flat[1100:], labels[1100:]),
        hidden=64,
        num_examples=8_800,
        small={"SGD": 2, "Adam": 8},
    )


def _mnist() -> Problem:
    pixels, labels, *_ = read_mnist(locate(MNIST_FILE))
    flat = torch.from_numpy(pixels[:10_000]).to(torch.float32).flatten(1) / 255
    classes = torch.from_numpy(labels[:10_000]).to(torch.int64)
    return Problem(
        name="mnist",
        train=(flat[:8_000], classes[:8_000]),
        held_out=(flat[8_000:], classes[8_000:]),
        hidden=64,
        num_examples=12_000,
        small={"SGD": 8, "Adam": 16},
    )


def _make(name: str, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    if name == "SGD":
        return torch.optim.SGD(model.parameters(), lr=settings["lr"], momentum=0.9)
    betas = (settings.get("beta1", 0.9), settings.get("beta2", 0.999))
    eps = settings.get("eps", 1e-8)
    return torch.optim.Adam(model.parameters(), lr=settings["lr"], betas=betas, eps=eps)


def _losses(problem: Problem, name: str, settings: Settings, batch_size: int) -> Tensor:
    """Validation loss of each seed; runs with the same settings are run once."""
    key = (name, batch_size, *sorted(settings.items()))
    if key not in problem.losses:
        problem.losses[key] = _run(problem, name, settings, batch_size)
    return problem.losses[key]


def _loss(problem: Problem, name: str, settings: Settings, batch_size: int) -> float:
    return float(_losses(problem, name, settings, batch_size).mean())


def _run(problem: Problem, name: str, settings: Settings, batch_size: int) -> Tensor:
    model = Stack(problem)
    optimizer = _make(name, model, settings)
    inputs, labels = problem.train
    orders = torch.stack([_order(problem, seed) for seed in SEEDS])
    for rows in orders.split(batch_size, dim=1):
        optimizer.zero_grad()
        logits = model(inputs[rows]).flatten(0, 1)
        loss = F.cross_entropy(logits, labels[rows].flatten())
        (len(SEEDS) * loss).backward()  # the sum over seeds of each one's mean
        optimizer.step()
    with torch.no_grad():
        held_out, classes = problem.held_out
        held_out_logits = model(held_out.expand(len(SEEDS), -1, -1))
        each = [F.cross_entropy(logits, classes) for logits in held_out_logits]
    return torch.stack(each).nan_to_num(_DIVERGED).clamp(max=_DIVERGED)


def _order(problem: Problem, seed: int) -> Tensor:
    """Whole passes over the data, each shuffled anew."""
    generator = torch.Generator().manual_seed(seed)
    size = len(problem.train[0])
    num_passes = math.ceil(problem.num_examples / size)
    passes = [torch.randperm(size, generator=generator) for _ in range(num_passes)]
    return torch.cat(passes)[: problem.num_examples]


def _tuned(
    problem: Problem, name: str, batch_size: int, others: Sequence[Settings]
) -> tuple[Settings, float]:
    """Search the rate in steps of 4, then of the root of 2, with each set of other settings."""
    center = 0.02 if name == "SGD" else 0.004
    found: list[tuple[float, Settings]] = []
    for other in others:

        def loss(rate: float, other: Settings = other) -> float:
            return _loss(problem, name, {**other, "lr": rate}, batch_size)

        best = min((center * 4.0**power for power in range(-1, 3)), key=loss)
        fine = min((best * 2 ** (power / 2) for power in range(-3, 4)), key=loss)
        found.append((loss(fine), {**other, "lr": fine}))
    least, settings = min(found, key=lambda pair: pair[0])
    return settings, least


def _smoothed(problem: Problem, name: str, batch_size: int) -> tuple[Settings, float]:
    """Take the rate at the bottom of a parabola through the fine search, in logarithms.

    Around the best rate the losses differ by less than their noise; the least of them is luck,
    and a move to a larger batch would carry the luck along.
    """
    best, _ = _tuned(problem, name, batch_size, [{}])
    rates = [best["lr"] * 2 ** (power / 2) for power in range(-3, 4)]
    logs = [math.log(_loss(problem, name, {"lr": rate}, batch_size)) for rate in rates]
    curve, slope, _ = np.polyfit(np.log(rates), logs, 2)
    bottom = float(np.exp(-slope / (2 * curve))) if curve > 0 else best["lr"]
    rate = min(max(bottom, rates[0]), rates[-1])
    return {"lr": rate}, _loss(problem, name, {"lr": rate}, batch_size)


def _task(problem: Problem, name: str, settings: Settings) -> rb.Task:
    """The small batch's training as the instruments see it."""
    model, small = problem.model(0), problem.small[name]
    return rb.Task(
        model,
        _make(name, model, settings),
        Rows(*problem.train),
        rb.supervised(F.cross_entropy),
        collate_fn=take,
        batch_size=small,
    )


def _noise(problem: Problem, name: str, task: rb.Task) -> Evidence:
    """Measure the noise along a run with the small batch."""
    track = rb.track_noise(task, steps=problem.num_examples // problem.small[name])
    critical = rb.critical_batch_size(track=track, optimizer=name)
    return {
        "noise_scale": track.run_average,
        "critical_batch_size": critical.value if critical is not None else None,
    }


def _compare(problem: Problem, name: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    small = problem.small[name]
    base, base_loss = _smoothed(problem, name, small)
    task = _task(problem, name, base)
    noise = _noise(problem, name, task)
    say(f"{problem.name} {name}: tuned {base} loss {base_loss:.3f}, {noise}")
    rows = []
    for ratio in RATIOS:
        size = ratio * small
        # A hundred steps at the new size: at a small one, noise alone makes the loss rise sooner.
        evidence = {**noise, "edge": rb.range_test(task, batch_size=size).edge}
        settings, report = _scaled(problem, name, base, size, "auto", evidence)
        others: list[Settings] = [{}]
        if name == "Adam":  # the search may take the betas of the small batch or the scaled ones
            others.append({k: v for k, v in settings.items() if k != "lr"})
        tuned, least = _tuned(problem, name, size, others)
        rules = ["linear", "sqrt", "saturating" if name == "SGD" else "surge"]
        rivals = {"unchanged": _loss(problem, name, base, size)}
        for rule in rules:
            moved, _ = _scaled(problem, name, base, size, rule, evidence)
            rivals[rule] = _loss(problem, name, moved, size)
        if name == "Adam":
            for policy in ("keep", "examples"):
                moved, _ = _scaled(problem, name, base, size, "auto", evidence, policy)
                rivals[f"beta1 {policy}"] = _loss(problem, name, moved, size)
        losses = _losses(problem, name, settings, size)
        excess = losses - _losses(problem, name, tuned, size)
        loss = float(losses.mean())
        rows.append(
            {
                "task": problem.name,
                "optimizer": name,
                "ratio": ratio,
                "base_learning_rate": base["lr"],
                "base_loss": base_loss,
                "batch_size": size,
                **evidence,
                "rule": report.rule,
                "learning_rate": settings["lr"],
                "loss": loss,
                "tuned": tuned,
                "tuned_loss": least,
                "loss_over_tuned": loss / least,
                "standard_error": float(excess.std()) / math.sqrt(len(SEEDS)) / least,
                "valid": report.valid,
                "warnings": list(report.warnings),
                "rivals_over_tuned": {k: v / least for k, v in rivals.items()},
            }
        )
        say(f"  {ratio}: {loss / least:.2f} of tuned, valid {report.valid}")
    return rows


def _scaled(
    problem: Problem,
    name: str,
    base: Settings,
    size: int,
    rule: Any,
    evidence: Evidence,
    first_beta: Any = "auto",
) -> tuple[Settings, rb.ScalingReport]:
    optimizer = _make(name, problem.model(0), base)
    report = rb.scale_hyperparameters(
        optimizer, problem.small[name], size, rule=rule, first_beta=first_beta, **evidence
    )
    kept = ("lr", "beta1", "beta2", "eps")
    return {k: v for k, v in report.hyperparameters.items() if k in kept}, report


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as a table with the verdict above it."""
    rows = result["rows"]
    valid = [row for row in rows if row["valid"]]
    good = [row for row in valid if row["loss_over_tuned"] <= BOUND]
    missed = [row for row in rows if not row["valid"] and row["loss_over_tuned"] > BOUND]
    lines = [
        "# Settings for a larger batch: the automatic rule against a tuned rate",
        "",
        f"{len(valid)} of {len(rows)} moves are called valid, and {len(good)} of those are within "
        f"10 % of the tuned validation loss. Of the other {len(rows) - len(valid)}, "
        f"{len(missed)} are not within 10 %.",
        "",
        "| task | optimizer | batch | critical | edge | rule | rate | tuned rate | loss | "
        "tuned loss | loss / tuned | valid | other rules' losses / tuned |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rivals = [f"{rule} {ratio:.2f}" for rule, ratio in row["rivals_over_tuned"].items()]
        lines.append(
            f"| {row['task']} | {row['optimizer']} | {row['batch_size']} ({row['ratio']}x) | "
            f"{format_number(row['critical_batch_size'])} | {format_number(row['edge'])} | "
            f"{row['rule']} | {format_learning_rate(row['learning_rate'])} | "
            f"{format_learning_rate(row['tuned']['lr'])} | {row['loss']:.3f} | "
            f"{row['tuned_loss']:.3f} | **{row['loss_over_tuned']:.2f}** ± "
            f"{row['standard_error']:.2f} | "
            f"{'yes' if row['valid'] else 'no'} | {', '.join(rivals)} |"
        )
    lines += [
        "",
        f"Mean of {result['seeds']} seeds; every run of a task sees the same number of examples. "
        "± is one standard error, of the seeds in pairs. All rules are cut by the same edge. The "
        "tuned loss is the least of 10 rates (Adam: of 10 with each of two sets of betas), so "
        f"chance favours it. {result['seconds']:.0f} s on one thread.",
        "",
        "Machine: " + ", ".join(f"{k} {v}" for k, v in result["environment"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "scaling.md").write_text(as_markdown(result))
