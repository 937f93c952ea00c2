"""Does E(b) = E_min (1 + b / B_c) describe what tuned runs of large models needed?

MLPerf's reference convergence points: data needed to reach a fixed quality at several batch sizes,
each tuned, many seeds each. Of each benchmark the newest round with three or more sizes is fitted
and counts; all rounds, and predicting a size that was left out, stand beside it.
"""

import csv
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rightbatch._format import format_interval, format_number
from rightbatch.plan import fit_steps
from rightbatch.results import Status

RESULTS = Path(__file__).parent / "results"
DATA = "mlperf_rcp.csv"
LIMIT = 0.03  # median residual over benchmarks
FEWEST_SIZES = 3

Points = dict[int, float]  # batch size -> data needed


def steps_model(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Fit every benchmark of the file; takes seconds.

    Raises:
        FileNotFoundError: If ``$RIGHTBATCH_DATA`` does not hold the file.
    """
    rounds = read(Path(os.environ.get("RIGHTBATCH_DATA", ".")) / DATA)
    fitted = {
        name: {when: points for when, points in each.items() if len(points) >= FEWEST_SIZES}
        for name, each in rounds.items()
    }
    rows: list[dict[str, Any]] = []
    for name in sorted(fitted):
        if fitted[name]:
            say(name)
            newest = max(fitted[name], key=_edition)
            rows.append({"benchmark": name, "round": newest, **_row(fitted[name][newest])})
    every = [_row(points)["residual"] for each in fitted.values() for points in each.values()]
    residuals = [row["residual"] for row in rows]
    scatter = [
        row["residual"] * math.sqrt(len(row["batch_sizes"]) / (len(row["batch_sizes"]) - 2))
        for row in rows
    ]
    distinct = {tuple(row["data_needed"]): row["residual"] for row in rows}
    left_out = [row["left_out"] for row in rows if row["left_out"] is not None]
    return {
        "rows": rows,
        "median_residual": median(residuals),
        "limit": LIMIT,
        "met": median(residuals) <= LIMIT,
        "median_residual_all_rounds": median(every),
        "num_rounds": len(every),
        "median_residual_distinct": median(distinct.values()),
        "num_distinct": len(distinct),
        "median_scatter": median(scatter),
        "median_left_out_error": median(left_out),
        "too_few_sizes": sorted(name for name, each in fitted.items() if not each),
    }


def read(path: Path) -> dict[str, dict[str, Points]]:
    """Read benchmark -> round -> batch size -> data needed.

    Seeds are averaged without the best and the worst, as MLPerf does.
    """
    found: dict[str, dict[str, Points]] = defaultdict(lambda: defaultdict(dict))
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seeds = sorted(float(word) for word in row["to_converge"].split())
            kept = seeds[1:-1] if len(seeds) > FEWEST_SIZES else seeds
            points = found[row["benchmark"]][row["round"]]
            points[int(row["batch_size"])] = sum(kept) / len(kept)
    return {name: dict(rounds) for name, rounds in found.items()}


def _edition(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))


def _row(points: Points) -> dict[str, Any]:
    sizes = sorted(points)
    fit = fit_steps(sizes, [points[size] for size in sizes])
    critical = fit.critical_batch_size
    return {
        "batch_sizes": sizes,
        "data_needed": [points[size] for size in sizes],
        "critical_batch_size": critical.value,
        "low": critical.low,
        "high": critical.high,
        "status": fit.status.value,
        "residual": fit.residual,
        "left_out": _left_out_error(points),
    }


def _left_out_error(points: Points) -> float | None:
    """Median error of the fit at an inner size that it was not shown; needs four sizes."""
    sizes = sorted(points)
    errors: list[float] = []
    for inner in sizes[1:-1] if len(sizes) > FEWEST_SIZES else []:
        others = [size for size in sizes if size != inner]
        fit = fit_steps(others, [points[size] for size in others])
        critical, minimal = fit.critical_batch_size.value, fit.minimal_examples
        if critical is not None and minimal is not None:
            predicted = minimal * (1 + inner / critical)
        else:  # a curve that never bends, or bends from the start
            flat = fit.critical_batch_size.high is None
            ratios = [points[size] / (1 if flat else size) for size in others]
            predicted = float(np.exp(np.log(ratios).mean())) * (1 if flat else inner)
        errors.append(abs(math.log(predicted / points[inner])))
    return median(errors) if errors else None


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as a table."""
    verdict = "met" if result["met"] else "not met"
    lines = [
        "# Data to target against batch size: one law with two parameters",
        "",
        "`E(b) = E_min (1 + b / B_c)`, fitted in log space to MLPerf's reference convergence "
        "points (tuned at each size, mean of the seeds without the best and the worst). Residual: "
        "root mean square of `log(measured / fitted)`. Left out: median error at an inner size "
        "that the fit was not shown.",
        "",
        "| benchmark | round | sizes | from | to | critical batch size (95 %) | residual | "
        "left out | status |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        interval = format_interval(row["critical_batch_size"], row["low"], row["high"])
        left_out = "-" if row["left_out"] is None else f"{row['left_out']:.1%}"
        sizes = row["batch_sizes"]
        lines.append(
            f"| {row['benchmark']} | {row['round']} | {len(sizes)} | {sizes[0]:,} | "
            f"{sizes[-1]:,} | {interval} | {row['residual']:.1%} | {left_out} | "
            f"{row['status'].replace('_', ' ')} |"
        )
    undetermined = sum(row["status"] == Status.NOT_DETERMINED for row in result["rows"])
    lines += [
        "",
        f"Median residual over {len(result['rows'])} benchmarks: "
        f"**{result['median_residual']:.2%}** (limit {result['limit']:.0%}: {verdict}).",
        "",
        "The same question asked in other ways:",
        "",
        f"- benchmarks with the same points counted once ({result['num_distinct']}; one was "
        f"renamed): {result['median_residual_distinct']:.2%}",
        "- scatter, the residual with two degrees of freedom taken off: "
        f"{result['median_scatter']:.2%}",
        f"- all {result['num_rounds']} rounds, most of which repeat points of others: "
        f"{result['median_residual_all_rounds']:.2%}",
        f"- error at a size that was left out: {result['median_left_out_error']:.2%}",
        "",
        f"Not determined by the data: {undetermined} of {len(result['rows'])}; their open end is "
        "printed as 0 or unbounded, the other end is the bound.",
    ]
    if result["too_few_sizes"]:
        names = ", ".join(result["too_few_sizes"])
        lines += ["", f"Fewer than {format_number(FEWEST_SIZES)} sizes: {names}."]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "steps_model.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "steps_model.md").write_text(as_markdown(result))
