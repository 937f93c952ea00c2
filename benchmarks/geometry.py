"""Which geometry's noise scale is nearest to the critical batch size of a tuned sweep?

Run averages in every geometry, on the built-in tasks with their own settings, beside the critical
batch size that the sweep of `benchmarks.decision` was fitted with, where there is one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rightbatch as rb
from rightbatch._environment import describe_environment
from rightbatch._format import format_interval
from rightbatch.tasks import BUILT_IN

RESULTS = Path(__file__).parent / "results"
SECONDS = 40.0  # for each run


def geometry(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Follow the noise along a run of each built-in task."""
    rows = []
    for name, built_in in BUILT_IN.items():
        say(name)
        task = built_in.factory()
        track = rb.track_noise(task, time_budget_seconds=SECONDS)
        swept = RESULTS / f"decision-{name}.json"
        sweep = json.loads(swept.read_text()) if swept.exists() else {}
        rows.append(
            {
                "task": name,
                "optimizer": type(task.optimizer).__name__,
                "sweep": sweep.get("critical_batch_size_of_sweep"),
                "final_loss": track.points[-1].loss,
                "geometries": [
                    {
                        "geometry": g.geometry,
                        "fits": g.fits,
                        "noise_scale": g.noise_scale,
                        "low": g.low,
                        "high": g.high,
                    }
                    for g in track.geometries
                ],
            }
        )
    return {"environment": describe_environment(), "rows": rows}


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as a table."""
    lines = [
        "# Run averages of the noise scale by geometry, beside tuned sweeps",
        "",
        "| task | optimizer | geometry | noise scale (95 %) | sweep's critical | sweep / noise |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        for g in row["geometries"]:
            sweep, scale = row["sweep"], g["noise_scale"]
            ratio = f"{sweep / scale:.2f}" if sweep and scale else "-"
            name = f"**{g['geometry']}**" if g["fits"] else g["geometry"]
            lines.append(
                f"| {row['task']} | {row['optimizer']} | {name} | "
                f"{format_interval(scale, g['low'], g['high'])} | "
                f"{f'{sweep:.0f}' if sweep else 'not swept'} | {ratio} |"
            )
    lines += [
        "",
        "Bold: the geometry that fits the optimizer.",
        "",
        "Machine: " + ", ".join(f"{k} {v}" for k, v in result["environment"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "geometry.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "geometry.md").write_text(as_markdown(result))
