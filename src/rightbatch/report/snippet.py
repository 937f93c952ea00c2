"""The recommendation as code to paste into a training script."""

import inspect

import torch

from rightbatch._format import format_count, format_learning_rate
from rightbatch.results import Plan, Results, Status, TaskFacts


def next_steps(results: Results) -> tuple[str, ...]:
    """Write the lines to change in a training script.

    Args:
        results: Any results.

    Returns:
        Lines of Python and comments; none without a recommendation.
    """
    plan = results.plan
    if plan is None or plan.status is Status.NOTHING_FITS:
        return ()
    lines = (*_before(results.task), *_loader(plan), *_optimizer(results.task, plan), *_loop(plan))
    return tuple(lines)


def _before(task: TaskFacts) -> tuple[str, ...]:
    was = []
    if task.batch_size is not None:
        was.append(f"batch size {format_count(task.batch_size)}")
    if task.learning_rate is not None:
        was.append(f"learning rate {format_learning_rate(task.learning_rate)}")
    return (f"# was {', '.join(was)}",) if was else ()


def _loader(plan: Plan) -> tuple[str, ...]:
    batch = f"batch_size={plan.micro_batch_size}"
    if plan.devices == 1:
        return (f"loader = DataLoader(dataset, {batch}, shuffle=True)",)
    return (
        f"# on each of {plan.devices} devices:",
        f"loader = DataLoader(dataset, {batch}, sampler=DistributedSampler(dataset))",
    )


def _optimizer(task: TaskFacts, plan: Plan) -> tuple[str, ...]:
    """The constructor's call with what differs from its defaults or from today."""
    if plan.learning_rate is None:
        return ()
    settings = {**plan.hyperparameters, "lr": plan.learning_rate}
    known = _defaults(task.optimizer)
    arguments = [f"lr={format_learning_rate(plan.learning_rate)}"]
    first, second = settings.get("beta1"), settings.get("beta2")
    if first is not None and second is not None and (first, second) != known.get("betas"):
        arguments.append(f"betas=({first:.6g}, {second:.6g})")
    for name, value in settings.items():
        usual = known.get(name) if known else task.hyperparameters.get(name)
        if name not in ("lr", "beta1", "beta2") and value != usual and (name in known or not known):
            arguments.append(f"{name}={value:.6g}")
    return (f"optimizer = {task.optimizer}(model.parameters(), {', '.join(arguments)})",)


def _defaults(optimizer: str) -> dict[str, object]:
    """What torch's optimizer of that name is given when the user says nothing."""
    kind = getattr(torch.optim, optimizer, None)
    if not inspect.isclass(kind):
        return {}
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _loop(plan: Plan) -> tuple[str, ...]:
    steps = plan.accumulation_steps
    if steps == 1:
        return ()
    return (f"# (loss / {steps}).backward() on {steps} batches in turn, then one optimizer.step()",)
