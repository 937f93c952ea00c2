"""Who runs how far in a race, and who has won it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from rightbatch._time import Progress
from rightbatch.lr.arena import Arena, Run
from rightbatch.lr.judging import (
    Track,
    Weights,
    affordable_steps,
    compare,
    loss_interval,
    mean_loss,
    scores,
    settling,
    survivor_counts,
)
from rightbatch.lr.stepping import Pace
from rightbatch.results import LRRace, RaceEntry, Status

_PLANNED_SHARE = 0.9  # of the time left; the rest absorbs slower steps
_EXTENSIONS = 4  # rates added beyond the grid, at most
_NARROWEST = 1.5  # neighbours closer than this factor get no rate between them
_LAPS = 3  # orders of the data, the first included
_PODIUM = 3  # rates that run the further laps
_SETTLED = 3.0  # a race that ran so many times longer than its leader needed is over
_SETTLED_STEPS = 32  # but not before so many steps
_FALLING = 1.8  # below, the loss was still on its way down when the time ended


@final
@dataclass(slots=True)
class Contest:
    """Successive halving on an `Arena`, with what is added to it while time is left."""

    arena: Arena
    pace: Pace
    eta: int
    open_ended: bool  # whether rates may be added to the grid
    progress: Progress
    runs: list[Run] = field(default_factory=list, init=False)
    _slowdown: float = field(default=1.0, init=False)  # seconds taken over seconds predicted

    def halve(self, grid: Sequence[float]) -> None:
        """Run the grid rung by rung until two are left, the time ends, or the loss has settled."""
        counts = survivor_counts(len(grid), self.eta)
        runners = [self._enter(rate) for rate in grid]
        for rung, count in enumerate(counts):
            seconds = _PLANNED_SHARE * self.arena.deadline.remaining_seconds()
            steps = affordable_steps(
                seconds / self._slowdown,
                counts[rung:],
                first=rung == 0,
                eta=self.eta,
                load_seconds=self.pace.load,
                step_seconds=self.pace.step,
            )
            planned = steps * (self.pace.load + count * self.pace.step) * self._slowdown
            horizon = runners[0].step + steps
            self._run(runners, horizon, most_seconds=planned, until_settled=True)
            if rung == 0 and self.open_ended:
                self._extend(horizon)
            ranking = self._ranking()
            if self._settled() or not ranking or steps == 0:
                break
            if rung + 1 < len(counts):
                runners = ranking[: counts[rung + 1]]
                self.arena.retire([run for run in self.runs if run not in runners])
        self.arena.retire(self.runs)

    def refine(self) -> None:
        """Use time that is left once the loss has settled: rates in between, and further laps."""
        if not self._settled():
            return
        horizon = self._ranking()[0].step
        for _ in range(_EXTENSIONS):
            rate = self._rate_to_add()
            if rate is None or not self._affordable(horizon, 1):
                break
            self._run([self._enter(rate)], horizon)
        self.arena.retire(self.runs)
        podium = [run.learning_rate for run in self._ranking()[:_PODIUM]]
        for lap in range(1, _LAPS):
            if not self._affordable(horizon, len(podium)):
                return
            runs = [self.arena.enter(rate, lap=lap) for rate in podium]
            self._run(runs, horizon)
            self.arena.retire(runs)
            if not all(run.step == horizon or not run.alive for run in runs):
                return  # the time ended within the lap
            self.runs += runs

    def _enter(self, rate: float) -> Run:
        run = self.arena.enter(rate)
        self.runs.append(run)
        return run

    def _extend(self, planned: int) -> None:
        """Add rates beyond the grid while the best one lies at its end, or while all diverge."""
        for _ in range(_EXTENSIONS):
            rates = [run.learning_rate for run in self.runs]
            ranking = self._ranking()
            if not ranking:
                rate = min(rates) / 4
            elif ranking[0].learning_rate == max(rates):
                rate = 2 * max(rates)
            elif ranking[0].learning_rate == min(rates):
                rate = min(rates) / 2
            else:
                return
            horizon = ranking[0].step if ranking else planned
            if not self._affordable(3 * horizon, 1):
                return
            self._run([self._enter(rate)], horizon, until_settled=not ranking)

    def _rate_to_add(self) -> float | None:
        """Return a rate worth a run next to the winner: in a wide gap, or beyond the end."""
        if not self.open_ended:
            return None
        winner = self._ranking()[0].learning_rate
        rates = [run.learning_rate for run in self.runs]
        below = max((rate for rate in rates if rate < winner), default=None)
        above = min((rate for rate in rates if rate > winner), default=None)
        if above is None:
            return 2 * winner
        if below is None:
            return winner / 2
        gaps = [(winner / below, below), (above / winner, above)]
        wide = [neighbour for gap, neighbour in gaps if gap > _NARROWEST]
        return math.sqrt(winner * wide[0]) if wide else None

    def _run(
        self,
        runs: Sequence[Run],
        horizon: int,
        *,
        most_seconds: float = math.inf,
        until_settled: bool = False,
    ) -> None:
        """Run in lockstep, and learn from it how much slower than predicted things are."""
        elapsed = self.arena.deadline.elapsed_seconds
        first, begun = [run.step for run in runs], elapsed()

        def report(step: int) -> None:
            note = f"learning rate: {len(runs)} rates at step {step}"
            self.progress(self.arena.deadline.fraction(), note)

        def until() -> bool:
            late = elapsed() - begun > most_seconds
            return late or (until_settled and self._settled())

        self.arena.run(runs, horizon, until=until, report=report)
        taken = [run.step - step for run, step in zip(runs, first, strict=True)]
        predicted = max(taken) * self.pace.load + sum(taken) * self.pace.step
        if predicted > 0:
            self._slowdown = max(0.5, (elapsed() - begun) / predicted)

    def _affordable(self, horizon: int, count: int) -> bool:
        """Whether so many fresh runs to the horizon fit the time that is left."""
        seconds = horizon * (self.pace.load + count * self.pace.step) * self._slowdown
        return seconds < _PLANNED_SHARE * self.arena.deadline.remaining_seconds()

    def _ranking(self) -> list[Run]:
        return ranking(self.runs, self.arena.weights)

    def _settled(self) -> bool:
        return is_settled(self.runs, self.arena.weights)


def ranking(runs: Sequence[Run], weights: Weights) -> list[Run]:
    """Return the first lap's runs that have come furthest and not diverged, the best first."""
    alive = [run for run in runs if run.alive and run.lap == 0 and run.step > 0]
    furthest = max((run.step for run in alive), default=0)
    level = [run for run in alive if run.step == furthest]
    if not level:
        return []
    marks = scores([run.track for run in level], furthest, weights)
    return [run for _, run in sorted(zip(marks, level, strict=True), key=lambda pair: pair[0])]


