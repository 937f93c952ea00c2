"""What a heap that keeps its pages does for a step on a CPU: the same steps in two environments.

Processes take turns: as it is, with pages kept, with pages for every tensor. Each trains at one
batch size alone, as a training script does, and reports its fastest step and what it took: all
steps do the same work, so what one takes longer than another was disturbed.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rightbatch._environment import describe_environment
from rightbatch.hardware.paging import paging_clock
from rightbatch.hardware.workload import host_batches
from rightbatch.tasks.registry import load_task

RESULTS = Path(__file__).parent / "results"
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "kept": {"MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_THRESHOLD_": "33554432"},
    "for every tensor": {"MALLOC_MMAP_THRESHOLD_": "131072"},
}
SIZES = {"digits": (256, 1024), "mnist": (128, 512), "bikes": (2048,), "shakespeare": (32,)}
TURNS, WARM_UP_STEPS, STEPS = 3, 20, 40


def steps(name: str, size: int) -> dict[str, float]:
    """Take steps on one batch in this process."""
    task = load_task(name)
    batch = next(host_batches(task, size, seed=0))
    for _ in range(WARM_UP_STEPS):
        task.step(batch)
    paging = paging_clock()
    begun, ran, pages = paging() if paging else 0.0, time.process_time(), _pages()
    seconds = [_time(lambda: task.step(batch)) for _ in range(STEPS)]
    return {
        "seconds": min(seconds),
        "pages": (_pages() - pages) / STEPS,
        "share": ((paging() if paging else 0.0) - begun) / (time.process_time() - ran),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _time(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _pages() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _elsewhere(name: str, size: int, setting: str) -> dict[str, float]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.paging", name, str(size)],
        env={**environment, **SETTINGS[setting]},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def paging(say: Callable[[str], None]) -> dict[str, Any]:
    """Compare the settings at two sizes of every task."""
    rows = []
    for name, sizes in SIZES.items():
        for size in sizes:
            say(f"{name}, {size}")
            turns = [{s: _elsewhere(name, size, s) for s in SETTINGS} for _ in range(TURNS)]
            rows.append({"task": name, "batch_size": size, **_summarize(turns)})
    return {"environment": describe_environment(), "settings": SETTINGS, "rows": rows}


def _summarize(turns: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians over the turns; times as ratios within each turn."""
    return {
        setting: {
            "step_seconds_ratio": statistics.median(
                turn[setting]["seconds"] / turn["as it is"]["seconds"] for turn in turns
            ),
            **{
                part: statistics.median(turn[setting][part] for turn in turns)
                for part in ("seconds", "pages", "share", "peak_mib")
            },
        }
        for setting in SETTINGS
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as a table."""
    lines = [
        "# Pages of memory that the C library gives back, and what keeping them does for a step",
        "",
        "| task, batch size | new pages a step | of computing, as we measure it | step with pages "
        "kept | its pages | peak | step with pages for every tensor | its pages | peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        plain, kept, every = (row[setting] for setting in SETTINGS)
        lines.append(
            f"| {row['task']}, {row['batch_size']:,} | {plain['pages']:,.0f} "
            f"| {100 * plain['share']:.0f} % | {kept['step_seconds_ratio']:.2f}x "
            f"| {kept['pages']:,.0f} | {_more(kept, plain)} | {every['step_seconds_ratio']:.2f}x "
            f"| {every['pages']:,.0f} | {_more(every, plain)} |"
        )
    settings = "; ".join(
        f"{name}: " + (" ".join(f"{k}={v}" for k, v in values.items()) or "nothing set")
        for name, values in result["settings"].items()
    )
    machine = ", ".join(f"{k} {v}" for k, v in result["environment"].items())
    lines += [
        "",
        f"Medians over {TURNS} processes each, which took turns, of the fastest of {STEPS} steps; "
        f"ratios and differences are to the process as it is. {settings}.",
        "",
        f"Machine: {machine}.",
    ]
    return "\n".join(lines) + "\n"


def _more(found: dict[str, float], plain: dict[str, float]) -> str:
    return f"{found['peak_mib'] - plain['peak_mib']:+.0f} MiB"


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "paging.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "paging.md").write_text(as_markdown(result))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(steps(sys.argv[1], int(sys.argv[2]))))
