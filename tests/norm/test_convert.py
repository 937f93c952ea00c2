"""Turning BatchNorm into ghosts and back: a law (what is not the layer's class stays the same)."""

import copy

import pytest
import torch
from torch import nn

import rightbatch as rb
from tests.norm.definition import GHOST_FORMS, ORDINARY_FORMS, batch_of, randomised


class Net(nn.Module):
    """Two places for one BatchNorm, one more in evaluation, and layers of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.again = self.first
        self.parts = nn.ModuleList([nn.BatchNorm2d(3, affine=False).eval(), nn.GroupNorm(1, 3)])

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.parts[1](self.parts[0](self.again(self.first(batch))))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_layer_that_is_the_whole_model_changes_its_class_and_nothing_else(dims: int) -> None:
    norm = randomised(ORDINARY_FORMS[dims](3, momentum=0.3))
    before = {
        name: (id(value), value.clone()) for name, value in norm.state_dict(keep_vars=True).items()
    }
    converted = rb.convert_ghost_batch_norm(norm, 4)
    assert converted is norm
    assert type(norm) is GHOST_FORMS[dims]
    assert (norm.ghost_size, norm.subsample, norm.momentum) == (4, False, 0.3)
    for name, value in norm.state_dict(keep_vars=True).items():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])


def test_what_a_converted_layer_computes_is_what_a_new_one_does() -> None:
    norm, batch = randomised(nn.BatchNorm2d(3)), batch_of(2, 9)
    fresh = rb.GhostBatchNorm2d(3, 4, subsample=True)
    fresh.load_state_dict(norm.state_dict())
    converted = rb.convert_ghost_batch_norm(norm, 4, subsample=True)
    assert torch.equal(converted(batch), fresh(batch))
    assert torch.equal(converted.running_var, fresh.running_var)


def test_shared_layers_flags_and_hooks_stay() -> None:
    model, calls = Net(), []
    model.first.register_forward_hook(lambda *_: calls.append("hook"))
    rb.convert_ghost_batch_norm(model, 4)
    assert model.first is model.again
    assert [type(part) for part in model.parts] == [rb.GhostBatchNorm2d, nn.GroupNorm]
    assert (model.first.training, model.parts[0].training) == (True, False)
    model(batch_of(2, 8))
    assert calls == ["hook", "hook"]


def test_there_and_back_is_where_it_was() -> None:
    model = Net()
    twin = copy.deepcopy(model)
    rb.convert_ghost_batch_norm(rb.convert_ghost_batch_norm(model, 4, subsample=True), None)
    assert str(model) == str(twin)
    assert vars(model.first).keys() == vars(twin.first).keys()
    assert torch.equal(model(batch_of(2, 8)), twin(batch_of(2, 8)))


def test_ghosts_take_a_new_size() -> None:
    norm = rb.convert_ghost_batch_norm(rb.GhostBatchNorm1d(3, 4), 8, subsample=True)
    assert (norm.ghost_size, norm.subsample) == (8, True)
    assert rb.convert_ghost_batch_norm(norm, 8).subsample is False


def test_a_model_without_batchnorm_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert rb.convert_ghost_batch_norm(model, 4) is model
    assert str(model) == str(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_the_optimizer_still_trains_the_layers_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rb.convert_ghost_batch_norm(model, 4)
    before = model[1].weight.detach().clone()
    model(batch_of(1, 8)).pow(3).sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].weight, before)
    assert model[1].weight in optimizer.state


class Derived(nn.BatchNorm2d):
    """A layer with an activation inside, as some model libraries have."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.SyncBatchNorm(3), r"1\.0 \(SyncBatchNorm\).*synchronize_batch_norm"),
        (Derived(3), r"1\.0 \(Derived\).*own behaviour would be lost"),
        (nn.LazyBatchNorm2d(), r"1\.0 \(LazyBatchNorm2d\).*run one batch through lazy ones"),
    ],
    ids=["sync", "derived", "lazy"],
)
@pytest.mark.parametrize("size", [4, None])
def test_other_layers_are_named_and_nothing_changes(
    layer: nn.Module, message: str, size: int | None
) -> None:
    other = nn.BatchNorm2d(3) if size else rb.GhostBatchNorm2d(3, 4)
    model = nn.Sequential(other, nn.Sequential(layer))
    before = type(other)
    with pytest.raises(rb.CannotConvert, match=message):
        rb.convert_ghost_batch_norm(model, size)
    assert type(other) is before


def test_a_long_list_of_other_layers_is_cut() -> None:
    model = nn.Sequential(*[nn.SyncBatchNorm(3) for _ in range(7)])
    with pytest.raises(
        rb.CannotConvert, match=r"got 7 of another class: 0 .*, 4 \(SyncBatchNorm\)\."
    ):
        rb.convert_ghost_batch_norm(model, 4)


def test_a_model_that_is_the_layer_is_named_so() -> None:
    with pytest.raises(rb.CannotConvert, match=r"the model \(SyncBatchNorm\)"):
        rb.convert_ghost_batch_norm(nn.SyncBatchNorm(3), 4)


def test_sizes_without_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        rb.convert_ghost_batch_norm(nn.BatchNorm1d(3), 1)
