"""What does the controller cost? Its own time in a step, and steps with it against steps without.

The same loop trains with it and without it, step by step in turn, so that both meet the same
machine. In both a monitor watches; with the controller, the batch size follows what it measures,
and is capped where it is: nothing moves, and everything is asked. What else the machine does only
ever adds time, so that all times are lower quartiles.

The controller's own time is counted inside its calls. To it come what the monitor takes to say its
result, after each step that it measured, and the multiplication of the loss by its weight, which a
loop without accumulation does not need. A move is timed apart.
"""

import json
import os
import statistics
from collections.abc import Callable, Iterator
from itertools import accumulate, cycle, islice, takewhile
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import rightbatch as rb
from rightbatch._environment import describe_environment
from rightbatch._time import wall_clock
from rightbatch.task.data import to_device
from rightbatch.tasks import BUILT_IN

RESULTS = Path(__file__).parent / "results"
LIMIT = 0.01  # of a step
SECONDS, LEAST_PAIRS = 12.0, 12  # for a task
SETTLE, SETTLE_SECONDS = 80, 6.0  # steps until the monitor has chosen how often to measure
MOVES = 21


class Loop:
    """A training loop that takes its steps with the controller or without it."""

    def __init__(self, task: rb.Task, size: int) -> None:
        self.task = task
        self.sampler = rb.BatchSizeSampler(task.source.dataset, size, drop_last=True)
        self.batches = self._endless()
        self.monitor = rb.NoiseMonitor(
            task.model, task.optimizer, loss=lambda _, batch: task.loss(batch)[0]
        )
        follows = rb.BatchSizeSchedule.noise(size, max_batch_size=size, dwell_examples=0)
        self.controller = rb.BatchSizeController(
            task.optimizer,
            follows,
            sampler=self.sampler,
            max_micro_batch_size=size,
            monitor=self.monitor,
        )

    def _endless(self) -> Iterator[Any]:
        source = self.task.source
        loader = DataLoader(
            source.dataset, batch_sampler=self.sampler, collate_fn=source.collate_fn
        )
        while True:
            for batch in self.sampler.follow(loader):
                yield to_device(batch, self.task.device)

    def plain(self) -> None:
        """Take a step as any loop does."""
        batch = next(self.batches)
        self.task.optimizer.zero_grad()
        loss, _ = self.task.loss(batch)
        loss.backward()
        self.monitor.observe(self.sampler.batch_size, batch=batch)
        self.task.optimizer.step()

    def controlled(self) -> float:
        """Take the same step with the controller; return the seconds inside its calls."""
        batch = next(self.batches)
        self.task.optimizer.zero_grad()
        begun = wall_clock()
        parts = list(self.controller.micro_batches(batch))
        own_seconds = wall_clock() - begun
        for part, weight in parts:
            loss, _ = self.task.loss(part)
            (weight * loss).backward()
            self.monitor.observe(self.sampler.batch_size, factor=weight, batch=part)
        self.task.optimizer.step()
        begun = wall_clock()
        self.controller.step()
        return own_seconds + wall_clock() - begun


def compare(name: str) -> dict[str, Any]:
    """Take steps of a built-in task in turn, with the controller and without."""
    built_in = BUILT_IN[name]
    task = built_in.factory()
    loop = Loop(task, built_in.batch_size)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    own_seconds = []
    with loop.monitor:
        end = wall_clock() + SETTLE_SECONDS
        for _ in takewhile(lambda _: wall_clock() < end, range(SETTLE)):
            loop.plain()
        end = wall_clock() + SECONDS
        while len(own_seconds) < LEAST_PAIRS or wall_clock() < end:
            for is_controlled in (True, False) if len(own_seconds) % 2 else (False, True):
                _synchronise(task.device)
                begun = wall_clock()
                if is_controlled:
                    own_seconds.append(loop.controlled())
                else:
                    loop.plain()
                _synchronise(task.device)
                seconds[is_controlled].append(wall_clock() - begun)
    step_seconds = _lower_quartile(seconds[False])
    ratios = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    measured = loop.monitor.averages.measured / loop.sampler.delivered
    result_seconds = _result_seconds(loop.monitor)
    return {
        "task": name,
        "batch_size": built_in.batch_size,
        "pairs": len(own_seconds),
        "step_seconds": step_seconds,
        "measured_share": measured,  # of the steps, by the monitor
        "result_seconds": result_seconds,
        "calls_seconds": _lower_quartile(own_seconds) + result_seconds * measured,
        "ratio": _lower_quartile(seconds[True]) / step_seconds,
        "quartiles_of_pairs": [low, high],
        "move_seconds": move_seconds(name),
    }


