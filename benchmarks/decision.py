"""Does the plan's setting train fastest? Time to a target, against a grid of tuned settings.

Every batch size of the grid gets its own learning rate: a search over factors of two with one
seed, then several seeds for the three best rates; the median number of steps to the target
counts. Steps depend on the seed alone, not on the machine's load. They are multiplied by seconds
per step from one interleaved measurement of all sizes in one process.

The plan's row is what ``rightbatch find`` said beforehand, batch size, rate and all, untuned.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares

import rightbatch as rb
from rightbatch._environment import describe_environment
from rightbatch.tasks import BUILT_IN

RESULTS = Path(__file__).parent / "results"
GRIDS = {
    "digits": (8, 16, 32, 64, 128, 256, 512),
    "mnist": (16, 32, 64, 128, 256, 512, 1024),
    "bikes": (16, 32, 64, 128, 256, 512, 1024, 2048),
}
SEEDS = {"digits": range(7), "mnist": range(5), "bikes": range(7)}
LOOKS = 1.1  # steps between two evaluations grow by this factor
BETAS = ("beta1", "beta2")
PATIENCE = 2.5  # a run is given up after this many times the best time so far


@dataclass(frozen=True)
class Run:
    """One training run to the target."""

    batch_size: int
    learning_rate: float
    seed: int
    max_steps: int
    settings: tuple[tuple[str, float], ...] = ()  # of the optimizer, beside the rate


@dataclass(frozen=True)
class Row:
    """One setting of the table."""

    setting: str
    batch_size: int
    learning_rate: float
    steps: float | None  # median over seeds; None: not within the allowed steps
    steps_by_seed: list[float | None]
    step_seconds: float
    seconds: float | None


def steps_to_target(name: str, run: Run) -> float | None:
    """Train from the seed's weights; return the steps at which the target was crossed.

    The crossing is interpolated between two evaluations in log(steps), since evaluations are
    spaced by a factor.
    """
    torch.set_num_threads(1)
    built_in = BUILT_IN[name]
    task = built_in.factory(seed=run.seed)
    sign = 1 if built_in.higher_is_better else -1
    for group in task.optimizer.param_groups:
        group["lr"] = run.learning_rate
        for setting, value in run.settings:
            _set(group, setting, value)
    batches = task.batches(run.batch_size, seed=1000 + run.seed)
    look, before = max(8.0, 2000 / run.batch_size), None
    for step in range(1, run.max_steps + 1):
        loss = task.step(next(batches))
        if step < look and step < run.max_steps:
            continue
        if not torch.isfinite(loss):
            return None
        assert task.evaluate is not None
        margin = sign * (task.evaluate(task.model) - built_in.target)
        if margin >= 0:
            if before is None:
                return float(step)
            share = -before[1] / (margin - before[1])
            return math.exp((1 - share) * math.log(before[0]) + share * math.log(step))
        before = (step, margin)
        look = max(step + 1, look * LOOKS)
    return None


def _set(group: dict[str, Any], setting: str, value: float) -> None:
    if setting not in BETAS:
        group[setting] = value
        return
    betas = list(group["betas"])
    betas[BETAS.index(setting)] = value
    group["betas"] = tuple(betas)


class Trainer:
    """Runs training runs two at a time, and keeps every one of them in a file.

    A run's steps depend on its batch size, rate and seed alone, so they are never repeated.
    """

    def __init__(self, name: str, pool: ProcessPoolExecutor, say: Callable[[str], None]) -> None:
        self._name, self._pool, self._say = name, pool, say
        self._file = RESULTS / f"decision-{name}-runs.json"
        self._known: dict[str, dict[str, Any]] = (
            json.loads(self._file.read_text()) if self._file.exists() else {}
        )

    def steps(self, runs: Iterable[Run]) -> list[float | None]:
        """Steps to the target of each run; ``None`` where it was not reached."""
        runs = list(runs)
        futures = {
            run: self._pool.submit(steps_to_target, self._name, run)
            for run in runs
            if not self._is_known(run)
        }
        for run, future in futures.items():
            steps = future.result()
            self._known[_key(run)] = {"steps": steps, "max_steps": run.max_steps}
            self._say(f"  {_key(run)}: {steps}")
        self._file.write_text(json.dumps(self._known, indent=0, sort_keys=True) + "\n")
        return [self._within(run) for run in runs]

    def _is_known(self, run: Run) -> bool:
        known = self._known.get(_key(run))
        return known is not None and (
            known["steps"] is not None or known["max_steps"] >= run.max_steps
        )

    def _within(self, run: Run) -> float | None:
        steps = self._known[_key(run)]["steps"]
        return steps if steps is not None and steps <= run.max_steps else None

    def tune(self, batch_size: int, start: float, max_steps: int) -> tuple[float, list[Any]]:
        """Return the best rate at one batch size and its steps by seed."""

        def first_seed(rates: list[float]) -> dict[float, float]:
            runs = [Run(batch_size, rate, 0, max_steps) for rate in rates]
            found = self.steps(runs)
            return {r: math.inf if s is None else s for r, s in zip(rates, found, strict=True)}

        tried = first_seed([start / 2, start, 2 * start])
        while True:  # walk until the best rate has a worse one on either side
            best = min(tried, key=lambda rate: tried[rate])
            wider = [rate for rate in (best / 2, best * 2) if rate not in tried]
            if math.isinf(tried[best]) and len(tried) > 6:
                return best, [None]
            if math.isinf(tried[best]):
                wider = [min(tried) / 2, max(tried) * 2]
            if not wider:
                break
            tried |= first_seed(wider)
        rates = sorted(tried, key=lambda rate: tried[rate])[:3]
        seeds = SEEDS[self._name]
        runs = [Run(batch_size, rate, seed, max_steps) for rate in rates for seed in seeds]
        found = self.steps(runs)
        by_rate = {
            rate: found[i * len(seeds) : (i + 1) * len(seeds)] for i, rate in enumerate(rates)
        }
        best = min(rates, key=lambda rate: median(by_rate[rate]))
        return best, by_rate[best]


def _key(run: Run) -> str:
    settings = "".join(f" {name} {value:.6g}" for name, value in run.settings)
    return f"batch {run.batch_size} rate {run.learning_rate:.6g} seed {run.seed}{settings}"


def median(steps: list[float | None]) -> float:
    """Median over seeds, a run that never got there counting as infinitely long."""
    return statistics.median(math.inf if s is None else s for s in steps)


def fit_critical(rows: list[Row]) -> float | None:
    """Fit steps = S_min (1 + B_c / b) to the tuned rows, in log(steps)."""
    known = [(row.batch_size, row.steps) for row in rows if row.steps is not None]
    if len(known) < 3:
        return None
    sizes, steps = np.array(known).T
    fitted = least_squares(
        lambda p: p[0] + np.log1p(np.exp(p[1]) / sizes) - np.log(steps),
        [math.log(steps.min()), math.log(np.median(sizes))],
    )
    return float(np.exp(fitted.x[1]))


def decision(name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the benchmark of one task; see the module's words."""
    built_in = BUILT_IN[name]
    task = built_in.factory()
    say(f"{name}: finding the plan")
    findings = rb.find(task)
    made, memory = findings.plan, findings.memory
    assert made is not None
    assert memory is not None
    assert task.batch_size is not None
    today_rate = float(task.optimizer.param_groups[0]["lr"])
    largest = memory.max_verified_batch_size
    sizes = sorted({*GRIDS[name], made.batch_size, task.batch_size, largest})
    say(f"{name}: timing {sizes}")
    timed = rb.measure_throughput(task, sizes, time_budget_seconds=60.0)
    seconds = {point.batch_size: point.total_seconds for point in timed.points}
    context = get_context("spawn")
    rows: list[Row] = []
    with ProcessPoolExecutor(max_workers=2, mp_context=context) as pool:
        trainer = Trainer(name, pool, say)

        def row(setting: str, size: int, rate: float, by_seed: list[Any]) -> Row:
            steps = median(by_seed)
            finite = None if math.isinf(steps) else steps
            total = None if finite is None else finite * seconds[size]
            say(f"{setting}: b={size} lr={rate:g} steps={finite} seconds={total}")
            return Row(setting, size, rate, finite, by_seed, seconds[size], total)

        def fixed(
            setting: str, size: int, rate: float, settings: tuple[tuple[str, float], ...] = ()
        ) -> Row:
            runs = [Run(size, rate, seed, allowed(size), settings) for seed in SEEDS[name]]
            return row(setting, size, rate, trainer.steps(runs))

        def allowed(size: int) -> int:
            best = min((r.seconds for r in rows if r.seconds), default=None)
            return 20_000 if best is None else max(50, int(PATIENCE * best / seconds[size]))

        rows.append(fixed("today", task.batch_size, today_rate))
        moved = tuple((c.parameter, c.after) for c in made.changes if c.before != c.after)
        others = tuple(pair for pair in moved if pair[0] != "lr")
        plan_rate = made.learning_rate or today_rate
        rows.append(fixed("plan", made.batch_size, plan_rate, others))
        if others:
            rows.append(fixed("plan, its rate alone", made.batch_size, plan_rate))
        for size in sorted(GRIDS[name], key=lambda s: abs(math.log2(s / made.batch_size))):
            start = nearest_rate(rows, size, made.learning_rate or today_rate, made.batch_size)
            rate, by_seed = trainer.tune(size, start, allowed(size))
            rows.append(row("grid", size, rate, by_seed))
        start = nearest_rate(rows, largest, made.learning_rate or today_rate, made.batch_size)
        rate, by_seed = trainer.tune(largest, start, allowed(largest))
        rows.append(row("largest feasible", largest, rate, by_seed))
    grid = [r for r in rows if r.setting == "grid"]
    best = min(r.seconds for r in grid if r.seconds)
    critical = findings.critical_batch_size
    return {
        "task": name,
        "target": built_in.target,
        "environment": describe_environment(),
        "rows": [asdict(r) | {"relative": r.seconds and r.seconds / best} for r in rows],
        "critical_batch_size_of_sweep": fit_critical(grid),
        "critical_batch_size_of_noise": critical and asdict(critical),
        "noise_track": findings.track and asdict(findings.track),
        "plan": asdict(made),
    }


