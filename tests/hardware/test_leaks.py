"""What is alive is counted whatever kinds of tensors there are. Oracle: bytes that are known."""

import gc
from collections import deque

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from rightbatch.hardware import measure_memory
from rightbatch.hardware.isolation import Isolated
from rightbatch.hardware.leaks import LeftOver, tensor_bytes
from rightbatch.task import Task

MIB = 2**20


class Opaque(Tensor):
    """A wrapper that does not tell what it wraps."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Opaque":
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: torch.zeros(1000, dtype=torch.uint8), 1000),
        (lambda: torch.zeros(10, dtype=torch.uint8).expand(1000, 10), 10),
        (lambda: torch.eye(3, dtype=torch.float32).to_sparse(), 6 * 8 + 3 * 4),
        (lambda: FakeTensorMode().from_tensor(torch.zeros(1000)), 0),
        (lambda: torch.empty(10**6, device="meta"), 0),
        (lambda: nn.LazyLinear(5, bias=False), 0),
        (lambda: TwoTensor(torch.zeros(100), torch.ones(100)), 2 * 800),
    ],
    ids=["plain", "expanded", "sparse", "fake", "meta", "lazy", "wrapper"],
)
def test_every_storage_counts_once_and_what_takes_no_memory_does_not(make, size):
    gc.collect()
    before = tensor_bytes()
    made = make()
    assert tensor_bytes() - before == size
    del made


@pytest.mark.parametrize("make", [Opaque, Tensor.to_mkldnn], ids=["opaque", "layout"])
def test_kinds_that_tell_nothing_are_passed_over(make):
    inner = torch.zeros(8, 8, dtype=torch.float32)
    made = make(inner)
    assert tensor_bytes() > 0
    del made


class Adapted(nn.Module):
    """A frozen weight of a wrapper kind, as quantised ones are, and a trained layer beside it."""

    def __init__(self) -> None:
        super().__init__()
        frozen = TwoTensor(torch.ones(9, 9), torch.ones(9, 9))
        self.base = nn.Parameter(frozen, requires_grad=False)
        self.adapter = nn.Linear(9, 9)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.adapter(inputs) + inputs @ self.base.a


@pytest.mark.slow
def test_a_weight_that_wraps_others_is_tried_in_a_process_of_its_own():
    model = Adapted()
    optimizer = torch.optim.SGD(model.adapter.parameters(), lr=0.1)
    task = Task(model, optimizer, torch.ones(200, 9), lambda m, x: m(x).square().mean())
    profile = measure_memory(task, budget_bytes=64 * MIB)
    assert (profile.max_verified_batch_size, profile.notes) == (200, ())


@pytest.mark.parametrize(
    ("alive", "suspect", "certain"),
    [
        ([0, 9, 11, 13], False, False),  # too few to tell
        ([5, 5, 7, 9, 11], True, False),  # the first step makes lasting state
        ([0, 9, 11, 13, 14], False, False),  # one alone is no more than the least
        ([0, 9, 9, 11, 13, 15, 17], False, False),
        ([*range(0, 22, 2)], True, False),
        ([*range(0, 24, 2)], True, True),
        ([*range(0, 24, 2), 22], False, False),
    ],
)
def test_a_rise_is_a_leak_only_if_it_goes_on(alive, suspect, certain):
    left = LeftOver(least_bytes=1)
    for count in alive:
        left.note(count)
    assert (left.is_suspect, left.is_certain) == (suspect, certain)


class Remembering:
    """Keeps 3 MiB of each of its last batches."""

    def __init__(self, batches: int | None) -> None:
        self.last = deque(maxlen=batches)

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        self.last.append(torch.ones(3 * MIB, dtype=torch.uint8))
        return model(batch).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batches", "budget_mib", "outcome", "least_mib", "most_mib"),
    # Without an end it is watched for 12 steps, and for 12 more where they first ran out.
    [(8, 60, "ok", 24, 24), (8, 20, "oom", 24, 24), (None, 40, "leak", 36, 72)],
    ids=["fits", "is too long", "has no end"],
)
def test_a_queue_of_batches_is_no_leak(batches, budget_mib, outcome, least_mib, most_mib):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task = Task(model, optimizer, torch.ones(99, 1), Remembering(batches))
    with Isolated(task) as isolated:
        answer = isolated.try_size(2, budget_bytes=budget_mib * MIB, loose_bytes=300 * MIB)
    assert answer.outcome == outcome
    # Each batch once, and what a heap that is cut up takes besides.
    assert least_mib * MIB <= answer.peak_bytes < (most_mib + 25) * MIB
