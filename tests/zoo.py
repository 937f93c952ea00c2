"""The zoo: small odd tasks that every instrument must meet.

Each specimen either works or is refused with a named error; nothing may fail in silence.
Use it like this:

    @pytest.mark.parametrize("specimen", WORKING, ids=str)
    def test_measures_it(specimen: Specimen) -> None:
        measure(specimen.make())

Factories use the default dtype of the moment, so a test decides between float64 and float32.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from rightbatch.errors import NotRepeatable, TaskError
from rightbatch.task import Task, supervised
from tests.zoo_models import (
    Attention,
    Branches,
    DictModel,
    ExpandedBuffer,
    Outsider,
    Recurrent,
    Remembering,
    TiedLanguageModel,
    Twice,
)

Rows = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """One odd task and what is to be expected of it."""

    name: str
    make: Callable[[], Task]
    error: type[TaskError] | None = None  # None: it works
    match: str = ""  # in the error's message, or in a warning of `Task.check`
    mean_loss: bool = True  # False: the loss sums, so its gradient grows with the batch
    mixes_examples: bool = False  # one example's loss depends on its batch

    def __str__(self) -> str:
        return self.name


# Data: a fixed regression, a fixed classification, sentences of unequal length.


def rows(count: int = 24, features: int = 3) -> Rows:
    """Inputs [features] and one noisy linear target each, always the same."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, features, generator=generator)
    noise = torch.randn(count, 1, generator=generator)
    return list(zip(inputs, inputs.sum(1, keepdim=True) + noise, strict=True))


def images(count: int = 24) -> Rows:
    """Two-channel 4x4 images in three classes."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(count, 2, 4, 4, generator=generator)
    return list(zip(pixels, torch.arange(count) % 3, strict=True))


def sentences(count: int = 24) -> list[Tensor]:
    """Five token numbers below 7 each; 0 is padding, at the end, of every length from 0 to 3."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 7, (count, 5), generator=generator)
    for index, sentence in enumerate(tokens):
        sentence[5 - index % 4 :] = 0
    return list(tokens)


def sgd(model: nn.Module, **options: Any) -> Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, **options})


def regression(model: nn.Module, optimizer: Optimizer | None = None, **options: Any) -> Task:
    settings = {"batch_size": 4, "dataset": rows(), **options}
    loss = supervised(F.mse_loss)
    return Task(model, optimizer or sgd(model), settings.pop("dataset"), loss, **settings)


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


# Tasks of odd models.


def classification(model: nn.Module, **options: Any) -> Task:
    settings = {"batch_size": 4, **options}
    return Task(model, sgd(model), images(), supervised(F.cross_entropy), **settings)


def token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0)


def unmasked_tokens(tokens: Tensor) -> float:
    return float((tokens[:, 1:] != 0).sum())


def language(model: nn.Module, **options: Any) -> Task:
    settings = {"batch_size": 4, "weight": unmasked_tokens, **options}
    optimizer = settings.pop("optimizer", None) or sgd(model)
    return Task(model, optimizer, sentences(), token_loss, **settings)


def batch_norm() -> Task:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
    return classification(nn.Sequential(*model, nn.Linear(12, 3)))


def group_norm() -> Task:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten())
    return classification(nn.Sequential(*model, nn.Linear(16, 3)))


def grouped_conv() -> Task:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.AvgPool2d(2), nn.Flatten())
    return classification(nn.Sequential(*model, nn.Linear(4, 3)))


def non_contiguous_parameter() -> Task:
    model = nn.Linear(3, 1)
    model.weight = nn.Parameter(torch.randn(3, 4)[:, :1].T)  # strides (1, 4)
    return regression(model)


def spectral_norm() -> Task:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
    return regression(nn.Sequential(layer, nn.Linear(4, 1)))


def sparse_gradients() -> Task:
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Linear(4, 7))
    return language(model)


def loss_of_dict_model(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch)["loss"]


def dict_batch() -> Task:
    model = DictModel()
    dataset = [{"inputs": inputs, "targets": targets} for inputs, targets in rows()]
    return Task(model, sgd(model), dataset, loss_of_dict_model, batch_size=4)


class Pair(NamedTuple):
    inputs: Tensor
    targets: Tensor