def nearest_rate(rows: list[Row], size: int, rate: float, origin: int) -> float:
    """Start tuning from the nearest size that is tuned, by the square-root rule, on a 2^k grid."""
    tuned = [r for r in rows if r.setting == "grid" and r.steps is not None]
    if tuned:
        nearest = min(tuned, key=lambda r: abs(math.log2(r.batch_size / size)))
        rate, origin = nearest.learning_rate, nearest.batch_size
    return 2.0 ** round(math.log2(rate * math.sqrt(size / origin)))


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as a table."""
    fitted, noise = (
        result["critical_batch_size_of_sweep"],
        result["critical_batch_size_of_noise"],
    )
    lines = [
        f"# Time to target: {result['task']} (target {result['target']:g})",
        "",
        f"Steps: median of {len(SEEDS[result['task']])} seeds. Seconds: steps x seconds per step. "
        "Relative: over the best grid row.",
        "",
        "| setting | batch size | learning rate | steps | ms per step | seconds | relative |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in sorted(result["rows"], key=lambda r: (r["batch_size"], r["setting"])):
        steps = "not reached" if r["steps"] is None else f"{r['steps']:.0f}"
        seconds = "-" if r["seconds"] is None else f"{r['seconds']:.2f}"
        relative = f"> {PATIENCE}" if r["relative"] is None else f"{r['relative']:.2f}"
        lines.append(
            f"| {r['setting']} | {r['batch_size']} | {r['learning_rate']:.3g} | {steps} | "
            f"{1e3 * r['step_seconds']:.2f} | {seconds} | {relative} |"
        )
    value = "unresolved" if noise["value"] is None else f"{noise['value']:.0f}"
    lines += [
        "",
        f"Critical batch size: {'-' if fitted is None else f'{fitted:.0f}'} fitted to the grid, "
        f"{value} from the gradient noise.",
        "",
        "Machine: " + ", ".join(f"{k} {v}" for k, v in result["environment"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"decision-{result['task']}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(as_markdown(result))
