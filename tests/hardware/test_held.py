"""What training holds on its device. Oracle: shapes, by hand; 4 bytes a float."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.optim.swa_utils import AveragedModel
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.data import TensorDataset

from rightbatch.hardware import measure_memory
from rightbatch.hardware.fake import CannotPredict, fakes_of
from rightbatch.hardware.live_bytes import LiveBytes
from rightbatch.hardware.workload import held_bytes, take_step
from rightbatch.task import Task
from rightbatch.task.task import Loss

pytestmark = pytest.mark.usefixtures("float32")
WIDE = 1000
WEIGHT = 4 * WIDE  # bytes of the model, and of an example
MILLION = 1_000_000


def batch_of(size: int) -> Tensor:
    return torch.zeros(size, WIDE)


def task_of(loss: Loss, model: nn.Module | None = None, **options) -> Task:
    model = model or nn.Linear(WIDE, 1, bias=False)
    options.setdefault("dataset", torch.zeros(16, WIDE))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Task(model, optimizer, loss=loss, **options)


def plain(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).mean()


def with_first_of(tensor: Tensor) -> Loss:
    """Make a loss that takes one number, through a view, of a tensor that it closes over."""

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).mean() + tensor.view(-1)[0]

    return loss


def predicted(task: Task, *sizes: int) -> list[int]:
    with fakes_of(task, batch_of) as fakes:
        return [fakes.peak_bytes(size) for size in sizes]


def distilled(teacher: nn.Module) -> Loss:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(batch)
        return (model(batch) - target).square().mean()

    return loss


def test_a_teacher_of_a_million_floats_is_held_and_predicted() -> None:
    teacher = nn.Linear(WIDE, WIDE, bias=False).requires_grad_(False)
    small, large = task_of(with_first_of(torch.zeros(1))), task_of(with_first_of(teacher.weight))
    assert held_bytes(small) == WEIGHT + 4
    assert held_bytes(large) == WEIGHT + 4 * MILLION
    sizes = (1, 10, 5000)
    pairs = zip(predicted(small, *sizes), predicted(large, *sizes), strict=True)
    assert [with_teacher - without for without, with_teacher in pairs] == [4 * MILLION - 4] * 3


@pytest.mark.parametrize("size", [3, 64])
def test_predicts_what_is_counted_while_a_teacher_is_asked(size: int) -> None:
    teacher = nn.Sequential(nn.Linear(WIDE, 500), nn.ReLU(), nn.Linear(500, 1)).requires_grad_(
        False
    )
    task = task_of(distilled(teacher))
    with LiveBytes([*task.model.parameters(), *teacher.parameters()]) as alive:
        for _ in range(2):
            take_step(task, lambda: batch_of(size))
    task.optimizer.zero_grad()
    assert predicted(task, size) == [pytest.approx(alive.peak_bytes, rel=0.01)]


def average_in_hook() -> tuple[Task, AveragedModel]:
    task = task_of(plain)
    average = AveragedModel(task.model)
    task.optimizer.register_step_post_hook(lambda *_: average.update_parameters(task.model))
    return task, average


def average_in_loss() -> tuple[Task, AveragedModel]:
    task = task_of(plain)
    average = AveragedModel(task.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn())

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        average.update_parameters(model)
        return plain(model, batch)

    task._loss = loss
    return task, average


def average_in_place() -> tuple[Task, nn.Module]:
    task = task_of(plain)
    average = nn.Linear(WIDE, 1, bias=False).requires_grad_(False)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        average.weight.mul_(0.9).add_(next(model.parameters()).detach(), alpha=0.1)
        average.weight.data.lerp_(next(model.parameters()).data, 0.1)
        return plain(model, batch) + plain(average, batch)

    task._loss = loss
    return task, average


@pytest.mark.parametrize("make", [average_in_hook, average_in_loss, average_in_place])
def test_an_average_is_held_and_stays_bit_for_bit(
    make: Callable[[], tuple[Task, Any]],
) -> None:
    task, average = make()
    copies = len(list(average.buffers()))  # the count of updates: one int64
    assert held_bytes(task) == 2 * WEIGHT + 8 * copies
    before = {
        name: (tensor, tensor.clone())
        for name, tensor in average.state_dict(keep_vars=True).items()
    }
    peaks = predicted(task, 1, 50)
    assert min(peaks) >= 3 * WEIGHT + 8 * copies  # with a gradient
    for name, tensor in average.state_dict(keep_vars=True).items():
        same, value = before[name]
        assert tensor is same
        assert torch.equal(tensor, value)
        assert tensor.grad is None


def test_an_average_behind_a_hook_is_predicted() -> None:
    without, (task, _) = task_of(plain), average_in_hook()
    assert predicted(task, 9)[0] - predicted(without, 9)[0] == WEIGHT + 8


def test_state_of_an_optimizer_in_the_backward_pass_is_held() -> None:
    task = task_of(plain)
    moment = torch.zeros(WIDE)

    def step(parameter: Tensor) -> None:
        assert parameter.grad is not None
        moment.lerp_(parameter.grad[0], 0.1)

    next(task.model.parameters()).register_post_accumulate_grad_hook(step)
    assert held_bytes(task) == 2 * WEIGHT


def test_a_size_takes_one_step_where_the_code_keeps_nothing() -> None:
    calls = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(len(batch))
        return plain(model, batch)

    predicted(task_of(loss), 4, 5, 6)
    assert calls == [4, 4, 5, 6]


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: TensorDataset(data)])
def test_a_data_set_on_the_host_is_not_held(wrap: Callable[[Tensor], object]) -> None:
    data = torch.zeros(256, WIDE)

    def loss(model: nn.Module, batch: Tensor | tuple[Tensor]) -> Tensor:
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        return plain(model, inputs - data[0])

    task = task_of(loss, dataset=wrap(data))
    assert held_bytes(task) == WEIGHT
    with fakes_of(task, lambda size: [batch_of(size)]) as fakes:
        assert fakes.peak_bytes(1) < 256 * WEIGHT


def test_data_on_a_device_of_its_own_is_held() -> None:
    """Tensors of device "meta" are as little in the host's memory as a GPU's."""
    model = nn.Linear(WIDE, 1, bias=False, device="meta")
    data, table = torch.zeros(16, WIDE, device="meta"), torch.zeros(10, device="meta")
    host = torch.zeros(MILLION)
    task = task_of(
        lambda model, batch: plain(model, batch) + len(host),
        model,
        dataset=TensorDataset(data),
        evaluate=lambda model: float(len(table)),
    )
    assert held_bytes(task) == WEIGHT + 16 * WEIGHT + 4 * 10


def test_a_model_that_the_data_set_calls_is_held() -> None:
    teacher = nn.Linear(WIDE, WIDE, bias=False)

    class Labelled(torch.utils.data.Dataset[Tensor]):
        def __init__(self) -> None:
            self.teacher = teacher

        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> Tensor:
            return torch.zeros(WIDE)

    task = task_of(distilled(teacher), dataset=Labelled())
    assert held_bytes(task) == WEIGHT + 4 * MILLION


def test_what_shares_a_storage_is_held_once() -> None:
    table = torch.zeros(MILLION)
    views = {"all": table, "part": table[:10], "detached": [table.detach(), table.view(10, -1).T]}

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return plain(model, batch) + views["part"].sum() + views["detached"][1][0, 0]

    task = task_of(loss)
    assert held_bytes(task) == WEIGHT + 4 * MILLION
    reference = task_of(with_first_of(torch.zeros(1)))
    difference = predicted(task, 50)[0] - predicted(reference, 50)[0]
    assert difference == pytest.approx(4 * MILLION, abs=100)


@pytest.mark.parametrize(
    "part_of",
    [
        lambda model: model,
        lambda model: nn.Sequential(model),
        lambda model: model.weight.detach(),
        lambda model: nn.Parameter(model.weight.data, requires_grad=False),
    ],
    ids=["itself", "inside", "detached", "same storage"],
)
def test_a_teacher_that_is_the_model_is_held_once(part_of) -> None:
    model = nn.Linear(WIDE, 1, bias=False)
    part = part_of(model)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.no_grad():
            weight = part if isinstance(part, Tensor) else next(part.parameters())
            target = batch @ weight.T
        return (model(batch) - target).square().mean()

    task = task_of(loss, model)
    assert held_bytes(task) == WEIGHT
    apart = task_of(distilled(nn.Linear(WIDE, 1, bias=False)))
    assert held_bytes(apart) == 2 * WEIGHT
    assert predicted(apart, 9)[0] - predicted(task, 9)[0] == WEIGHT


def test_gradients_that_lie_about_are_not_held() -> None:
    kept = nn.Linear(WIDE, 1, bias=False)
    task = task_of(lambda model, batch: plain(model, batch) + plain(kept, batch))
    task.step(batch_of(2))
    assert task.model.weight.grad is not None
    assert kept.weight.grad is not None
    assert held_bytes(task) == 2 * WEIGHT


def test_what_is_on_another_device_is_not_held() -> None:
    table = torch.zeros(MILLION, device="meta")
    task = task_of(lambda model, batch: plain(model, batch) + len(table))
    assert held_bytes(task) == WEIGHT


TABLE = torch.zeros(100)


class Kept:
    """Refers to tensors in many ways."""

    __slots__ = ("_slot",)
    of_class = torch.zeros(200)

    def __init__(self) -> None:
        self._slot = (torch.zeros(300),)

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        return plain(model, batch) + TABLE[0]


def test_what_objects_keep_is_held() -> None:
    loss = Kept()
    assert held_bytes(task_of(loss)) == WEIGHT + 4 * (100 + 200 + 300)

    def second(model: nn.Module, batch: Tensor, scale: Tensor = torch.zeros(10)) -> Tensor:  # noqa: B008
        return loss(model, batch)

    vars(second)["note"] = torch.zeros(20)
    task = task_of(second)
    task.model.register_forward_hook(lambda *_, table=torch.zeros(30): None)  # noqa: B008
    vars(task.model.weight)["table"] = torch.zeros(40)
    vars(task.optimizer)["slow"] = {"weights": [torch.zeros(50)]}
    more = 10 + 20 + 30 + 40 + 50
    assert held_bytes(task) == WEIGHT + 4 * (100 + 200 + 300 + more)


def test_an_attribute_is_no_global_of_the_same_name() -> None:
    task = task_of(lambda model, batch: plain(model, batch) + getattr(model, "x", 0) + batch.TABLE)
    assert held_bytes(task) == WEIGHT


def test_tensors_of_other_layouts_count_their_parts() -> None:
    warnings.simplefilter("ignore", UserWarning)  # "in beta state"
    starts, places, numbers = torch.arange(11), torch.arange(10), torch.ones(10)
    kept = (
        torch.sparse_coo_tensor(torch.stack([places, places]), numbers),
        torch.sparse_csr_tensor(starts.clone(), places.clone(), numbers.clone()),
        torch.sparse_csc_tensor(starts, places, numbers.clone()),
    )
    task = task_of(lambda model, batch: plain(model, batch) + len(kept))
    assert held_bytes(task) == WEIGHT + 3 * 40 + 8 * (20 + 21 + 21)
    pair = TwoTensor(torch.zeros(10), torch.zeros(10))
    task = task_of(lambda model, batch: plain(model, batch) + len(pair))
    assert held_bytes(task) == WEIGHT + 80


def test_a_queue_that_every_step_replaces_counts_once_in_the_peak() -> None:
    fixed, queue = torch.zeros(MILLION), torch.zeros(MILLION)

    def replacing(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal queue
        new = model(batch).detach().view(-1)
        queue = torch.cat([queue[len(new) :], new])
        return plain(model, batch) + queue[0]

    def keeping(model: nn.Module, batch: Tensor) -> Tensor:
        new = torch.cat([fixed, model(batch).detach().view(-1)])
        return plain(model, batch) + new[0]

    task = task_of(replacing)
    first, again, reference = (
        predicted(task, 50),
        predicted(task, 50),
        predicted(task_of(keeping), 50),
    )
    assert held_bytes(task) == WEIGHT + 4 * MILLION
    assert first == again
    assert first[0] == pytest.approx(reference[0], rel=0.01)  # the old one and the new


def test_a_prediction_does_not_depend_on_the_sizes_before() -> None:
    last = torch.zeros(5, WIDE)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal last
        value = plain(model, batch + last.mean())
        last = batch
        return value

    task = task_of(loss)
    assert held_bytes(task) == 6 * WEIGHT
    up, down = predicted(task, 1, 20, 3000), predicted(task, 3000, 20, 1)
    assert up == down[::-1]
    assert up[2] >= 2 * 3000 * WEIGHT  # the last batch, and this one
    assert last.shape == (5, WIDE)


def test_data_parallel_ranks_hold_a_teacher_once_each() -> None:
    teacher = nn.Linear(WIDE, WIDE, bias=False)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Linear(WIDE, 1, bias=False))
        task = task_of(distilled(teacher), model)
        task.optimizer.register_step_post_hook(lambda *_: model.zero_grad())
        profile = measure_memory(task, budget_bytes=2**28, isolate=False)
    finally:
        dist.destroy_process_group()
    assert profile.held_bytes == 2 * WEIGHT + 4 * MILLION  # with the copy of the gradients


def test_a_teacher_counts_against_a_limit() -> None:
    """With real tries: what fits beside no teacher does not beside one of 40 MB."""
    budget, floats = 100 * MILLION, 10 * MILLION
    bounds, sizes = [], []
    for count in (1, floats):
        task = task_of(
            with_first_of(torch.zeros(count)), max_batch_size=MILLION, worst_case=batch_of
        )
        task.max_batch_size = MILLION
        profile = measure_memory(task, budget_bytes=budget)
        assert profile.held_bytes == WEIGHT + 4 * count
        assert profile.notes == ()
        bounds.append(profile.upper_bound)
        sizes.append(profile.max_verified_batch_size)
    assert 4 * floats / (WEIGHT + 100) <= bounds[0] - bounds[1] <= 4 * floats / WEIGHT
    assert sizes[1] * WEIGHT + 4 * floats <= budget < sizes[0] * WEIGHT + 4 * floats


def test_what_a_criterion_trains_has_its_state_predicted() -> None:
    """Of AdamW: weight, gradient and two moments of each parameter."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(MILLION))

        def forward(self, outputs: Tensor) -> Tensor:
            return outputs.mean() + self.weight[:8].sum()

    model, head = nn.Linear(WIDE, 1, bias=False), Head()
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()])
    task = Task(model, optimizer, torch.zeros(16, WIDE), lambda model, batch: head(model(batch)))
    assert held_bytes(task) == WEIGHT + 4 * MILLION
    assert predicted(task, 1)[0] >= 4 * (WEIGHT + 4 * MILLION)
    assert type(head.weight) is nn.Parameter
    assert head.weight.grad is None
    task.step(batch_of(1))
    task.optimizer.zero_grad()
    assert held_bytes(task) == 3 * (WEIGHT + 4 * MILLION) + 2 * 4  # two counts of steps


