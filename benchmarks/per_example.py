"""What do the squared gradient norms of every example cost? Against three other libraries.

Added time is that of a step (forward, loss, backward) with the norms, less that of the plain step,
over the plain step. All ways run in turn, round after round, and the median of the rounds
counts, so that a slow moment of the machine hits all of them alike. The others are:

    opacus      ghost norms: GradSampleModuleFastGradientClipping
    backpack    extension BatchL2Grad
    torch.func  vmap(grad), as a pass of its own beside the step

vmap(grad) can also take the step's place, if nobody minds gradients that differ in their last bits,
a copy of all parameters for every example, and a loop without hooks, AMP or ranks. That way
builds the weights' gradients once and not twice, and is told apart: "in place of the step".
"""

import copy
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from rightbatch._environment import describe_environment
from rightbatch.noise.per_example import example_squares

RESULTS = Path(__file__).parent / "results"
ROUNDS, WARM_UP = 9, 1
WAYS = ("ours", "opacus", "backpack", "torch.func")

Step = Callable[[], Tensor | None]


class Residual(nn.Module):
    """Two 3x3 convolutions beside a short cut, with GroupNorm."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.GroupNorm(32, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.GroupNorm(32, after),
        )
        same = before == after and stride == 1
        short = [nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(32, after)]
        self.short = nn.Sequential(*([] if same else short))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return F.relu(self.body(x) + self.short(x))


def cnn() -> nn.Module:
    """The MNIST task's network."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


def resnet18() -> nn.Module:
    """The version for small images: a 3x3 stem without pooling."""
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [
        Residual(before, after, 1 if before == after else 2) for before, after in pairwise(widths)
    ]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.GroupNorm(32, 64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*stem, *blocks, *head)


class Block(nn.Module):
    """Attention and a wide layer, both after a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        parts = self.mix(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Four blocks of width 128 over 65 characters."""

    def __init__(self, width: int = 128, depth: int = 4, characters: int = 65) -> None:
        super().__init__()
        self.places_for_each = False  # opacus wants an input for each example in every layer
        self.embed, self.places = nn.Embedding(characters, width), nn.Embedding(128, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        if self.places_for_each:
            places = places.repeat(len(tokens), 1)
        return self.head(self.norm(self.blocks(self.embed(tokens) + self.places(places))))


def nets() -> dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor]]:
    """Networks with a batch of inputs and targets."""
    return {
        "CNN, batch 256": (cnn, torch.randn(256, 1, 28, 28), torch.randint(10, (256,))),
        "ResNet-18, batch 32": (resnet18, torch.randn(32, 3, 32, 32), torch.randint(10, (32,))),
        "transformer 4x128, batch 32": (
            Transformer,
            torch.randint(65, (32, 128)),
            torch.randint(65, (32, 128)),
        ),
    }


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def plain(model: nn.Module, inputs: Tensor, targets: Tensor) -> Step:
    def step() -> None:
        model.zero_grad()
        loss_of(model(inputs), targets).backward()

    return step


def ours(model: nn.Module, inputs: Tensor, targets: Tensor) -> Step:
    size, parameters = len(inputs), list(model.parameters())

    def step() -> Tensor:
        model.zero_grad()
        with example_squares(model, parameters, examples=size, batch_size=size) as watched:
            loss_of(model(inputs), targets).backward()
        return watched.squares()[0].sum(1) * size**2

    return step


def opacus(model: nn.Module, inputs: Tensor, targets: Tensor) -> Step:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    if isinstance(model, Transformer):
        model.places_for_each = True
    wrapped = GradSampleModuleFastGradientClipping(
        model, batch_first=True, loss_reduction="mean", max_grad_norm=1.0, use_ghost_clipping=True
    )

    def step() -> Tensor:
        wrapped.zero_grad()
        loss_of(wrapped(inputs), targets).backward()
        return torch.stack([p._norm_sample.square() for p in model.parameters()]).sum(0)

    return step