def namedtuple_batch() -> Task:
    model = small_net()

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        return F.mse_loss(model(batch.inputs), batch.targets)

    return Task(model, sgd(model), [Pair(*row) for row in rows()], loss, batch_size=4)


# Losses.


def sum_loss() -> Task:
    model = small_net()
    loss = supervised(lambda outputs, targets: F.mse_loss(outputs, targets, reduction="sum"))
    return Task(model, sgd(model, lr=0.005), rows(), loss, batch_size=4)


def temperature_in_the_loss() -> Task:
    model, temperature = small_net(), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.Adam([*model.parameters(), temperature], lr=0.01)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        return F.mse_loss(model(inputs) * temperature, targets)

    return Task(model, optimizer, rows(), loss, batch_size=4)


# Optimizers.


def two_groups() -> Task:
    model = small_net()
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.01},
        {"params": list(model[2].parameters()), "lr": 0.001, "betas": (0.8, 0.9)},
    ]
    return regression(model, torch.optim.Adam(groups))


def untrained_part() -> Task:
    model = small_net()
    return regression(model, torch.optim.SGD(model[2].parameters(), lr=0.05))


def trained_by(kind: type[Optimizer], **options: Any) -> Callable[[], Task]:
    def make() -> Task:
        model = small_net()
        return regression(model, kind(model.parameters(), **{"lr": 0.01, **options}))

    return make


# Data sets.


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(rows(11))


