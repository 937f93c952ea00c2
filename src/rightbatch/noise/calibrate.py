r"""Run the whole noise engine where the answer is known, in the set-up that you train in.

A linear model with a squared error has gradients that can be written down: example ``i`` has
``r_i (x_i, 1)`` with the residual ``r_i``. So ``G`` and ``Sigma`` of a small data set are known,
and whatever lies between a loss and a printed noise scale (device, precision, loss scaling,
accumulation, ranks, hooks) can be tried against them. The rule is fixed before any run: a row
passes where truth and estimate differ by less than chance would allow once in 100,000 rows.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

from rightbatch._comm import Alone, Comm, default_comm
from rightbatch._time import Deadline, Progress, no_progress
from rightbatch.noise.estimators import NoiseEstimate
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.noise.probe import run_probe
from rightbatch.task import Task

Precision = Literal["float64", "float32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_EXAMPLES, _FEATURES = 512, 24
_STEPS = 160  # of a monitor
_MICRO_BATCHES = (5, 16, 11)
_CHANCE = 1e-5  # of a false alarm, for each of the two parts of a row
# What rounding alone may do to a sum of squares, relative to it.
_ROUNDING = {"float64": 1e-9, "float32": 1e-4, "bf16": 0.03, "fp16": 0.01}
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRow:
    """One way to the noise scale, tried where the answer is known."""

    name: str
    precision: str
    truth: float  # examples
    estimate: float | None
    low: float  # 95 %, for people; the verdict is by the row's own, wider rule
    high: float | None
    passed: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What `calibrate` found."""

    device: str
    ranks: int
    rows: tuple[CalibrationRow, ...]

    @property
    def passed(self) -> bool:
        """Whether every row did."""
        return all(row.passed for row in self.rows)


