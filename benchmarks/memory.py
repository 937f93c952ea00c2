"""Which finder finds the largest batch that fits, with how many tries, and is it right?

Three models times three budgets, each finder in a process that the system refuses more memory than
the budget. What a heap takes differs from run to run, and may fall where a tensor becomes large
enough for pages of its own, so the truth is the largest size that trains 50 steps in each of three
runs under the same limit, where sizes from the one that we found upwards train too.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import rightbatch as rb
from benchmarks.memory_peers import FINDERS
from benchmarks.memory_tasks import BUDGETS, MIB, MODELS, make
from rightbatch._environment import describe_environment
from rightbatch.hardware.isolation import Isolated

RESULTS = Path(__file__).parent / "results"
TRUTH_STEPS, TRUTH_RUNS, PRECISION = 50, 3, 0.025
PATIENCE_SECONDS = 240.0
LIMITS = {"probes": 3, "median_probes": 2, "least_share": 0.85, "median_share": 0.90}


def trains(isolated: Isolated, size: int, budget: int, runs: int = 1) -> bool:
    """Whether a size trains for a while under a limit, in each of some runs."""
    tries = (
        isolated.try_size(size, budget_bytes=budget, steps=TRUTH_STEPS).outcome == "ok"
        for _ in range(runs)
    )
    return all(tries)


def largest(isolated: Isolated, found: int, beyond: int, budget: int) -> int:
    """Go up from a size in steps until one fails, then down until one trains in every run."""
    low, step = found, max(1, round(2 * PRECISION * found))
    while low + step < beyond and trains(isolated, low + step, budget):
        low += step
    half = low + step // 2
    if low < half < beyond and trains(isolated, half, budget):
        low = half
    while low > 0 and not trains(isolated, low, budget, TRUTH_RUNS):
        low -= max(1, step // 2)
    return max(low, 0)


def ours(task: rb.Task, budget: int) -> dict[str, Any]:
    """Measure, and count what was executed."""
    begin = time.perf_counter()
    profile = rb.measure_memory(task, budget_bytes=budget)
    real = [p for p in profile.points if p.source == "real"]
    predicted = {p.batch_size: p.peak_bytes or 0 for p in profile.points if p.source == "fake"}
    return {
        "size": profile.max_verified_batch_size,
        "tried": [p.batch_size for p in real],
        "ooms": sum(p.outcome == "oom" for p in real),
        "killed": sum(p.outcome == "killed" for p in real),
        "seconds": time.perf_counter() - begin,
        "upper_bound": profile.upper_bound,
        "beyond": _beyond(profile),
        "error": "",
        "predicted_over_real": [
            predicted[p.batch_size] / p.peak_bytes for p in real if p.peak_bytes
        ],
    }


def with_pages(task: rb.Task, budget: int, size: int) -> dict[str, Any]:
    """Measure where every tensor has pages of its own, and what that costs at one size."""
    with _paged():
        profile = rb.measure_memory(task, budget_bytes=budget)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with Isolated(task) as isolated:
        for _ in range(TRUTH_RUNS):
            for paged in seconds:
                with _paged() if paged else nullcontext():
                    answer = isolated.try_size(size, budget_bytes=2 * budget, steps=10)
                seconds[paged].append(answer.seconds_per_example or math.nan)
    return {
        "size": profile.max_verified_batch_size,
        "step_seconds_ratio": statistics.median(seconds[True]) / statistics.median(seconds[False]),
    }


@contextmanager
def _paged() -> Iterator[None]:
    before = os.environ.copy()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"  # tries inherit it
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _beyond(profile: rb.MemoryProfile) -> int:
    """Return a size of which more must be alive than fits; no try that failed has a say here."""
    sizes = [p.batch_size for p in profile.points if p.source == "fake" and p.outcome != "ok"]
    return min(sizes, default=profile.max_verified_batch_size + 1)


def other(finder: str, name: str, budget_mib: int) -> dict[str, Any]:
    """Run another finder in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "found.json")
        command = [sys.executable, "-m", "benchmarks.memory_peers"]
        try:
            done = subprocess.run(
                [*command, finder, name, str(budget_mib), str(file)],
                capture_output=True,
                timeout=PATIENCE_SECONDS,
                check=False,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
        except subprocess.TimeoutExpired:
            return _nothing(f"not done after {PATIENCE_SECONDS:.0f} s")
        if not file.exists():
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return _nothing(f"exit status {done.returncode}: {' '.join(last)}"[:200])
        return {**json.loads(file.read_text()), "killed": 0}


def _nothing(error: str) -> dict[str, Any]:
    return {"size": None, "tried": [], "ooms": 0, "killed": 0, "seconds": None, "error": error}


def memory(
    say: Callable[[str], None],
    models: Sequence[str] = tuple(MODELS),
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Compare on every budget of some models; those of the others stay as they were measured.

    Each case takes minutes, so all that there is so far is kept after each.
    """
    file = RESULTS / "memory.json"
    before = json.loads(file.read_text())["cases"] if file.exists() else []
    cases = [case for case in before if case["model"] in set(MODELS) - set(models)]
    order = list(MODELS)
    for name in models:
        for budget_mib in BUDGETS[name]:
            say(f"{name}, {budget_mib} MiB")
            cases.append({**_case(name, budget_mib, say), "environment": describe_environment()})
            cases.sort(key=lambda case: (order.index(case["model"]), case["budget_mib"]))
            keep({"limits": LIMITS, "cases": cases})
    return {"limits": LIMITS, "cases": cases}


def _case(name: str, budget_mib: int, say: Callable[[str], None]) -> dict[str, Any]:
    task, budget = make(name), budget_mib * MIB
    found = {"rightbatch": ours(task, budget)}
    for finder in FINDERS:
        found[finder] = other(finder, name, budget_mib)
        say(f"  {finder}: {found[finder]['size']} {found[finder]['error']}")
    held = sum(p.nbytes for p in task.parameters)
    own = found["rightbatch"]
    with Isolated(task) as isolated:
        truth = largest(isolated, own["size"], own["beyond"], budget - held)
        for answer in found.values():
            size = answer["size"]
            answer["share"] = size / truth if size and truth else 0.0
            answer["ran_it"] = size in answer["tried"]
            known = size == truth or (answer is not own and 0 < (size or 0) < truth)
            answer["right"] = known or (
                bool(size) and trains(isolated, size, budget - held, TRUTH_RUNS)
            )
    say(f"  truth {truth}, ours {own['size']} in {own['tried']}")
    middle = BUDGETS[name][1]  # one is enough to see what pages do
    paged = with_pages(task, budget, own["size"]) if budget_mib == middle else None
    say(f"  with pages {paged}")
    return {
        "model": name,
        "budget_mib": budget_mib,
        "truth": truth,
        "found": found,
        "with_pages": paged,
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as tables."""
    finders = ["rightbatch", *FINDERS]
    lines = [
        "# The largest batch that fits: finders under a limit that the system enforces",
        "",
        "| finder | tries, median (most) | out of memory | share of the truth, median (least) "
        "| answers that do not train | never ran | no answer | seconds, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for finder in finders:
        rows = [case["found"][finder] for case in result["cases"]]
        given = [row for row in rows if row["size"]]
        tries = [len(row["tried"]) for row in given] or [0]
        right = [row for row in given if row["right"]]
        shares = [row["share"] for row in right] or [0.0]
        seconds = [row["seconds"] for row in given] or [0.0]
        lines.append(
            f"| {finder} | {statistics.median(tries):.0f} ({max(tries)}) "
            f"| {sum(row['ooms'] for row in rows)} "
            f"| {statistics.median(shares):.2f} ({min(shares):.2f}) "
            f"| {len(given) - len(right)} of {len(rows)} "
            f"| {sum(not row['ran_it'] for row in given)} | {len(rows) - len(given)} "
            f"| {statistics.median(seconds):.0f} |"
        )
    columns = ["model, budget", "truth", "bound", *finders, "with pages", "steps take"]
    lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for case in result["cases"]:
        answers = [_answer(case["found"][finder]) for finder in finders]
        lines.append(
            f"| {case['model']}, {case['budget_mib']} MiB | {case['truth']:,} "
            f"| {case['found']['rightbatch']['upper_bound']:,} | "
            + " | ".join([*answers, *_paged_answer(case["with_pages"])])
            + " |"
        )
    ratios = [
        r for case in result["cases"] for r in case["found"]["rightbatch"]["predicted_over_real"]
    ]
    lines += [
        "",
        f"Predicted over real peak: {min(ratios):.2f} to {max(ratios):.2f}. "
        "Processes killed: "
        + str(sum(c["found"]["rightbatch"]["killed"] for c in result["cases"]))
        + ". "
        f"Truth: trains {TRUTH_STEPS} steps in {TRUTH_RUNS} of {TRUTH_RUNS} runs, to "
        f"{PRECISION:.1%}. In brackets: tries. \\* does not train. Shares are of answers that "
        "train. With pages: rightbatch under MALLOC_MMAP_THRESHOLD_=131072, where steps of the "
        "size found without it take so many times as long. Seconds are of one run each.",
        "",
        *_machines(result["cases"]),
    ]
    return "\n".join(lines) + "\n"


def _machines(cases: list[dict[str, Any]]) -> list[str]:
    """Name the machine of each case once, or of several where they differ."""
    seen: dict[str, list[str]] = {}
    for case in cases:
        machine = ", ".join(f"{k} {v}" for k, v in case["environment"].items())
        seen.setdefault(machine, []).append(f"{case['model']} {case['budget_mib']}")
    return [
        f"Machine{'' if len(seen) == 1 else ' of ' + ', '.join(names)}: {machine}."
        for machine, names in seen.items()
    ]


def _paged_answer(paged: dict[str, Any] | None) -> list[str]:
    if paged is None:
        return ["", ""]
    return [f"{paged['size']:,}", f"{paged['step_seconds_ratio']:.2f}x"]


def _answer(found: dict[str, Any]) -> str:
    if not found["size"]:
        return "none"
    return f"{found['size']:,}{'' if found['right'] else '*'} ({len(found['tried'])})"


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "memory.md").write_text(as_markdown(result))