def move_seconds(name: str) -> float:
    """Time a move there and back, of the optimizer as it is after a few steps."""
    built_in = BUILT_IN[name]
    task, size = built_in.factory(), built_in.batch_size
    for batch in islice(task.batches(size), 3):
        task.step(batch)
    sizes = list(islice(cycle((size, 2 * size)), MOVES + 1))
    starts = [0, *accumulate(sizes)]
    table: dict[float, int] = dict(zip(starts, sizes, strict=False))
    controller = rb.BatchSizeController(
        task.optimizer, rb.BatchSizeSchedule.table(table), noise_scale=float(size), model=task.model
    )
    seconds = []
    for _ in range(MOVES):
        begun = wall_clock()
        controller.step(controller.batch_size)
        seconds.append(wall_clock() - begun)
    assert len(controller.moves) == MOVES
    return statistics.median(seconds)


def weighting_seconds() -> float:
    """Time what multiplying a loss by its weight adds to a forward and a backward pass."""
    loss = torch.ones((), requires_grad=True)
    found: dict[bool, list[float]] = {True: [], False: []}
    for index in range(4000):
        is_weighted = bool(index % 2)
        begun = wall_clock()
        value = loss + 0.0
        (1.0 * value if is_weighted else value).backward()
        found[is_weighted].append(wall_clock() - begun)
    return _lower_quartile(found[True]) - _lower_quartile(found[False])


def _result_seconds(monitor: rb.NoiseMonitor) -> float:
    """Time what the controller asks of a monitor once for each measurement."""
    seconds = []
    for _ in range(21):
        begun = wall_clock()
        monitor.result()
        seconds.append(wall_clock() - begun)
    return _lower_quartile(seconds)


def _lower_quartile(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=4)[0]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def controller(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Compare on the built-in tasks, at the batch sizes that they train with."""
    load, rows = os.getloadavg()[0], []
    for name in BUILT_IN:
        say(name)
        rows.append(compare(name))
    return {
        "environment": describe_environment(),
        "load_average": load,  # of the minute before: what else the machine did
        "limit": LIMIT,
        "weighting_seconds": weighting_seconds(),
        "rows": rows,
    }


def share(row: dict[str, Any], weighting_seconds: float) -> float:
    """Return the controller's share of a step: its calls, and the weighting of the loss.

    Example:
        >>> share({"calls_seconds": 8e-6, "step_seconds": 0.002}, 4e-6)
        0.006
    """
    return (row["calls_seconds"] + weighting_seconds) / row["step_seconds"]


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as a table."""
    lines = [
        "# The controller: its share of a step",
        "",
        "| task | step | in its calls | weighting the loss | share of a step | at most "
        f"{result['limit']:.0%} | step with it over a step without (quartiles of pairs) | a move |",
        "|---|---|---|---|---|---|---|---|",
    ]
    weighting = result["weighting_seconds"]
    for row in result["rows"]:
        low, high = row["quartiles_of_pairs"]
        part = share(row, weighting)
        lines.append(
            f"| {row['task']}, batch {row['batch_size']} | {1e3 * row['step_seconds']:.2f} ms | "
            f"{1e6 * row['calls_seconds']:.1f} us | {1e6 * weighting:.1f} us | {part:.2%} | "
            f"{'yes' if part <= result['limit'] else '**no**'} | "
            f"{row['ratio']:.3f} ({low:.3f} to {high:.3f}, {row['pairs']}) | "
            f"{1e3 * row['move_seconds']:.2f} ms, "
            f"{row['move_seconds'] / row['step_seconds']:.1f} steps |"
        )
    lines += [
        "",
        "Steps with and without the controller are taken in turn, both under a monitor at its "
        "defaults. Times are lower quartiles, of the calls and of the whole step; the calls "
        "include their share of asking the monitor for its result after a measurement. The "
        "ratio of whole steps scatters more than what it measures. A move is not in the share: "
        "it happens a few times a run.",
        "",
        f"Load average of the machine before: {result['load_average']:.1f}.",
        "",
        "Machine: " + ", ".join(f"{k} {v}" for k, v in result["environment"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "controller.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "controller.md").write_text(as_markdown(result))