def calibrate(
    precisions: tuple[Precision, ...] = ("float32", "bf16", "fp16"),
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Calibration:
    """Try the probe and the monitor on a linear model whose noise scale is known.

    Under ``torchrun`` every rank must call it, with the process group initialised; gradients
    are then averaged by ``DistributedDataParallel``, with uneven shards.

    Args:
        precisions: "float64" and "float32" are types of the weights; "bf16" is autocast;
            "fp16" is autocast with a ``GradScaler``, where the device has them.
        device: Where to run; the accelerator by default, if there is one.
        seed: Of data and draws.
        progress: Called with (fraction done, what is being done).

    Returns:
        One row for each way and precision, the same on every rank.

    Raises:
        ValueError: If a precision is unknown.

    Example:
        >>> found = calibrate(("float64",), device="cpu")
        >>> found.passed, [row.name for row in found.rows][0]
        (True, 'probe, whole data set')
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ValueError(
                f"`precisions` must be among {', '.join(PRECISIONS)}, got {precision!r}. "
                "Name the one that you train with."
            )
    place = torch.device(device) if device is not None else _default_device()
    comm = default_comm(place)
    rows = []
    for index, precision in enumerate(precisions):
        progress(index / len(precisions), f"calibrating {precision}")
        rows += _rows(_Known(precision, place, seed, comm))
    progress(1.0, "calibrating")
    return Calibration(device=str(place), ranks=comm.world_size, rows=tuple(rows))


def _default_device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


@final
class _Known:
    """The linear model, its data, and what is true of them."""

    def __init__(self, precision: Precision, device: torch.device, seed: int, comm: Comm) -> None:
        self.precision, self.device, self.seed, self.comm = precision, device, seed, comm
        generator = torch.Generator().manual_seed(seed)
        spread = torch.linspace(0.3, 2.0, _FEATURES, dtype=torch.float64, device="cpu")
        draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        inputs = torch.randn(_EXAMPLES, _FEATURES, **draw) * spread
        slopes = torch.randn(_FEATURES, **draw) / math.sqrt(_FEATURES)
        targets = inputs @ slopes + 0.5 + torch.randn(_EXAMPLES, **draw)
        residuals = -targets  # at zero weights
        gradients = residuals[:, None] * torch.cat([inputs, inputs.new_ones(_EXAMPLES, 1)], dim=1)
        self.grad_sq = gradients.mean(0).square().sum().item()
        self.trace_cov = gradients.var(0, unbiased=False).sum().item()
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.inputs = inputs.to(device, self.dtype)
        self.targets = targets.to(device, self.dtype)

    def model(self) -> nn.Linear:
        """Build the model, at zero weights: what is known holds there."""
        model = nn.Linear(_FEATURES, 1, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return model

    def autocast(self) -> AbstractContextManager[Any]:
        """Enter the precision of the forward pass."""
        dtype = _AUTOCAST.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Half the mean squared error."""
        inputs, targets = batch
        with self.autocast():
            outputs = model(inputs)
        return 0.5 * (outputs[:, 0].to(self.dtype) - targets).square().mean()

    def scaler(self) -> "torch.amp.GradScaler | None":
        """Return what fp16 is trained with."""
        if self.precision != "fp16":
            return None
        return torch.amp.GradScaler(self.device.type, init_scale=2.0**12, growth_interval=50)


def _rows(known: _Known) -> list[CalibrationRow]:
    ways: list[tuple[str, Callable[[_Known], NoiseEstimate]]] = [
        ("probe, whole data set", lambda k: _probe(k, None)),
        ("probe, a part of it", lambda k: _probe(k, _EXAMPLES // 2)),
        ("monitor, unequal micro-batches", lambda k: _monitor(k, _MICRO_BATCHES, Alone())),
        ("monitor, single examples", lambda k: _monitor(k, (32,), Alone())),
    ]
    if known.comm.world_size > 1:
        ways.append(("monitor, uneven ranks", lambda k: _monitor(k, (9, 4), k.comm)))
    found = []
    for name, way in ways:
        estimate = way(known)
        low, high = estimate.interval()
        found.append(
            CalibrationRow(
                name=name,
                precision=known.precision,
                truth=known.trace_cov / known.grad_sq,
                estimate=estimate.ratio,
                low=low,
                high=high,
                passed=_everywhere(known, _agrees(known, estimate, whole=name.endswith("set"))),
            )
        )
    return found


def _agrees(known: _Known, estimate: NoiseEstimate, *, whole: bool) -> bool:
    """Compare both parts with the truth, within chance and rounding."""
    # The whole data set leaves no doubt in |G|^2, and N - 1 in the place of N for the other part.
    trace_cov = known.trace_cov * (_EXAMPLES / (_EXAMPLES - 1) if whole else 1.0)
    degrees = estimate.degrees or estimate.micro_batches / 2
    far = float(stdtrit(degrees, 1 - _CHANCE / 2))
    rounding = _ROUNDING[known.precision]
    for truth, found, variance in (
        (known.grad_sq, estimate.grad_sq, estimate.var_grad_sq),
        (trace_cov, estimate.trace_cov, estimate.var_trace_cov),
    ):
        allowed = rounding * max(known.grad_sq, truth)
        if not whole:
            allowed += far * math.sqrt(variance)
        if not abs(found - truth) <= allowed:
            return False
    # An estimate that scatters wildly would agree with anything.
    return whole or far * math.sqrt(estimate.var_trace_cov) <= trace_cov


def _everywhere(known: _Known, agrees: bool) -> bool:
    """Tell whether every rank agrees."""
    return known.comm.sum(torch.tensor([float(agrees)])).item() == known.comm.world_size


def _probe(known: _Known, examples: int | None) -> NoiseEstimate:
    model = known.model()
    data = list(zip(known.inputs, known.targets, strict=True))
    task = Task(model, torch.optim.SGD(model.parameters(), lr=0.1), data, known.loss)
    probed = run_probe(
        task,
        precision=None,
        max_examples=examples or _EXAMPLES,
        micro_batch_size=4 if examples else 1,  # of single examples both parts are exact
        deadline=Deadline(math.inf),
        seed=known.seed,
    )
    return probed.euclidean


def _monitor(known: _Known, sizes: tuple[int, ...], comm: Comm) -> NoiseEstimate:
    """Watch a loop whose rate is zero; ranks draw other examples, and shards of other sizes."""
    inner = known.model()
    model: nn.Module = inner
    if comm.world_size > 1:
        model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.0)
    scaler = known.scaler()
    generator = torch.Generator().manual_seed(known.seed + 1000 * (comm.rank + 1))
    sizes = tuple(size + 3 * comm.rank for size in sizes)
    total = float(comm.sum(torch.tensor([float(sum(sizes))])).item())
    with NoiseMonitor(
        model,
        optimizer,
        every=1,
        examples=8,
        half_life_examples=math.inf,
        scaler=scaler,
        comm=comm,
    ) as monitor:
        for _ in range(_STEPS + 1):
            optimizer.zero_grad()
            for size in sizes:
                rows = torch.randint(_EXAMPLES, (size,), generator=generator, device="cpu")
                there = rows.to(known.device)
                factor = size / total * comm.world_size
                loss = known.loss(model, (known.inputs[there], known.targets[there])) * factor
                (loss if scaler is None else scaler.scale(loss)).backward()
                monitor.observe(size, factor=factor)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
    return monitor.averages.estimates()["euclidean"]
