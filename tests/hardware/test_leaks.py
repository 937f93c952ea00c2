"""What is alive is counted whatever kinds of tensors there are. Oracle: bytes that are known."""

import gc

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from rightbatch.hardware import measure_memory
from rightbatch.hardware.leaks import tensor_bytes
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
