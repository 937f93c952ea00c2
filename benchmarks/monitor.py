"""What does the monitor cost? Steps with it against steps without, interleaved in one process.

Each round times a stretch of training with the monitor at its defaults and one without, in an
order that alternates; the ratio of a round is free of what the machine did in other rounds.
Peak memory is counted, not sampled: the bytes of all tensors alive, over a measured step and over
one without the monitor. The resident memory of the process is beside it; it scatters.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import rightbatch as rb
from rightbatch._environment import describe_environment
from rightbatch.hardware.live_bytes import LiveBytes
from rightbatch.hardware.meters import meter_for
from rightbatch.tasks import BUILT_IN

RESULTS = Path(__file__).parent / "results"
ROUNDS, ROW_SECONDS = (11, 101), 60.0  # as many rounds as fit
STRETCH_SECONDS, LEAST_STEPS = 3.0, 30
SETTLE = 80  # steps until the monitor has chosen how often to measure
LIMITS = {"cpu": 1.03, "cuda": 1.01}
MEMORY_LIMIT = 1.02

Step = Callable[[], None]


def training(
    task: rb.Task, size: int, accumulate: int = 1, every: int | None = None
) -> tuple[rb.NoiseMonitor, Callable[[bool], None]]:
    """Return a monitor, and a function that takes one step with or without reporting to it."""
    monitor = rb.NoiseMonitor(task.model, task.optimizer, every=every)
    batches: Iterator[Any] = task.batches(size)

    def step(reports: bool) -> None:
        task.optimizer.zero_grad()
        for _ in range(accumulate):
            batch = next(batches)
            loss, weight = task.loss(batch)
            (loss / accumulate).backward()
            if reports:
                monitor.observe(weight, factor=1 / accumulate, examples=size)
        task.optimizer.step()

    return monitor, step


def compare(name: str, task: rb.Task, size: int, accumulate: int = 1) -> dict[str, Any]:
    """Time rounds of steps with and without the monitor."""
    monitor, step = training(task, size, accumulate)
    device = next(task.model.parameters()).device
    meter = meter_for(device)

    def stretch(steps: int, *, watched: bool) -> tuple[float, int]:
        meter.reset()
        with monitor if watched else nullcontext():
            begin = time.perf_counter()
            for _ in range(steps):
                step(watched)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
        return seconds / steps, meter.peak_bytes()

    stretch(SETTLE, watched=True)
    every = monitor.state_dict()["pace"]["every"]
    # One measured step in every stretch; measured more often than the monitor chose, never less.
    seconds, _ = stretch(LEAST_STEPS, watched=False)
    steps = min(every, max(LEAST_STEPS, round(STRETCH_SECONDS / seconds)))
    monitor, step = training(task, size, accumulate, steps)
    stretch(steps, watched=True)
    stretch(steps, watched=False)
    ratios, peaks, plain_seconds = [], [], []
    rounds = min(ROUNDS[1], max(ROUNDS[0], round(ROW_SECONDS / (2 * steps * seconds))))
    for round_index in range(rounds):
        order = (True, False) if round_index % 2 else (False, True)
        found = {watched: stretch(steps, watched=watched) for watched in order}
        ratios.append(found[True][0] / found[False][0])
        peaks.append(found[True][1] / found[False][1])
        plain_seconds.append(found[False][0])
    low, median, high = statistics.quantiles(ratios, n=4)
    noise = monitor.result()
    return {
        "name": name,
        "batch_size": size * accumulate,
        "small_gradients": noise.small_gradients,
        "coverage": noise.coverage,
        "every": every,
        "steps_in_a_round": steps,
        "step_seconds": statistics.median(plain_seconds),
        "rounds": rounds,
        "ratio": median,
        "ratio_quartiles": [low, high],
        "peak_tensors_ratio": peak_tensors(task, size, accumulate, watched=True)
        / peak_tensors(task, size, accumulate, watched=False),
        "peak_resident_ratio": statistics.median(peaks),
        "noise_scale": noise.noise_scale,
    }


def peak_tensors(task: rb.Task, size: int, accumulate: int, *, watched: bool) -> int:
    """Count the most bytes of tensors alive in a step that is measured, or in a plain one."""
    monitor, step = training(task, size, accumulate, every=1)
    step(False)  # the optimizer's state is there
    task.optimizer.zero_grad()
    states = tree_leaves(task.optimizer.state_dict())
    held = [*task.model.parameters(), *task.model.buffers()]
    held += [leaf for leaf in states if isinstance(leaf, Tensor)]
    with monitor if watched else nullcontext(), LiveBytes(held) as alive:
        step(watched)
        step(watched)
    return alive.peak_bytes


class Block(nn.Module):
    """Attention and a perceptron, as in GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, length, width] to the same."""
        q, k, v = self.query_key_value(self.first(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """A decoder with a read-out layer of its own."""

    def __init__(self, layers: int, width: int, heads: int, length: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [batch, length] to logits."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.places(places)
        return self.head(self.norm(self.blocks(x)))


def language_task(
    layers: int, width: int, heads: int, length: int, vocabulary: int, *, bf16: bool = False
) -> rb.Task:
    """A transformer on random tokens, on the accelerator if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = Transformer(layers, width, heads, length, vocabulary).to(device)
    tokens = torch.randint(vocabulary, (2048, length + 1))

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    return rb.Task(model, torch.optim.AdamW(model.parameters(), lr=1e-3), tokens, loss)


def monitor(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Compare on every set-up that this machine can run."""
    rows = []
    mnist = BUILT_IN["mnist"].factory
    for name, make, size, accumulate in (
        ("MNIST CNN", mnist, 256, 1),
        ("MNIST CNN, 4 micro-batches", mnist, 64, 4),
        ("transformer 4x128, T=128", lambda: language_task(4, 128, 4, 128, 65), 32, 1),
    ):
        say(name)
        rows.append(compare(name, make(), size, accumulate))
    if torch.cuda.is_available():
        say("GPT-2 small")
        task = language_task(12, 768, 12, 1024, 50304, bf16=True)
        rows.append(compare("GPT-2 small, bf16, T=1024", task, 8, 1))
    return {"environment": describe_environment(), "limits": LIMITS, "rows": rows}


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as a table."""
    lines = [
        "# The monitor at its defaults: a step with it over a step without",
        "",
        "| set-up | small gradients | measured every | step | time (quartiles, rounds) "
        "| peak of tensors | resident |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['name']}, batch {row['batch_size']} | {row['small_gradients']} | "
            f"{row['every']} steps (timed at {row['steps_in_a_round']}) | "
            f"{1e3 * row['step_seconds']:.1f} ms | "
            f"{row['ratio']:.3f} ({low:.3f} to {high:.3f}, {row['rounds']}) | "
            f"{row['peak_tensors_ratio']:.3f} | {row['peak_resident_ratio']:.3f} |"
        )
    limits = ", ".join(f"{k} {v}" for k, v in result["limits"].items())
    lines += [
        "",
        f"Limits: time {limits}; memory {MEMORY_LIMIT}. Rounds are interleaved.",
        "",
        "Machine: " + ", ".join(f"{k} {v}" for k, v in result["environment"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "monitor.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "monitor.md").write_text(as_markdown(result))
