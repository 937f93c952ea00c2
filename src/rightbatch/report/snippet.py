"""The recommendation as code to paste into a training script."""

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
    """Change settings in place, so that every other one and the groups' ratios stay."""
    if plan.learning_rate is None:
        return ()
    rate = format_learning_rate(plan.learning_rate)
    if task.learning_rate is None:
        return (f"optimizer = {task.optimizer}(model.parameters(), lr={rate})",)
    changed = {c.parameter: c for c in plan.changes if c.before != c.after}
    lines: list[str] = []
    factor = plan.learning_rate / task.learning_rate
    if f"{factor:.3g}" != "1":
        today = format_learning_rate(task.learning_rate)
        lines.append(f'group["lr"] *= {factor:.4g}  # {today} -> {rate}')
    if "beta1" in changed or "beta2" in changed:
        betas = (plan.hyperparameters[name] for name in ("beta1", "beta2"))
        lines.append(f'group["betas"] = ({", ".join(f"{beta:.6g}" for beta in betas)})')
    for name, change in changed.items():
        if name not in ("lr", "beta1", "beta2"):
            lines.append(f'group["{name}"] *= {change.after / change.before:.4g}')
    if not lines:
        return ()
    if len(lines) == 1:
        return (f"for group in optimizer.param_groups: {lines[0]}",)
    head = "for group in optimizer.param_groups:  # or: findings.apply(optimizer)"
    return (head, *(f"    {line}" for line in lines))


def _loop(plan: Plan) -> tuple[str, ...]:
    steps = plan.accumulation_steps
    if steps == 1:
        return ()
    if plan.devices > 1:
        return _synchronised_once(steps)
    return (f"# (loss / {steps}).backward() on {steps} batches in turn, then one optimizer.step()",)


def _synchronised_once(steps: int) -> tuple[str, ...]:
    """Accumulate as the plan counts: gradients are averaged over the devices once a step.

    The forward pass is in the context too: it is there that the wrapper decides to average or not.
    Batches that are left over at the end of an epoch make no step.
    """
    last = steps - 1
    return (
        f"for i, batch in zip(range(len(loader) // {steps} * {steps}), loader):"
        "  # loss_of: your forward pass",
        f"    with model.no_sync() if i % {steps} < {last} else nullcontext(): "
        f"(loss_of(batch) / {steps}).backward()",
        f"    if i % {steps} == {last}: optimizer.step(), optimizer.zero_grad()"
        "  # averaged once, in DDP",
    )