def is_settled(runs: Sequence[Run], weights: Weights) -> bool:
    """Whether the first lap ran three times as long as its leader took to get near the bottom."""
    tracks = [run.track for run in runs if run.alive and run.lap == 0]
    steps = max((track[-1].step for track in tracks), default=0)
    return steps >= _SETTLED_STEPS and settling(tracks, weights) >= _SETTLED


def judge(runs: Sequence[Run], weights: Weights, *, batch_size: int) -> LRRace:
    """Name the winner, what cannot be told from it, and how far the race can be trusted."""
    first_lap = sorted((r for r in runs if r.lap == 0), key=lambda run: run.learning_rate)
    winner = _winner(runs, weights)
    suggestion, low, high = None, None, None
    if winner is None:
        started = any(run.step > 0 for run in runs)
        status = Status.AT_THE_END if started else Status.OUT_OF_TIME
    else:
        tracks = [run.track for run in first_lap if run.alive]
        falling = settling(tracks, weights) < _FALLING
        suggestion = winner / 2 if falling else winner
        tied = [*_tied(runs, winner, weights), suggestion]
        low, high = min(tied), max(tied)
        at_end = winner in (first_lap[0].learning_rate, first_lap[-1].learning_rate)
        status = Status.OUT_OF_TIME if falling else Status.OK
        status = Status.AT_THE_END if at_end and not falling else status
    return LRRace(
        batch_size=batch_size,
        entries=tuple(_entry(run, weights) for run in first_lap),
        suggestion=suggestion,
        low=low,
        high=high,
        status=status,
    )


def _winner(runs: Sequence[Run], weights: Weights) -> float | None:
    """Return the rate with the least mean score over all the laps that were run."""
    contenders = [run.learning_rate for run in ranking(runs, weights)]
    laps = _laps(runs)
    most = max((len(laps[rate]) for rate in contenders if rate in laps), default=0)
    contenders = [rate for rate in contenders if len(laps.get(rate, [])) == most]
    if not contenders:
        return None
    totals = [0.0] * len(contenders)
    for lap in range(most):
        tracks = [laps[rate][lap] for rate in contenders]
        marks = scores(tracks, tracks[0][-1].step, weights)
        totals = [total + mark for total, mark in zip(totals, marks, strict=True)]
    return min(zip(totals, contenders, strict=True))[1]


def _laps(runs: Sequence[Run]) -> dict[float, list[Track]]:
    """Return each rate's tracks, lap by lap; a rate that diverged in any lap has none."""
    diverged = {run.learning_rate for run in runs if not run.alive}
    laps: dict[float, list[Track]] = {}
    for run in sorted(runs, key=lambda run: run.lap):
        if run.learning_rate not in diverged:
            laps.setdefault(run.learning_rate, []).append(run.track)
    return laps


def _tied(runs: Sequence[Run], winner: float, weights: Weights) -> list[float]:
    """Return the rates whose score cannot be told from the winner's, the winner included."""
    laps = _laps(runs)
    tied = []
    for rate, tracks in laps.items():
        shared = min(len(tracks), len(laps[winner]))
        horizon = min(tracks[0][-1].step, laps[winner][0][-1].step)
        if horizon > 0:
            difference, reach = compare(tracks[:shared], laps[winner][:shared], horizon, weights)
            tied += [rate] if rate == winner or difference <= reach else []
    return tied


def _entry(run: Run, weights: Weights) -> RaceEntry:
    last = run.track[-1]
    low, high = loss_interval(last, weights)
    return RaceEntry(
        learning_rate=run.learning_rate,
        steps=run.step,
        loss=mean_loss(last, weights) if run.alive else None,
        low=low if run.alive else None,
        high=high if run.alive else None,
    )
