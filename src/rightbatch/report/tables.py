"""Results as tables of short words; the text and the page draw the same ones."""

from collections.abc import Iterable
from math import log2

from rightbatch._format import (
    format_bytes,
    format_count,
    format_interval,
    format_learning_rate,
    format_number,
    format_ratio,
    format_seconds,
)
from rightbatch.report.noise_tables import geometries_table, layers_table, track_table
from rightbatch.report.table import Row, Table
from rightbatch.report.throughput_tables import (
    clocks_table,
    energy_table,
    step_table,
    workers_table,
)
from rightbatch.report.words import INSTRUMENTS, OUTCOMES
from rightbatch.results import (
    Candidate,
    EnergyProfile,
    LRRace,
    MemoryProfile,
    NoiseScale,
    NoiseTrack,
    Plan,
    Results,
    ThroughputProfile,
)


def tables(results: Results, instrument: str) -> tuple[Table, ...]:
    """Tabulate what one instrument measured; empty where it measured nothing.

    Args:
        results: Any results.
        instrument: A key of `INSTRUMENTS`.

    Returns:
        Tables that have at least one row.
    """
    made: list[Table] = []
    for part in INSTRUMENTS[instrument]:
        value = getattr(results, part)
        if isinstance(value, MemoryProfile):
            made.append(_memory(value))
        elif isinstance(value, ThroughputProfile):
            made += [step_table(value), clocks_table(value), workers_table(value)]
        elif isinstance(value, EnergyProfile):
            made.append(energy_table(value))
        elif isinstance(value, NoiseScale):
            made += [geometries_table(value, results.track), layers_table(value)]
        elif isinstance(value, NoiseTrack):
            made.append(track_table(value))
        elif isinstance(value, LRRace):
            made.append(_race(value))
    return tuple(table for table in made if table.rows)


def candidates_table(plan: Plan, *, limit: int | None = None) -> Table:
    """Tabulate what the plan weighed, its choice and the current setting marked.

    Args:
        plan: A plan.
        limit: Most rows to show. The choice, the current setting and the first size that
            does not fit stay; of the rest those nearest to the choice. ``None``: all.

    Returns:
        One row a candidate on as many devices as are recommended, ascending in batch size.
    """
    listed = same_devices(plan)
    shown = sorted(listed, key=lambda c: (c.batch_size, c.accumulation_steps))
    marks = {id(c): mark(c, plan) for c in shown}
    kept = shown if limit is None else _nearest(shown, marks, plan, limit)
    layout = "micro x accum. x devices" if plan.devices > 1 else ""
    if not layout and any(c.accumulation_steps > 1 for c in kept):
        layout = "micro x accum."
    cost = cost_differs(plan)
    rows = (
        Row(cells=_cells(c, plan, layout=bool(layout), cost=cost), mark=marks[id(c)]) for c in kept
    )
    header = ("batch size", *([layout] if layout else []), "one step", "steps", "time")
    note = "steps: over the fewest possible; time: over the best"
    if len(kept) < len(shown):
        note += f"; {format_count(len(kept))} of {format_count(len(shown))} shown"
    return Table(
        title="Candidates",
        header=(*header, *(["cost"] if cost else []), ""),
        rows=tuple(rows),
        note=f"{note}.",
    )


def mark(candidate: Candidate, plan: Plan) -> str:
    """Say why a candidate stands out."""
    chosen = (plan.batch_size, plan.micro_batch_size, plan.accumulation_steps)
    if chosen == (
        candidate.batch_size,
        candidate.micro_batch_size,
        candidate.accumulation_steps,
    ):
        return "choice"
    if not candidate.fits:
        return "impossible"
    today = current_candidate(plan)
    return "current" if today is not None and today is candidate else ""


def same_devices(plan: Plan) -> tuple[Candidate, ...]:
    """Keep the candidates on as many devices as are recommended."""
    return tuple(c for c in plan.candidates if c.devices in (None, plan.devices))