def test_a_teacher_that_nobody_froze_keeps_its_gradient() -> None:
    teacher = nn.Linear(WIDE, 1000, bias=False)
    task = task_of(distilled(teacher))
    open_task = task_of(lambda model, batch: (model(batch) - teacher(batch)).square().mean())
    sizes = (1, 20)
    frozen = predicted(task, *sizes)
    for kept, without in zip(predicted(open_task, *sizes), frozen, strict=True):
        assert kept >= without + 4 * MILLION
    assert teacher.weight.grad is None


def test_a_scripted_teacher_is_held() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(nn.Linear(WIDE, WIDE, bias=False)), file)
        file.seek(0)
        teacher = torch.jit.load(file)
    assert held_bytes(task_of(distilled(teacher))) == WEIGHT + 4 * MILLION


def quantized(count: int) -> Tensor:
    """Make a tensor of a kind that has no counterpart without numbers; a byte an element."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will do without them one day
        return torch.quantize_per_tensor(torch.zeros(count), 1.0, 0, torch.qint8)


def test_what_has_no_fake_is_held_and_predicted_all_the_same() -> None:
    table, unused = quantized(500), nn.LazyLinear(3)
    task = task_of(lambda model, batch: plain(model, batch) + len((table, unused)))
    assert held_bytes(task) == WEIGHT + 500
    assert predicted(task, 9)[0] - predicted(task_of(plain), 9)[0] == 500


def test_state_that_has_no_fake_leaves_the_optimizer_as_it_was() -> None:
    task, _ = average_in_hook()
    (parameter,) = task.parameters
    task.optimizer.state[parameter]["table"] = quantized(500)
    hooks = dict(task.optimizer._optimizer_step_post_hooks)
    with pytest.raises(CannotPredict, match="must have a counterpart without numbers"):
        predicted(task, 9)
    assert task.optimizer._optimizer_step_post_hooks == hooks != {}
    assert task.parameters[0] is parameter
    assert task.model.get_parameter("weight") is parameter
