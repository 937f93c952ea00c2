"""Made-up looks at made-up runs: what the study's words and figures are made of."""

from rightbatch.studies.finder_ways import Parts
from rightbatch.studies.noise_run import Course, Look, Probe, corrected_name, stored_name

COURSE = Course(
    steps=(0, 10, 100, 1000),
    compare_from=10,
    runs=4,
    batch_size=64,
    group=20,
    stored=(10, 100),
    exact_examples=None,
    probe_examples=512,
    monitor_every=2,
    monitor_examples=8,
    window=6,
    window_every=2,
    window_examples=100,
)
# The exact noise scale at each step.
TRUTH = {0: 150.0, 10: 50.0, 100: 200.0, 1000: 900.0}
WAYS = (
    *("average", "average_adam", "consecutive", "consecutive_slow", "consecutive_frozen"),
    *("two_runs", "probe", "monitor"),
)


def parts(noise_scale: float, grad_sq: float = 0.5) -> Parts:
    return Parts(grad_sq=grad_sq, trace_cov=noise_scale * grad_sq)


def look(run: int, step: int) -> Look:
    truth = TRUTH[step] * (1 + 0.01 * run)
    # Each way off by a factor of its own; the second run of way (c) has no answer.
    factors = {name: 1.0 + 0.2 * index for index, name in enumerate(WAYS)}
    factors |= {stored_name(n): 0.3 + 0.005 * n for n in COURSE.stored}
    factors |= {corrected_name(n): 1.1 for n in COURSE.stored}
    estimates: dict[str, Parts | None] = {
        name: parts(truth * factor) for name, factor in factors.items()
    }
    if run == 1:
        estimates["two_runs"] = Parts(grad_sq=0.5, trace_cov=-1.0)
    if step == 0:
        estimates |= dict.fromkeys(("average", "average_adam", "consecutive", "two_runs"))
        estimates |= dict.fromkeys(("consecutive_slow", "monitor"))
    estimates["probe"] = parts(truth * 1.05)
    return Look(
        run=run,
        step=step,
        exact=parts(truth, grad_sq=10.0 / truth),
        recent=parts(truth, grad_sq=10.0 / truth),
        probe=Probe(noise_scale=truth * 1.05, low=0.9 * truth, high=None, examples=512),
        estimates=estimates,
    )


def looks() -> list[Look]:
    return [look(run, step) for run in range(COURSE.runs) for step in COURSE.steps]
