"""Throughput as tables: steps against batch size, where a step goes, and loader processes."""

from collections.abc import Iterator

from rightbatch._format import format_count, format_number, format_seconds
from rightbatch.report.table import Row, Table
from rightbatch.results import EnergyProfile, ThroughputProfile

_CROWDED = 0.1  # share of the time in line for a processor that a reader should know of


def step_table(throughput: ThroughputProfile) -> Table:
    """Tabulate what a step takes at each batch size."""
    rows = (
        Row(
            cells=(
                format_count(p.batch_size),
                format_seconds(p.step_seconds),
                f"{format_seconds(p.low)} to {format_seconds(p.high)}",
                format_seconds(p.load_seconds),
                format_seconds(p.total_seconds),
                format_number(p.batch_size / p.total_seconds),
            )
        )
        for p in throughput.points
    )
    line = (
        f"computing = {format_seconds(throughput.alpha_seconds)} + "
        f"{format_seconds(throughput.beta_seconds_per_example)} x batch size, about."
    )
    return Table(
        title="One optimizer step",
        header=("batch size", "computing", "95 % interval", "loading", "both", "examples/s"),
        rows=tuple(rows),
        note=" ".join((line, *_crowded(throughput))),
    )


def _crowded(throughput: ThroughputProfile) -> Iterator[str]:
    most = max((point.crowded_share or 0.0 for point in throughput.points), default=0.0)
    if most > _CROWDED:
        yield (
            f"Other processes had the processors up to {_percent(most)} of the time: what the "
            "training thread waited was taken off, but measure again when the machine is quiet."
        )


def energy_table(energy: EnergyProfile) -> Table:
    """Tabulate what a step draws at each batch size."""
    rows = (
        Row(
            cells=(
                format_count(p.batch_size),
                f"{format_number(p.joules_per_step, 3)} J",
                f"{format_number(p.low, 3)} to {format_number(p.high, 3)} J",
                f"{format_number(p.joules_per_step / p.batch_size, 3)} J",
            )
        )
        for p in energy.points
    )
    return Table(
        title="Energy of one optimizer step",
        header=("batch size", "a step", "95 % interval", "an example"),
        rows=tuple(rows),
        note=f"energy = {format_number(energy.joules, 3)} J + "
        f"{format_number(energy.joules_per_example, 3)} J x batch size, about; all that the device "
        "draws meanwhile.",
    )


def clocks_table(throughput: ThroughputProfile) -> Table:
    """Tabulate the three clocks and the parts of a step, at the size that was looked at."""
    clocks, shares = throughput.clocks, throughput.shares
    if clocks is None:
        return Table(title="", header=(), rows=())
    workers = format_count(clocks.num_workers)
    cells = {
        "loading alone": format_seconds(clocks.load_seconds),
        "computing alone": format_seconds(clocks.step_seconds),
        "the loop": format_seconds(clocks.total_seconds),
    }
    if shares is not None:
        cells |= {
            "forward": _percent(shares.forward),
            "backward": _percent(shares.backward),
            "optimizer": _percent(shares.optimizer),
        }
    return Table(
        title=f"Where a step goes at batch size {format_count(clocks.batch_size)}",
        header=tuple(cells),
        rows=(Row(cells=tuple(cells.values())),),
        note=f"Looked at in turn, with {workers} loader processes; the parts are of computing.",
    )


def workers_table(throughput: ThroughputProfile) -> Table:
    """Tabulate what loading a batch takes with other numbers of loader processes."""
    clocks = throughput.clocks
    if clocks is None:
        return Table(title="", header=(), rows=())
    rows = (
        Row(
            cells=(format_count(w.num_workers), format_seconds(w.load_seconds)),
            mark="current" if w.num_workers == clocks.num_workers else "",
        )
        for w in throughput.workers
    )
    return Table(
        title=f"Loading a batch of {format_count(clocks.batch_size)}",
        header=("loader processes", "a batch"),
        rows=tuple(rows),
        note=f"Hidden where it takes less than computing, {format_seconds(clocks.step_seconds)}.",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