def backpack(model: nn.Module, inputs: Tensor, targets: Tensor) -> Step:
    import backpack as library
    from backpack.extensions import BatchL2Grad

    extended, criterion = library.extend(model), library.extend(nn.CrossEntropyLoss())

    def step() -> Tensor:
        model.zero_grad()
        with library.backpack(BatchL2Grad()):
            criterion(extended(inputs), targets).backward()
        squares = [p.batch_l2 for p in model.parameters()]
        return torch.stack(squares).sum(0) * len(inputs) ** 2

    return step


def torch_func(model: nn.Module, inputs: Tensor, targets: Tensor) -> Step:
    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_of(functional_call(model, weights, (x[None],)), y[None])

    per_example = vmap(grad(loss), in_dims=(None, 0, 0))

    def step() -> Tensor:
        weights = {name: p.detach() for name, p in model.named_parameters()}
        found = per_example(weights, inputs, targets)
        squares = []
        for name, gradients in found.items():
            dict(model.named_parameters())[name].grad = gradients.mean(0)
            squares.append(torch.linalg.vector_norm(gradients.flatten(1), dim=1).square())
        return torch.stack(squares).sum(0)

    return step


MAKERS = {"ours": ours, "opacus": opacus, "backpack": backpack, "torch.func": torch_func}


def compare(name: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Time all ways on one network, interleaved."""
    make, inputs, targets = nets()[name]
    torch.manual_seed(0)
    model = make()
    steps: dict[str, Step] = {"plain": plain(copy.deepcopy(model), inputs, targets)}
    truth = torch_func(copy.deepcopy(model), inputs, targets)()
    reasons: dict[str, str] = {}
    for way in WAYS:
        try:
            step = MAKERS[way](copy.deepcopy(model), inputs, targets)
            found = step()
        except Exception as error:  # another library's refusal is a result
            reasons[way] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            continue
        off = ((found - truth).abs() / truth).max().item()
        if not off < 1e-3:  # NaN too
            reasons[way] = f"wrong by up to {off:.0%}"
            continue
        steps[way] = step
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for round_ in range(WARM_UP + rounds):
        for way, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= WARM_UP:
                seconds[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    added = {w: m / medians["plain"] - 1 for w, m in medians.items() if w != "plain"}
    instead = added.get("torch.func")
    if instead is not None:
        added["torch.func"] = instead + 1  # beside the step
    rivals = [a for way, a in added.items() if way != "ours"]
    return {
        "net": name,
        "plain_seconds": medians["plain"],
        "added": added,
        "reasons": reasons,
        "torch_func_instead": instead,
        "ours_over_fastest": added["ours"] / min(rivals) if rivals else None,
    }


def per_example(
    say: Callable[[str], None] = lambda _: None, *, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Compare on every network, on one thread: contention of threads is not what we measure."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the other libraries' own
            rows = [compare(name, rounds) for name in nets()]
    finally:
        torch.set_num_threads(threads)
    installed = {w: importlib.util.find_spec(w) is not None for w in ("opacus", "backpack")}
    return {"environment": describe_environment(), "installed": installed, "rows": rows}


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as a table."""
    lines = [
        "# Squared gradient norms of every example: added time over a plain step",
        "",
        "| net | plain step | "
        + " | ".join(WAYS)
        + " | ours over the fastest other | torch.func in place of the step |",
        "|---|---|" + "---|" * (len(WAYS) + 2),
    ]
    notes = []
    for row in result["rows"]:
        cells = []
        for way in WAYS:
            number = row["added"].get(way)
            mark = "*" if way in row["reasons"] else ""
            cells.append(("cannot" if number is None else f"+{100 * number:.0f} %") + mark)
        ratio = row["ours_over_fastest"]
        last = "" if ratio is None else f"{ratio:.2f}"
        instead = row["torch_func_instead"]
        last += " | " + ("cannot" if instead is None else f"+{100 * instead:.0f} %")
        lines.append(
            f"| {row['net']} | {1e3 * row['plain_seconds']:.0f} ms | {' | '.join(cells)} | {last} |"
        )
        notes += [f"\\* {row['net']}, {way}: {why}" for way, why in row["reasons"].items()]
    machine = ", ".join(f"{k} {v}" for k, v in result["environment"].items())
    return "\n".join([*lines, "", *notes, "", f"One thread. Machine: {machine}.", ""])


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "per_example.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "per_example.md").write_text(as_markdown(result))
