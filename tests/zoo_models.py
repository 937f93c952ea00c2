"""The odd models of the zoo."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.unembed = nn.Linear(4, 7, bias=False)
        self.unembed.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.unembed(torch.tanh(self.embed(tokens)))


class Branches(nn.Module):
    """Two branches, of which the second may be frozen or left out."""

    def __init__(self, *, use_second: bool = True, freeze_second: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 1), nn.Linear(3, 1)
        self.second.requires_grad_(not freeze_second)
        self.use_second = use_second

    def forward(self, inputs: Tensor) -> Tensor:
        return self.first(inputs) + (self.second(inputs) if self.use_second else 0)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.again, self.out = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.tanh(self.again(torch.tanh(self.again(inputs)))))


class Outsider(nn.Module):
    """Uses a layer's parameter without calling the layer, so that module hooks miss it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.layer.weight.T + self.layer.bias


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=0)
        self.cell = nn.GRU(4, 4, batch_first=True)
        self.out = nn.Linear(4, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.cell(self.embed(tokens))[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=0)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embed(tokens))
        return self.out(x + self.attend(x, x, x, need_weights=False)[0])


class DictModel(nn.Module):
    """Takes keywords, returns a dictionary, as models of language libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        outputs = self.layer(inputs)
        return {"outputs": outputs, "loss": F.mse_loss(outputs, targets)}


class Remembering(nn.Module):
    """Counts its calls and averages its inputs, in plain attributes and in a late buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.calls = 0
        self.history: list[float] = []
        self.average = torch.zeros(3)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(inputs.mean().item())
        self.average.lerp_(inputs.detach().mean(0), 0.1)
        if not hasattr(self, "late"):
            self.register_buffer("late", inputs.detach().clone())
        return self.layer(inputs)


class ExpandedBuffer(nn.Module):
    """Holds a buffer of three elements that are one number in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("mask", torch.ones(1).expand(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs * self.get_buffer("mask"))
