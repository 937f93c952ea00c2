"""Per-example squares from the training step. Oracle: the definition, on a zoo of odd models."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from rightbatch.noise.geometry import Preconditioner
from rightbatch.noise.per_example import ExampleSquares, example_squares
from tests.noise.per_example.definition import by_definition, loss_of
from tests.noise.per_example.zoo import ZOO, B, Calls, Specimen


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def watched(model: nn.Module, batch: Tensor, *, examples: int, **options: object) -> ExampleSquares:
    with example_squares(
        model, trained(model), examples=examples, batch_size=len(batch), **options
    ) as record:
        loss_of(model(batch), len(batch)).backward()
    return record


def squares_of(gradients: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack([g.square().sum() for g in row]) for row in gradients])


def made(specimen: Specimen) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return specimen.make(), specimen.batch()


def names_of(model: nn.Module, indices: Sequence[int]) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(trained(model)[i])] for i in indices}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("examples", [B, 2])
@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_equals_the_definition_or_says_that_it_cannot(specimen: Specimen, examples: int) -> None:
    model, batch = made(specimen)
    exact = squares_of(by_definition(model, trained(model), batch))[:examples]
    record = watched(model, batch, examples=examples)
    uncovered = record.uncovered()
    assert names_of(model, uncovered) == set(specimen.uncovered), record.reasons
    exact[:, uncovered] = torch.nan
    torch.testing.assert_close(record.squares()[0], exact, rtol=1e-9, atol=1e-15, equal_nan=True)
    for index, path in record.paths.items():
        (name,) = names_of(model, [index])
        assert specimen.paths.get(name, path) == path


def small() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 2)
    )


def train(model: nn.Module, *, watch: bool) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        batch = torch.randn(4, 3)
        optimizer.zero_grad()
        if watch:
            watched(model, batch, examples=3).squares()
        else:
            loss_of(model(batch), 4).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()], torch.get_rng_state()


def test_training_is_bit_for_bit_what_it_would_be_without(float32: None) -> None:
    weights, state = train(small(), watch=True)
    plain, plain_state = train(small(), watch=False)
    assert torch.equal(state, plain_state)
    for found, wanted in zip(weights, plain, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("batch_first", [True, False])
def test_frozen_attention_keeps_its_fused_way(float32: None, batch_first: bool) -> None:
    torch.manual_seed(2)
    frozen = nn.TransformerEncoderLayer(64, 4, 128, batch_first=batch_first).eval()
    model = nn.Sequential(frozen.requires_grad_(False), nn.Linear(64, 3))
    batch = torch.randn(5, 5 if batch_first else 6, 64)
    loss_of(model(batch), 5).backward()
    wanted = [p.grad.clone() for p in trained(model)]
    model.zero_grad()
    record = watched(model, batch, examples=2)
    assert all(torch.equal(p.grad, g) for p, g in zip(trained(model), wanted, strict=True))
    assert record.uncovered() == []


def hooks_of(model: nn.Module) -> int:
    modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return modules + sum(len(p._backward_hooks or ()) for p in model.parameters())


def test_nothing_is_left_also_after_an_error() -> None:
    model = small()
    watched(model, torch.randn(4, 3), examples=2)
    assert hooks_of(model) == 0

    def failing() -> None:
        with example_squares(model, trained(model), examples=1, batch_size=4):
            assert hooks_of(model) > 0
            model(torch.randn(4, 99))

    with pytest.raises(RuntimeError, match="99"):
        failing()
    assert hooks_of(model) == 0
    assert torch.overrides._len_torch_function_stack() == 0


@pytest.mark.parametrize("inputs", [(16, 6, 8), (16, 40, 8), (16, 8)], ids=str)
def test_cost_is_in_proportion_to_the_examples(inputs: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 8))
    batch = torch.randn(*inputs)

    def operations(examples: int | None) -> int:
        with FlopCounterMode(display=False) as counter:
            if examples:
                watched(model, batch, examples=examples).squares()
            else:
                loss_of(model(batch), len(batch)).backward()
        return counter.get_total_flops()

    plain, few, all_ = operations(None), operations(2), operations(16)
    assert (few - plain) * 8 == all_ - plain
    assert (all_ > plain) == (len(inputs) > 2)  # the meter moves


def test_convolutions_cost_in_proportion_too() -> None:
    model, batch = nn.Conv2d(3, 4, 3), torch.randn(16, 3, 9, 9)

    def operations(examples: int) -> int:
        with FlopCounterMode(display=False) as counter:
            watched(model, batch, examples=examples).squares()
        return counter.get_total_flops()

    two, four, eight = operations(2), operations(4), operations(8)
    assert eight - four == 2 * (four - two) > 0


@pytest.mark.parametrize(
    "name", ["tied", "conv2d_grouped", "transformer_layer", "sliced_positions"]
)
def test_other_metrics_weigh_every_coordinate(name: str) -> None:
    model, batch = made(next(s for s in ZOO if s.name == name))
    metrics = [
        Preconditioner(torch.rand_like(p), mean=None, correction=0.5, eps=0.1)
        for p in trained(model)
    ]
    found = watched(model, batch, examples=3, metrics=metrics).squares()
    for i, row in enumerate(by_definition(model, trained(model), batch)[:3]):
        for j, (gradient, metric) in enumerate(zip(row, metrics, strict=True)):
            weight = metric.of(metric.second_moment, None)
            wanted = [(gradient.square() * weight**power).sum() for power in (0, 2, 1)]
            torch.testing.assert_close(found[:, i, j], torch.stack(wanted), rtol=1e-9, atol=1e-15)


def test_a_batch_of_one_gives_the_square_of_the_gradient(float32: None) -> None:
    model = small().eval()
    batch = torch.randn(1, 3)
    record = watched(model, batch, examples=1)
    wanted = torch.stack([p.grad.square().sum() for p in model.parameters()])
    torch.testing.assert_close(record.squares()[0, 0].float(), wanted, rtol=1e-5, atol=0)


def test_low_precision_is_squared_in_float32(float32: None) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    batch = torch.randn(1, 5, 3)
    with example_squares(model, trained(model), examples=1, batch_size=1) as record:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(batch)
        (outputs.float() * 1e-6).sum().backward()  # its squares underflow in half precision
    wanted = torch.stack([p.grad.square().sum() for p in model.parameters()])
    torch.testing.assert_close(record.squares()[0, 0].float(), wanted, rtol=0.05, atol=0)


def test_unused_and_frozen_parameters_have_zero_columns() -> None:
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    model[0].bias.requires_grad_(False)
    model.forward = model[0].forward
    with example_squares(model, list(model.parameters()), examples=2, batch_size=4) as record:
        loss_of(model(torch.randn(4, 3)), 4).backward()
    assert record.uncovered() == []
    assert (record.squares()[0] > 0).tolist() == [[True, False, False, False]] * 2


@pytest.mark.parametrize("way", ["twice_backward", "two_steps"])
def test_more_than_one_pass_is_not_understood(way: str) -> None:
    model, batch = nn.Linear(3, 2), torch.randn(4, 3)
    with example_squares(model, trained(model), examples=2, batch_size=4) as record:
        loss = loss_of(model(batch), 4)
        loss.backward(retain_graph=True)
        (loss if way == "twice_backward" else loss_of(model(batch), 4)).backward()
    assert record.uncovered() == [0, 1]


def test_an_evaluation_between_does_not_count() -> None:
    model, batch = nn.Linear(3, 2), torch.randn(4, 3)
    with example_squares(model, trained(model), examples=4, batch_size=4) as record:
        with torch.no_grad():
            model(batch)
        loss_of(model(batch), 4).backward()
    exact = squares_of(by_definition(model, trained(model), batch))
    torch.testing.assert_close(record.squares()[0], exact)


def test_a_compiled_model_is_left_alone() -> None:
    model = nn.Linear(3, 2)
    model.compile(backend="eager")
    record = watched(model, torch.randn(4, 3), examples=2)
    assert record.uncovered() == [0, 1]
    assert record.squares().isnan().all()


def test_a_batch_of_another_size_is_not_understood() -> None:
    model = nn.Linear(3, 2)
    with example_squares(model, trained(model), examples=2, batch_size=5) as record:
        loss_of(model(torch.randn(4, 3)), 4).backward()
    assert record.uncovered() == [0, 1]
    assert "(4, 3)" in record.reasons[0]


@pytest.mark.parametrize("examples", [0, 5])
def test_examples_must_be_in_the_batch(examples: int) -> None:
    model = nn.Linear(3, 2)
    watching = example_squares(model, trained(model), examples=examples, batch_size=4)
    with pytest.raises(ValueError, match=f"got examples={examples}, batch_size=4"), watching:
        pass


def test_a_changed_weight_cannot_be_pulled_back() -> None:
    """A random function of a weight is another one when it is repeated."""
    model = Calls(lambda m, x: F.linear(x, F.dropout(m.w, 0.5)), w=nn.Parameter(torch.ones(2, 3)))
    batch = torch.randn(4, 3)
    torch.manual_seed(0)
    loss_of(model(batch), 4).backward()
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert watched(model, batch, examples=2).uncovered() == [0]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("tracking", [True, False])
def test_batch_norm_by_the_batch_is_refused_by_name(tracking: bool) -> None:
    layer = nn.BatchNorm1d(3, track_running_stats=tracking)
    record = watched(layer, torch.randn(4, 3), examples=2)
    assert record.uncovered() == [0, 1]
    assert "mixes examples" in record.reasons[0]


def test_what_a_weight_was_made_with_must_still_be_the_same() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        made = m.w + m.offset
        m.offset.add_(1)
        return F.linear(x, made)

    model = Calls(forward, w=nn.Parameter(torch.ones(2, 3)), offset=nn.Buffer(torch.zeros(2, 3)))
    assert watched(model, torch.randn(4, 3), examples=2).uncovered() == [0]


def test_an_input_that_was_changed_in_place_is_noticed(float32: None) -> None:
    """Autocast keeps a copy in low precision, so autograd has no reason to complain."""

    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = x.clone()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = m.layer(hidden)
        hidden.add_(1)
        return outputs.float()

    record = watched(Calls(forward, layer=nn.Linear(3, 2)), torch.randn(4, 3), examples=4)
    assert record.uncovered() == [0, 1]
    assert "changed in place" in record.reasons[0]
