"""Follow training runs, and let every way to measure the noise scale look at the same gradients.

exact, (b), probe      exact, (b), probe         exact, (b), probe     at frozen weights
    |                      |                          |
  step 0 ---- train ---- step 100 ---- train ---- step 300 ----> ...
         (a), (d) see each gradient; (c) also sees a second run at 2B
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

import rightbatch as rb
from rightbatch._time import Progress
from rightbatch.studies.exact import exact_noise
from rightbatch.studies.finder_ways import (
    ConsecutiveBatches,
    MovingAverages,
    MovingSquare,
    Parts,
    from_two_sizes,
    group_parts,
    mean_parts,
    stored_gradients,
)

# Ways that average along training: one step's gradient is not what they measure.
AVERAGING = (
    *("average", "average_adam", "two_runs", "consecutive", "consecutive_slow"),
    "monitor",
)
DECAY, SLOW_DECAY = 0.99, 0.999
MOMENTUM_DECAY = 0.9  # of Adam's first moment


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a study runs, fixed beforehand."""

    steps: tuple[int, ...]  # of training after which to look, ascending
    compare_from: int  # the step from which the moving averages have seen enough to be compared
    runs: int  # orders of the data
    batch_size: int
    group: int  # batches per estimate of way (d)
    stored: tuple[int, ...]  # gradients kept by way (b), ascending
    exact_examples: int | None  # None: all
    probe_examples: int
    monitor_every: int  # steps; fixed, so that the study repeats: the default follows the clock
    monitor_examples: int  # of each batch that it measures
    window: int  # steps before a look over which a way that averages is judged
    window_every: int  # steps
    window_examples: int  # of the data set, at each of them

    def in_window(self, step: int) -> bool:
        """Whether a step counts for a look that is still to come."""
        ends = [end for end in self.steps if end >= self.compare_from]
        return any(
            0 < end - step < self.window and (end - step) % self.window_every == 0 for end in ends
        )


FULL = Course(
    steps=(0, 30, 100, 300, 1000, 3000),
    compare_from=100,
    runs=5,
    batch_size=64,
    group=20,
    stored=(10, 20, 50, 100, 200, 300),
    exact_examples=None,
    probe_examples=300 * 64,  # as many as way (b) at most
    monitor_every=2,
    monitor_examples=8,
    window=100,
    window_every=10,
    window_examples=2000,
)
QUICK = Course(
    steps=(0, 40, 120),
    compare_from=40,
    runs=2,
    batch_size=64,
    group=20,
    stored=(10, 20, 50),
    exact_examples=3000,
    probe_examples=50 * 64,
    monitor_every=2,
    monitor_examples=8,
    window=40,
    window_every=10,
    window_examples=500,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What `rightbatch.measure_noise` found."""

    noise_scale: float | None
    low: float
    high: float | None
    examples: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All ways beside the exact value, at one point of one run."""

    run: int
    step: int
    exact: Parts
    recent: Parts  # means over the window, mostly from a part of the data set each
    probe: Probe
    estimates: Mapping[str, Parts | None] = field(default_factory=dict[str, Parts | None])


@final
class _Followers:
    """The ways that watch a training run, by name."""

    def __init__(self, course: Course) -> None:
        size, group = course.batch_size, course.group
        self.averages = {
            "average": MovingAverages(size, mean_decay=DECAY),
            "average_adam": MovingAverages(
                size, mean_decay=MOMENTUM_DECAY, square_decay=SLOW_DECAY
            ),
        }
        self.groups = {
            "consecutive": ConsecutiveBatches(size, group=group, decay=DECAY),
            "consecutive_slow": ConsecutiveBatches(size, group=group, decay=SLOW_DECAY),
        }
        self.square = MovingSquare(DECAY)

    def see(self, gradient: Tensor) -> None:
        for follower in (*self.averages.values(), *self.groups.values(), self.square):
            follower.see(gradient)

    def parts(self) -> dict[str, Parts | None]:
        return {name: way.parts() for name, way in {**self.averages, **self.groups}.items()}


def tensors_kept(course: Course) -> dict[str, int]:
    """Count the tensors of the size of all parameters that each way holds beside training's own."""
    followers = _Followers(course)
    for _ in range(course.group):
        followers.see(torch.zeros(1))
    kept = {name: way.tensors_kept for name, way in followers.averages.items()}
    kept |= {name: way.tensors_kept for name, way in followers.groups.items()}
    kept |= {stored_name(count): count for count in course.stored}
    return kept | {"consecutive_frozen": course.group, "two_runs": 0, "probe": 0, "monitor": 0}


def stored_name(count: int) -> str:
    """Name way (b) with so many gradients."""
    return f"stored_{count}"


def corrected_name(count: int) -> str:
    """Name way (b) with so many gradients and the mean's own noise taken off."""
    return f"stored_{count}_corrected"


def follow_runs(task: rb.Task, course: Course, *, seed: int, progress: Progress) -> list[Look]:
    """Follow every run of a course; the task is left bit for bit as it was.

    Args:
        task: Its loss is a mean over examples; see `exact_noise` for what else it must be.
        course: What to run.
        seed: Of every draw. Runs start at the same weights and differ in the order of the data.
        progress: Called with (fraction done, what is being done).
    """
    found: list[Look] = []
    # The steps of a run, and of its twin at the double batch size that takes about as long.
    length = 2 * course.steps[-1]
    for run in range(course.runs):
        own = 1000 * seed + 10 * run
        done = run / course.runs

        def tick(steps: int, note: str, done: float = done) -> None:
            progress(done + min(1.0, steps / length) / course.runs, note)

        with task.preserved():
            squares = _double_run(task, course, own + 1, tick)
        with task.preserved():
            found += _follow(task, course, run, own + 2, squares, tick)
    return found


Tick = Callable[[int, str], None]


def _double_run(task: rb.Task, course: Course, seed: int, tick: Tick) -> dict[int, float | None]:
    """Train at twice the batch size; the averaged ``|g|^2`` when as many examples were seen."""
    average = MovingSquare(DECAY**2)  # half the steps: the same window in examples
    found: dict[int, float | None] = {}
    batches = task.batches(2 * course.batch_size, seed=seed)
    for step in range(course.steps[-1] // 2 + 1):
        if 2 * step in course.steps:
            found[2 * step] = average.value
        if step % 50 == 0:
            tick(2 * step, "training at twice the batch size")
        average.see(_gradient(task, next(batches)))
        task.optimizer.step()
    return found


def _follow(
    task: rb.Task,
    course: Course,
    run: int,
    seed: int,
    double_squares: Mapping[int, float | None],
    tick: Tick,
) -> Iterator[Look]:
    followers = _Followers(course)
    batches = task.batches(course.batch_size, seed=seed)
    state: dict[str, Any] | None = None
    stops = [k for k in range(course.steps[-1] + 1) if k in course.steps or course.in_window(k)]
    recent: list[Parts] = []
    for step, until in zip((0, *stops), stops, strict=False):
        monitor = _monitor(task, course, state)
        with monitor:  # only around training: what is measured in between is not of the run
            for _ in range(step, until):
                batch = next(batches)
                followers.see(_gradient(task, batch))
                monitor.observe(course.batch_size)
                task.optimizer.step()
        state = monitor.state_dict()
        tick(course.steps[-1] + until, "training, watching, measuring")
        if course.in_window(until):
            recent.append(exact_noise(task, examples=course.window_examples, seed=seed + until))
        if until in course.steps:
            look = _look(task, course, run, until, seed + 3, followers, double_squares[until])
            live = {"monitor": _parts(monitor.result())}
            mean = mean_parts([*recent, look.exact])
            yield replace(look, recent=mean, estimates={**look.estimates, **live})
            recent = []


def _parts(found: rb.NoiseScale) -> Parts | None:
    if not found.steps_measured:
        return None
    return Parts(grad_sq=found.grad_sq, trace_cov=found.trace_cov)


def _monitor(task: rb.Task, course: Course, state: dict[str, Any] | None) -> rb.NoiseMonitor:
    """Go on where the monitor of the last stretch stood."""
    monitor = rb.NoiseMonitor(
        task.model,
        task.optimizer,
        every=course.monitor_every,
        examples=course.monitor_examples,
    )
    if state is not None:
        monitor.load_state_dict(state)
    return monitor


def _gradient(task: rb.Task, batch: object) -> Tensor:
    """Return the gradient of one batch, flat; it also lies in ``.grad``."""
    task.optimizer.zero_grad(set_to_none=True)
    loss, _ = task.loss(batch)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in task.parameters if p.grad is not None])


