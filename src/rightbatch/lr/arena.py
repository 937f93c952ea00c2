"""Where contenders train in turns: one model on the device, everybody's state on the host."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, final

from torch import Tensor

from rightbatch._time import Deadline
from rightbatch.lr.course import Course
from rightbatch.lr.judging import Mark, mean_loss
from rightbatch.lr.snapshot import Snapshot, put_back, take_snapshot
from rightbatch.lr.stepping import evaluate_loss, rate_setter, seed_everything, take_step
from rightbatch.task import Task
from rightbatch.task.data import to_device

_TURN_BYTES = 64 * 2**20  # batches that wait for their turn; more would not make turns cheaper
_TURN_STEPS = (4, 64)  # fewest and most steps of one contender before the next one's turn
_TURN_SHARE = 0.03  # of the time budget, at most, before the deadline is looked at
_FIRST_MARK = 4  # marks are made at 4, 6, 8, 11, 16, ... steps: twice per doubling


@final
@dataclass(slots=True, eq=False)
class Run:
    """One rate's training run in one lap, which is one order of the data."""

    learning_rate: float
    lap: int
    track: list[Mark]
    snapshot: Snapshot | None  # None: diverged, or its state is the one on the device
    alive: bool = True
    step: int = 0


@final
@dataclass(slots=True)
class Arena:
    """Runs contenders in lockstep on the same batches, and marks their held-out losses."""

    task: Task
    course: Course
    deadline: Deadline
    seed: int
    weights: tuple[float, ...]  # units of each held-out batch
    _start: Snapshot = field(init=False)
    _start_mark: Mark = field(init=False)
    _set_rate: Callable[[float], None] = field(init=False)
    _live: Run | None = field(default=None, init=False)
    _streams: dict[int, tuple[int, Iterator[Any]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._start = take_snapshot(self.task)
        self._set_rate = rate_setter(self.task.optimizer)
        self._start_mark = Mark(0, self._held_out_losses())

    def enter(self, learning_rate: float, *, lap: int = 0) -> Run:
        """Return a run at its start."""
        return Run(learning_rate, lap, [self._start_mark], self._start)

    def run(
        self,
        runs: Sequence[Run],
        horizon: int,
        *,
        until: Callable[[], bool] = lambda: False,
        report: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Train runs of one lap, all at the same step, up to ``horizon`` steps.

        Ends early when the time is over, when nobody is left, or when ``until`` says so after a
        mark. All runs that are still alive end at the same step, with a mark there.
        """
        while runs := [run for run in runs if run.alive]:
            if runs[0].step >= horizon or self.deadline.passed():
                return
            self._train(runs, min(horizon, _next_mark(runs[0].step)))
            for run in runs:
                if run.alive:
                    self._mark(run)
            report(runs[0].step)
            if until():
                return

    def _train(self, runs: Sequence[Run], stop: int) -> None:
        """Let each run in turn train on the same few batches, until ``stop`` or out of time."""
        lap, step = runs[0].lap, runs[0].step
        stream = self._stream(lap, step)
        begun = self.deadline.elapsed_seconds()
        turn = 1
        while step < stop and not self.deadline.passed():
            batches = []
            for index in range(step, min(stop, step + turn)):
                self._seed(lap, index)  # augmentation draws from the global random source
                batches.append(next(stream))
            for run in runs:
                self._turn(run, batches)
            step += len(batches)
            seconds = self.deadline.elapsed_seconds() - begun
            turn = self._turn_steps(batches[0], seconds / len(batches))
            begun += seconds
        if step >= self._streams.get(lap, (0, stream))[0]:
            self._streams[lap] = (step, stream)

    def _turn(self, run: Run, batches: Sequence[Any]) -> None:
        for batch in batches if run.alive else ():
            self._bring_in(run)
            self._seed(run.lap, run.step)
            loss = take_step(self.task, batch)
            run.step += 1
            if not math.isfinite(loss):
                self._drop(run)
                return

    def _turn_steps(self, batch: Any, seconds: float) -> int:
        """Return how many batches to hand round next: few enough for memory and the clock."""
        fewest, most = _TURN_STEPS
        by_memory = _TURN_BYTES // max(1, _bytes_in(batch))
        by_time = _TURN_SHARE * self.deadline.seconds / seconds if seconds > 0 else most
        return int(max(1, min(most, max(fewest, by_memory), by_time)))

    def _mark(self, run: Run) -> None:
        self._bring_in(run)
        mark = Mark(run.step, self._held_out_losses())
        loss, start = (mean_loss(m, self.weights) for m in (mark, self._start_mark))
        spread = max(self._start_mark.losses) - min(self._start_mark.losses)
        # Not above, so that NaN counts as diverged; the spread keeps a trained model's tiny loss
        # from making every step look like an explosion.
        if loss <= start + 3 * max(abs(start), spread):
            run.track.append(mark)
        else:
            self._drop(run)

    def _held_out_losses(self) -> tuple[float, ...]:
        self.task.optimizer.zero_grad(set_to_none=True)
        with self.task.preserved(weights=False):
            self._seed(-1, 0)
            return tuple(
                evaluate_loss(self.task, to_device(batch, self.task.device))
                for batch in self.course.held_out
            )

    def _bring_in(self, run: Run) -> None:
        """Make a run's state the one on the device; what was there goes to the host."""
        if self._live is run:
            return
        if self._live is not None:
            self._live.snapshot = take_snapshot(self.task)
        assert run.snapshot is not None
        put_back(self.task, run.snapshot)
        run.snapshot, self._live = None, run
        self._set_rate(run.learning_rate)

    def _drop(self, run: Run) -> None:
        run.alive, run.snapshot = False, None
        if self._live is run:
            self._live = None

    def retire(self, runs: Sequence[Run]) -> None:
        """Forget the states of runs that will not be continued; their tracks stay."""
        for run in runs:
            run.snapshot = None
            if self._live is run:
                self._live = None

    def _stream(self, lap: int, step: int) -> Iterator[Any]:
        position, stream = self._streams.get(lap, (-1, iter(())))
        if position == step:
            return stream
        return islice(self.course.stream(lap), step, None)

    def _seed(self, lap: int, step: int) -> None:
        seed_everything((self.seed * 1_000_003 + lap * 10_007 + step) % 2**63)


def _next_mark(step: int) -> int:
    mark, power = _FIRST_MARK, 0
    while mark <= step:
        power += 1
        mark = math.ceil(_FIRST_MARK * 2 ** (power / 2))
    return mark


def _bytes_in(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return batch.nbytes
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return sum(_bytes_in(part) for part in batch)
    return 0