def current_candidate(plan: Plan) -> Candidate | None:
    """Find the current setting, if the plan weighed it: the fastest where no layout is told."""
    if plan.current is None:
        return None
    devices = plan.devices if plan.current.devices is None else plan.current.devices
    micro = plan.current.micro_batch_size
    same = [
        c
        for c in plan.candidates
        if c.batch_size == plan.current.batch_size
        and c.devices in (None, devices)
        and micro in (None, c.micro_batch_size)
    ]
    return min(same, key=lambda c: c.relative_time, default=None)


def cost_differs(plan: Plan) -> bool:
    """Whether cost ranks the candidates in another way than time does."""
    return any(
        abs(c.relative_cost - c.relative_time) > 0.005 * c.relative_time for c in plan.candidates
    )


def _nearest(
    shown: list[Candidate], marks: dict[int, str], plan: Plan, limit: int
) -> list[Candidate]:
    """Choose the rows that say most, keeping their order."""
    impossible = next((c for c in shown if marks[id(c)] == "impossible"), None)

    def rank(candidate: Candidate) -> tuple[int, float, int]:
        marked = marks[id(candidate)] in ("choice", "current") or candidate is impossible
        distance = abs(log2(candidate.batch_size / plan.batch_size))
        return (0 if marked else 1, distance, candidate.accumulation_steps)

    kept = {id(c) for c in sorted(shown, key=rank)[:limit]}
    return [c for c in shown if id(c) in kept]


def _cells(candidate: Candidate, plan: Plan, *, layout: bool, cost: bool) -> tuple[str, ...]:
    remark = {"choice": "recommended", "current": "today", "impossible": "does not fit", "": ""}
    if mark(candidate, plan) == "choice" and current_candidate(plan) is candidate:
        remark["choice"] = "recommended, as today"
    cells = [format_count(candidate.batch_size)]
    if layout:
        factors = [candidate.micro_batch_size, candidate.accumulation_steps]
        factors += [plan.devices] if plan.devices > 1 else []
        cells.append(" x ".join(format_count(factor) for factor in factors))
    cells += [
        format_seconds(candidate.step_seconds),
        format_ratio(candidate.relative_steps),
        format_ratio(candidate.relative_time),
    ]
    if cost:
        cells.append(format_ratio(candidate.relative_cost))
    return (*cells, remark[mark(candidate, plan)])


def _budget(memory: MemoryProfile) -> str:
    budget = f"Budget: {format_bytes(memory.budget_bytes)}"
    if not memory.held_bytes:
        return f"{budget}."
    return (
        f"{budget}, for weights, gradients, optimizer state, activations and batches; "
        f"{format_bytes(memory.held_bytes)} were held before."
    )


def _memory(memory: MemoryProfile) -> Table:
    rows = (
        Row(
            cells=(
                format_count(p.batch_size),
                format_bytes(p.peak_bytes) if p.peak_bytes is not None else "-",
                OUTCOMES.get(p.outcome, p.outcome) + ("" if p.source == "real" else ", predicted"),
            ),
            mark="" if p.outcome == "ok" else "impossible",
        )
        for p in sorted(memory.points, key=lambda p: p.batch_size)
    )
    return Table(
        title="Peak memory",
        header=("batch size", "peak", ""),
        rows=tuple(rows),
        note=_budget(memory),
    )


def _race(race: LRRace) -> Table:
    rows: Iterable[Row] = (
        Row(
            cells=(
                format_learning_rate(e.learning_rate),
                format_count(e.steps),
                "diverged"
                if e.loss is None
                else format_interval(e.loss, e.low, e.high, number=lambda x: format_number(x, 3)),
            ),
            mark="impossible" if e.loss is None else _won(e.learning_rate, race),
        )
        for e in race.entries
    )
    return Table(
        title="Race of learning rates",
        header=("learning rate", "steps", "loss at the end"),
        rows=tuple(rows),
        note="A rate that fell behind was stopped early: compare equal steps.",
    )


def _won(learning_rate: float, race: LRRace) -> str:
    return "choice" if learning_rate == race.suggestion else ""