def _look(
    task: rb.Task,
    course: Course,
    run: int,
    step: int,
    seed: int,
    followers: _Followers,
    double_square: float | None,
) -> Look:
    exact = exact_noise(task, examples=course.exact_examples, seed=seed)
    noise = rb.measure_noise(
        task, precision=None, max_examples=course.probe_examples, seed=seed + 1
    )
    two_runs = None
    if double_square is not None and followers.square.value is not None:
        two_runs = from_two_sizes(
            small_sq=followers.square.value,
            big_sq=double_square,
            small=course.batch_size,
            big=2 * course.batch_size,
        )
    return Look(
        run=run,
        step=step,
        exact=exact,
        recent=exact,
        probe=Probe(
            noise_scale=noise.noise_scale,
            low=noise.low,
            high=noise.high,
            examples=noise.examples_used,
        ),
        estimates={
            **followers.parts(),
            **_stored(task, course, seed + 2),
            "two_runs": two_runs,
            "probe": Parts(grad_sq=noise.grad_sq, trace_cov=noise.trace_cov),
        },
    )


def _stored(task: rb.Task, course: Course, seed: int) -> dict[str, Parts | None]:
    """Way (b) at the present weights, with every number of gradients."""
    batches = task.batches(course.batch_size, seed=seed)
    kept = torch.stack([_gradient(task, next(batches)) for _ in range(course.stored[-1])])
    size = course.batch_size
    found: dict[str, Parts | None] = {"consecutive_frozen": _in_groups(kept, course)}
    for count in course.stored:
        first = kept[:count]
        found[stored_name(count)] = stored_gradients(first, batch_size=size)
        found[corrected_name(count)] = stored_gradients(first, batch_size=size, corrected=True)
    return found


def _in_groups(gradients: Tensor, course: Course) -> Parts:
    """Way (d) were the weights to stand still: each part averaged over all whole groups."""
    whole = len(gradients) // course.group * course.group
    groups = [
        group_parts(g, batch_size=course.batch_size) for g in gradients[:whole].split(course.group)
    ]
    return mean_parts(groups)
