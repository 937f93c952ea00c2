"""Is the noise probe right, and what does it cost? Against all per-example gradients of MNIST.

The network is frozen at the start, after 200 and after 3,000 steps of its own training. At each,
the exact noise scale comes from the gradients of all 60,000 examples one by one (torch.func), and
the probe draws 8,192 of them. Memory is the peak of the process above that of plain training
(forward and backward of the same micro-batch, gradients accumulated), on a large perceptron.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import rightbatch as rb
from rightbatch._environment import describe_environment
from rightbatch.hardware.meters import meter_for
from rightbatch.tasks import BUILT_IN

RESULTS = Path(__file__).parent / "results"
STEPS = (0, 200, 3000)
EXAMPLES = 8192


def exact_noise(task: rb.Task, chunk: int = 500) -> tuple[float, float]:
    """Return |G|^2 and tr(Sigma) (1/(N-1) form) over every example of the data set."""
    parameters = {name: p.detach() for name, p in task.model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(task.model, weights, (x[None],)), y[None])

    per_example = vmap(grad(loss), in_dims=(None, 0, 0))
    squares, total, count = 0.0, None, 0
    for x, y in task.batches(chunk, epochs=1):
        found = per_example(parameters, x, y)
        flat = torch.cat([g.flatten(1) for g in found.values()], dim=1).double()
        squares += flat.square().sum().item()
        total = flat.sum(0) if total is None else total + flat.sum(0)
        count += len(flat)
    assert total is not None
    grad_sq = (total / count).square().sum().item()
    return grad_sq, (squares - count * grad_sq) / (count - 1)


def agreement() -> list[dict[str, Any]]:
    """Compare probe and exact value along one MNIST run."""
    task = BUILT_IN["mnist"].factory()
    assert task.batch_size is not None
    rows, step = [], 0
    batches = task.batches(task.batch_size, seed=1)
    for stop in STEPS:
        while step < stop:
            task.step(next(batches))
            step += 1
        grad_sq, trace_cov = exact_noise(task)
        noise = rb.measure_noise(task, precision=None, max_examples=EXAMPLES, seed=2)
        exact = trace_cov / grad_sq
        within = noise.low <= exact and (noise.high is None or exact <= noise.high)
        rows.append(
            {
                "steps": step,
                "loss": noise.loss,
                "exact": exact,
                "estimate": noise.noise_scale,
                "low": noise.low,
                "high": noise.high,
                "exact_grad_sq": grad_sq,
                "grad_sq": noise.grad_sq,
                "exact_trace_cov": trace_cov,
                "trace_cov": noise.trace_cov,
                "examples": noise.examples_used,
                "within": within,
            }
        )
    return rows


def memory(width: int = 2048, depth: int = 4, micro: int = 16) -> dict[str, Any]:
    """Peak memory of the probe above that of plain accumulation, in parameter-sized tensors."""
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*layers)
    data = torch.randn(16 * micro, width)
    task = rb.Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        data,
        lambda trained, batch: trained(batch).square().mean(),
    )
    task.check()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    meter = meter_for(torch.device("cpu"))

    def accumulate() -> None:
        for batch in task.batches(micro, epochs=1):
            task.loss(batch)[0].backward()
        for p in model.parameters():
            p.grad = None

    def peak(work: Any) -> int:
        meter.reset()
        work()
        return meter.peak_bytes()

    def probe() -> None:
        rb.measure_noise(task, precision=None, micro_batch_size=micro, trust_loss=True)

    def checked() -> None:
        rb.measure_noise(task, precision=None, micro_batch_size=micro)

    accumulate()
    plain, probed, with_check = peak(accumulate), peak(probe), peak(checked)
    return {
        "parameter_bytes": size,
        "plain_peak_bytes": plain,
        "probe_peak_bytes": probed,
        "extra_in_parameter_sizes": (probed - plain) / size,
        "extra_with_check": (with_check - plain) / size,
    }


def noise(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run both parts."""
    say("memory")
    extra = memory()
    say("agreement with the exact value")
    return {
        "environment": describe_environment(),
        "memory": extra,
        "agreement": agreement(),
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as tables."""
    lines = [
        f"# The noise probe on MNIST: {EXAMPLES:,} examples against all 60,000",
        "",
        "| steps | loss | exact | probe | 95 % interval | within |",
        "|---|---|---|---|---|---|",
    ]
    for r in result["agreement"]:
        high = "unbounded" if r["high"] is None else f"{r['high']:.0f}"
        estimate = "unresolved" if r["estimate"] is None else f"{r['estimate']:.0f}"
        lines.append(
            f"| {r['steps']} | {r['loss']:.3f} | {r['exact']:.0f} | {estimate} | "
            f"{r['low']:.0f} to {high} | {'yes' if r['within'] else 'no'} |"
        )
    extra = result["memory"]
    lines += [
        "",
        f"Peak memory above plain accumulation: {extra['extra_in_parameter_sizes']:.2f} "
        f"parameter-sized tensors (of {extra['parameter_bytes'] / 2**20:.0f} MiB); with the look "
        f"whether the loss couples examples before it: {extra['extra_with_check']:.2f}.",
        "",
        "Machine: " + ", ".join(f"{k} {v}" for k, v in result["environment"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "noise.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "noise.md").write_text(as_markdown(result))