class NoLength(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return rows()[index]


def weighted_sampler() -> Task:
    generator = torch.Generator().manual_seed(7)
    sampler = WeightedRandomSampler([1.0, 3.0] * 12, 20, generator=generator)
    return regression(small_net(), dataset=DataLoader(rows(), batch_size=4, sampler=sampler))


def loader_with_workers() -> Task:
    return regression(small_net(), dataset=DataLoader(rows(), batch_size=4, num_workers=2))


def tensor_dataset() -> Task:
    dataset = TensorDataset(*(torch.stack(column) for column in zip(*rows(), strict=True)))
    return regression(small_net(), dataset=dataset)


def list_of_dicts() -> Task:
    model = small_net()
    dataset = [{"x": inputs, "meta": {"y": targets, "id": "a"}} for inputs, targets in rows()]

    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return F.mse_loss(model(batch["x"]), batch["meta"]["y"])

    return Task(model, sgd(model), dataset, loss, batch_size=4)


def custom_collate() -> Task:
    """Unequal lengths, padded to the longest of the batch."""

    def collate(sentences: list[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence([s[s != 0] for s in sentences], batch_first=True)

    return language(Recurrent(), collate_fn=collate)


# The refused.


def refused_loss(loss: Callable[[nn.Module, Any], Any]) -> Callable[[], Task]:
    def make() -> Task:
        model = small_net()
        return Task(model, sgd(model), rows(), loss, batch_size=4)

    return make


def mse(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def frozen_everything() -> Task:
    return regression(small_net().requires_grad_(False))


def line_search() -> Task:
    model = small_net()
    return regression(model, torch.optim.LBFGS(model.parameters(), lr=1.0))


def lazy_layers() -> Task:
    return regression(nn.Sequential(nn.LazyLinear(1)))


def private_dice() -> Task:
    dice = random.Random(0)
    return refused_loss(lambda model, batch: mse(model, batch) * (1 + dice.random()))()


def doubling_collate() -> Task:
    def collate(examples: Rows) -> tuple[Tensor, ...]:
        return tuple(torch.stack(column * 2) for column in zip(*examples, strict=True))

    return regression(small_net(), collate_fn=collate)


def padding_only() -> Task:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return model(tokens).square().mean()

    blanks = [torch.zeros(5, dtype=torch.long)] * 8
    return Task(model, sgd(model), blanks, loss, weight=unmasked_tokens, batch_size=4)


def _works(name: str, make: Callable[[], Task], **expected: Any) -> Specimen:
    return Specimen(name=name, make=make, **expected)


def _refused(
    name: str, make: Callable[[], Task], match: str, error: type[TaskError] = TaskError
) -> Specimen:
    return Specimen(name=name, make=make, error=error, match=match)


WORKING = (
    _works("tied_weights", lambda: language(TiedLanguageModel())),
    _works("unused_parameter", lambda: regression(Branches(use_second=False)), match="No gradient"),
    _works("frozen_branch", lambda: regression(Branches(freeze_second=True))),
    _works("reused_parameter", lambda: regression(Twice())),
    _works("parameter_used_outside_its_module", lambda: regression(Outsider())),
    _works("recurrent", lambda: language(Recurrent())),
    _works("attention", lambda: language(Attention())),
    _works("dict_batch_and_dict_output", dict_batch),
    _works("namedtuple_batch", namedtuple_batch),
    _works("remembering", lambda: regression(Remembering())),
    _works("expanded_buffer", lambda: regression(ExpandedBuffer())),
    _works("dropout", lambda: regression(nn.Sequential(*small_net(), nn.Dropout(0.3)))),
    _works("batch_norm", batch_norm, match="BatchNorm in train mode", mixes_examples=True),
    _works("group_norm", group_norm),
    _works("layer_norm", lambda: regression(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 1)))),
    _works("grouped_conv_and_pooling", grouped_conv),
    _works("no_bias", lambda: regression(nn.Linear(3, 1, bias=False))),
    _works("non_contiguous_parameter", non_contiguous_parameter),
    _works("spectral_norm", spectral_norm),
    _works("sparse_gradients", sparse_gradients),
    _works("sum_loss", sum_loss, mean_loss=False),
    _works("temperature_in_the_loss", temperature_in_the_loss),
    _works("clipped_gradients", lambda: regression(small_net(), clip_grad_norm=0.1)),
    _works("two_groups", two_groups),
    _works("untrained_part", untrained_part, match="No optimizer group trains"),
    _works("momentum", trained_by(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1)),
    _works(
        "tensor_learning_rate", lambda: regression(m := small_net(), sgd(m, lr=torch.tensor(0.1)))
    ),
    _works("adamw", trained_by(torch.optim.AdamW, amsgrad=True)),
    _works("rmsprop", trained_by(torch.optim.RMSprop, centered=True)),
    _works("adagrad", trained_by(torch.optim.Adagrad)),
    _works("stream", lambda: regression(small_net(), dataset=Stream())),
    _works("weighted_sampler", weighted_sampler),
    _works("loader_with_workers", loader_with_workers),
    _works("tensor_dataset", tensor_dataset),
    _works("two_examples", lambda: regression(small_net(), dataset=rows(2), batch_size=2)),
    _works("eleven_ragged", lambda: regression(small_net(), dataset=rows(11))),
    _works("list_of_dicts", list_of_dicts),
    _works("custom_collate", custom_collate),
)

REFUSED = (
    _refused("no_examples", lambda: regression(small_net(), dataset=rows(0)), "got 0"),
    _refused("one_example", lambda: regression(small_net(), dataset=rows(1)), "got 1"),
    _refused("one_shot", lambda: regression(small_net(), dataset=iter(rows())), "list_iterator"),
    _refused("no_length", lambda: regression(small_net(), dataset=NoLength()), "got NoLength"),
    _refused("frozen_everything", frozen_everything, "got none with requires_grad=True"),
    _refused("lazy_layers", lazy_layers, "got lazy layers in Sequential"),
    _refused("line_search", line_search, "got LBFGS"),
    _refused(
        "vector_loss",
        refused_loss(lambda model, batch: model(batch[0])),
        r"float\d\d tensor of shape \(4, 1\)",
    ),
    _refused("nan_loss", refused_loss(lambda *args: mse(*args) * torch.nan), "got nan"),
    _refused("no_graph", refused_loss(lambda *args: mse(*args).detach()), "without one"),
    _refused(
        "another_model",
        refused_loss(lambda _, batch: mse(small_net(), batch)),
        "got none from a loss of",
    ),
    _refused("private_dice", private_dice, "two passes over one batch", NotRepeatable),
    _refused("doubling_collate", doubling_collate, "got 8 rows for 4 examples"),
    _refused("padding_only", padding_only, "got 0.0"),
    _refused(
        "raising_loss", refused_loss(lambda model, batch: batch["nope"]), "got TypeError: list"
    ),
)

ZOO = WORKING + REFUSED
