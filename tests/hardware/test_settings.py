"""What another process is told of torch's settings. Oracle: the settings here, and what they do."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rightbatch.hardware.cache import fingerprint
from rightbatch.hardware.child import _wake_up
from rightbatch.hardware.isolation import Isolated
from rightbatch.hardware.settings import adopt, precisions_here, settings_here
from rightbatch.task import Task
from rightbatch.testing import QuadraticTask

MIB = 2**20


@pytest.fixture
def put_back() -> Iterator[None]:
    before = settings_here()
    yield
    adopt(before)


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize(
    ("change", "read"),
    [
        (lambda: torch.set_default_dtype(torch.bfloat16), torch.get_default_dtype),
        (lambda: torch.set_default_device("meta"), torch.get_default_device),
        (
            lambda: torch.use_deterministic_algorithms(True, warn_only=True),
            torch.is_deterministic_algorithms_warn_only_enabled,
        ),
        (
            lambda: setattr(torch.backends.cudnn, "benchmark", True),
            lambda: torch.backends.cudnn.benchmark,
        ),
        (
            lambda: torch.backends.cuda.enable_flash_sdp(False),
            torch.backends.cuda.flash_sdp_enabled,
        ),
    ],
    ids=["dtype", "device", "deterministic", "benchmark", "flash"],
)
def test_what_is_set_here_is_set_there(
    change: Callable[[], Any], read: Callable[[], object]
) -> None:
    plain, before = settings_here(), read()
    change()
    changed, after = json.loads(json.dumps(settings_here())), read()
    assert before != after
    adopt(plain)
    assert read() == before
    adopt(changed)
    assert read() == after


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9"
)
@pytest.mark.parametrize(
    "place", [lambda: torch.backends.cuda.matmul, lambda: torch.backends.cudnn.conv]
)
def test_a_precision_that_was_set_by_its_new_name_is_told(place: Callable[[], Any]) -> None:
    task = QuadraticTask().task
    before, plain, known = place().fp32_precision, fingerprint(task), precisions_here()
    place().fp32_precision = "ieee" if before == "tf32" else "tf32"
    try:
        assert precisions_here() != known
        assert fingerprint(task) != plain  # what was measured with the other one is not taken
    finally:
        place().fp32_precision = before
    assert fingerprint(task) == plain
    assert precisions_here() == known


@pytest.mark.usefixtures("put_back")
def test_what_was_measured_with_other_settings_is_not_taken() -> None:
    task = QuadraticTask().task
    plain = fingerprint(task)
    torch.backends.cuda.enable_flash_sdp(False)
    assert fingerprint(task) != plain


def test_the_current_device_of_a_process_is_that_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On its third GPU, as the third rank of a machine is."""
    with monkeypatch.context() as here:
        here.setattr(torch.cuda, "is_initialized", lambda: True)
        here.setattr(torch.cuda, "current_device", lambda: 2)
        settings = settings_here()
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    adopt(settings_here())
    assert chosen == []  # the first one's memory is not taken where nobody asked for it
    adopt(settings)
    assert chosen == [2]


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_libraries_are_woken_in_a_type_that_every_device_has(dtype: torch.dtype) -> None:
    seen: set[torch.dtype] = set()

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if func is torch.ops.aten.convolution.default:
                seen.add(args[0].dtype)
            return func(*args, **(kwargs or {}))

    torch.set_default_dtype(dtype)
    with Seeing():
        _wake_up(torch.device("cpu"))
    assert seen == {torch.float32}


@pytest.mark.slow
def test_a_try_computes_in_the_type_that_is_set_here() -> None:
    """Tests compute in float64, and so must a loss that makes a tensor of its own there."""

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) @ torch.ones(1)).mean()

    model = nn.Linear(1, 1)
    task = Task(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(64, 1), loss)
    with Isolated(task) as isolated:
        assert isolated.try_size(8, budget_bytes=400 * MIB).outcome == "ok"
