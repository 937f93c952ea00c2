"""What ghost batch normalisation costs: forward and backward, over ordinary BatchNorm's.

Rounds are interleaved: in each, every way takes the same batch once, in an order that rotates. What
else the machine does only ever adds time, so that times are compared by their lowest tenth. A
loop over consecutive ghosts, as other libraries have it, is there to compare with.

Freed memory is kept: else the C library hands large tensors back and asks for them anew, after a
pattern that is each way's own, and on some machines that takes longer than the normalisation.
"""

import ctypes
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb
from rightbatch._environment import describe_environment
from rightbatch._time import wall_clock

RESULTS = Path(__file__).parent / "results"
LIMIT = 1.15  # at divisible sizes, channels outermost
WARM_UP, ROUNDS = 5, 60
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True)
class Case:
    """A batch to normalise."""

    shape: tuple[int, ...]
    ghost_size: int
    channels_last: bool = False

    @property
    def name(self) -> str:
        """Shape and layout."""
        layout = ", channels last" if self.channels_last else ""
        return f"{' x '.join(map(str, self.shape))}{layout}"

    @property
    def is_limited(self) -> bool:
        """Whether the limit is promised for it."""
        return self.shape[0] % self.ghost_size == 0 and not self.channels_last


CASES = [
    Case((256, 64, 16, 16), 64),
    Case((512, 32, 16, 16), 64),
    Case((128, 128, 8, 8), 32),
    Case((256, 16, 32, 32), 32),
    Case((1024, 64, 4, 4), 64),
    Case((64, 256, 7, 7), 16),
    Case((4096, 256), 64),
    Case((4096, 256), 1024),  # few ghosts: 1024 statistics, not 16384
    Case((250, 64, 16, 16), 64),
    Case((257, 64, 16, 16), 64),
    Case((256, 64, 16, 16), 64, channels_last=True),
]


class Looped(nn.Module):
    """Consecutive ghosts, one after the other, with one update of the averages for each."""

    def __init__(self, norm: nn.Module, ghost_size: int) -> None:
        super().__init__()
        self.norm, self.ghost_size = norm, ghost_size

    def forward(self, batch: Tensor) -> Tensor:
        """Normalise each ghost by itself."""
        return torch.cat([self.norm(ghost) for ghost in batch.split(self.ghost_size)])


def _ways(case: Case) -> dict[str, nn.Module]:
    channels = case.shape[1]
    plain, ghost = (
        (nn.BatchNorm2d, rb.GhostBatchNorm2d)
        if len(case.shape) == 4
        else (nn.BatchNorm1d, rb.GhostBatchNorm1d)
    )
    return {
        "ordinary": plain(channels),
        "ghost": ghost(channels, case.ghost_size),
        "subsampled": ghost(channels, case.ghost_size, subsample=True),
        "looped": Looped(plain(channels), case.ghost_size),
    }


def _pass(module: nn.Module, batch: Tensor, upstream: Tensor) -> Callable[[], float]:
    def timed() -> float:
        batch.grad = None
        module.zero_grad()
        _synchronise(batch)
        begun = wall_clock()
        module(batch).backward(upstream)
        _synchronise(batch)
        return wall_clock() - begun

    return timed


def _synchronise(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def compare(case: Case, device: str) -> dict[str, Any]:
    """Time all ways of one case, in rounds."""
    torch.manual_seed(0)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    batch = torch.randn(case.shape, device=device).contiguous(memory_format=layout)
    upstream = torch.randn(case.shape, device=device).contiguous(memory_format=layout)
    batch.requires_grad_()
    passes = {
        name: _pass(module.to(device), batch, upstream) for name, module in _ways(case).items()
    }
    names = list(passes)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(WARM_UP + ROUNDS):
        for offset in range(len(names)):
            name = names[(index + offset) % len(names)]
            taken = passes[name]()
            if index >= WARM_UP:
                seconds[name].append(taken)
    row: dict[str, Any] = {
        "case": asdict(case),
        "name": case.name,
        "limited": case.is_limited,
        "ordinary_seconds": _lowest_tenth(seconds["ordinary"]),
    }
    for name in names[1:]:
        ratios = [a / b for a, b in zip(seconds[name], seconds["ordinary"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        ratio = _lowest_tenth(seconds[name]) / row["ordinary_seconds"]
        row[name] = {"ratio": ratio, "quartiles_of_rounds": [low, high]}
    return row


def _lowest_tenth(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=10)[0]


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, from now on; whether it can."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    kept = [
        library.mallopt(_M_MMAP_THRESHOLD, 2**30),
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1),
    ]
    return all(kept)


def ghost_norm(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Compare on every case, on the accelerator if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    is_memory_kept = keep_freed_memory()
    rows = []
    for case in CASES:
        say(f"{case.name}, ghosts of {case.ghost_size}")
        rows.append(compare(case, device))
    return {
        "environment": describe_environment(),
        "limit": LIMIT,
        "rounds": ROUNDS,
        "freed_memory_kept": is_memory_kept,
        "rows": rows,
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out as a table."""
    lines = [
        "# Ghost batch normalisation: forward and backward, over ordinary BatchNorm's",
        "",
        "| batch | ghosts of | BatchNorm | ghost (quartiles of rounds) | within the limit "
        "| subsampled | loop |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ghost = row["ghost"]
        low, high = ghost["quartiles_of_rounds"]
        verdict = "not limited"
        if row["limited"]:
            verdict = "yes" if ghost["ratio"] <= result["limit"] else "**no**"
        lines.append(
            f"| {row['name']} | {row['case']['ghost_size']} | "
            f"{1e3 * row['ordinary_seconds']:.2f} ms | "
            f"{ghost['ratio']:.2f} ({low:.2f} to {high:.2f}) | {verdict} | "
            f"{row['subsampled']['ratio']:.2f} | {row['looped']['ratio']:.2f} |"
        )
    lines += [
        "",
        f"Limit {result['limit']}, at divisible sizes with channels outermost. Ratios of the "
        f"lowest tenths of {result['rounds']} interleaved rounds; quartiles are of the ratios in "
        "single rounds. Loop: consecutive ghosts one after the other, as other libraries have it. "
        f"Freed memory is {'kept' if result['freed_memory_kept'] else 'handed back'}.",
        "",
        "Machine: " + ", ".join(f"{k} {v}" for k, v in result["environment"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ghost_norm.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "ghost_norm.md").write_text(as_markdown(result))
