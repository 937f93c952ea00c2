"""Shakespeare, letter by letter: the smallest honest language model."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.errors import DataUnavailable
from rightbatch.task import Task
from rightbatch.tasks.building import default_device, seeded_float32
from rightbatch.tasks.data_files import DataFile, locate
from rightbatch.tasks.rows import Batch, Rows, evaluate_rows, take

SHAKESPEARE_FILE = DataFile(
    name="tinyshakespeare.txt",
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
_CONTEXT = 128  # characters
_WIDTH, _HEADS, _LAYERS = 128, 4, 4
_TRAIN_SHARE = 0.9
_NO_TARGET = -100  # what cross_entropy leaves out


def shakespeare(*, seed: int = 0, device: torch.device | str | None = None) -> Task:
    """Build the Shakespeare task: predict the next character, 7,843 windows of 128 characters.

    A pre-norm transformer of 4 layers, width 128 and 4 heads: 818,048 parameters; AdamW with
    learning rate 0.001 and weight decay 0.01; batch size 32. The windows follow each other
    without overlap, so the last one is shorter, and the loss averages over characters: the
    task's ``weight`` counts them. `Task.evaluate` is the loss in nats per character on the last
    tenth of the text: lower is better.

    Shape letters: N windows, T characters, C channels, H heads, D channels of a head.

    Args:
        seed: Of the initial weights.
        device: Where to train; the accelerator if there is one.

    Raises:
        DataUnavailable: If ``tinyshakespeare.txt`` cannot be found, downloaded or read.
    """
    codes, vocabulary = _encode(_read_text(locate(SHAKESPEARE_FILE)))
    boundary = round(_TRAIN_SHARE * len(codes))
    held_out = _windows(codes[boundary:])
    with seeded_float32(seed):
        model = _Transformer(vocabulary).to(device or default_device())
    return Task(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01),
        _windows(codes[:boundary]),
        _loss,
        weight=_count_targets,
        collate_fn=take,
        evaluate=lambda trained: evaluate_rows(trained, held_out, _summed_loss),
        batch_size=32,
        name="shakespeare",
    )


class _Transformer(nn.Module):
    """Characters in, logits of the next character out; the embedding is also the last layer."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, _WIDTH)
        self.positions = nn.Embedding(_CONTEXT, _WIDTH)
        self.blocks = nn.Sequential(*(_Block() for _ in range(_LAYERS)))
        self.norm = nn.LayerNorm(_WIDTH)
        for table in (self.characters, self.positions):
            # Logits of a tied embedding start near zero only if its rows are short.
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, characters_NT: Tensor) -> Tensor:  # noqa: N803
        length = characters_NT.shape[1]
        x_NTC = self.characters(characters_NT) + self.positions.weight[:length]  # noqa: N806
        return F.linear(self.norm(self.blocks(x_NTC)), self.characters.weight)


class _Block(nn.Module):
    """Attention, then a perceptron, each on normed inputs and added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(_WIDTH)
        self.query_key_value = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.attention_out = nn.Linear(_WIDTH, _WIDTH)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(_WIDTH),
            nn.Linear(_WIDTH, 4 * _WIDTH),
            nn.GELU(),
            nn.Linear(4 * _WIDTH, _WIDTH),
        )

    def forward(self, x_NTC: Tensor) -> Tensor:  # noqa: N803
        x_NTC = x_NTC + self._attend(self.attention_norm(x_NTC))  # noqa: N806
        return x_NTC + self.perceptron(x_NTC)

    def _attend(self, x_NTC: Tensor) -> Tensor:  # noqa: N803
        projected = self.query_key_value(x_NTC).unflatten(-1, (3, _HEADS, -1))
        q_NHTD, k_NHTD, v_NHTD = projected.transpose(1, 3).unbind(2)  # noqa: N806
        mixed_NHTD = F.scaled_dot_product_attention(  # noqa: N806
            q_NHTD, k_NHTD, v_NHTD, is_causal=True
        )
        return self.attention_out(mixed_NHTD.transpose(1, 2).flatten(start_dim=2))


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataUnavailable(
            f"{str(path)!r} must be a text in UTF-8, got {type(error).__name__}: {error}. "
            "Replace it by the public tinyshakespeare.txt."
        ) from error
    least = 40 * _CONTEXT  # a batch of windows to train on, and a few held out
    if len(text) < least:
        raise DataUnavailable(
            f"{str(path)!r} must hold at least {least} characters, got {len(text)}. "
            "It is truncated: replace it by the public tinyshakespeare.txt."
        )
    return text


def _encode(text: str) -> tuple[Tensor, int]:
    """Number the characters of a text by their place in its alphabet; also count the alphabet."""
    alphabet = {character: code for code, character in enumerate(sorted(set(text)))}
    return torch.tensor([alphabet[character] for character in text]), len(alphabet)


def _windows(codes: Tensor) -> Rows:
    """Cut a text into windows of inputs and, one character later, targets."""
    count = -(-(len(codes) - 1) // _CONTEXT)
    padding = count * _CONTEXT - (len(codes) - 1)
    inputs = F.pad(codes[:-1], (0, padding)).view(count, _CONTEXT)
    targets = F.pad(codes[1:], (0, padding), value=_NO_TARGET).view(count, _CONTEXT)
    return Rows(inputs, targets)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def _count_targets(batch: Batch) -> float:
    return float((batch[1] != _NO_TARGET).sum())


def _summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    count = _count_targets(batch)
    total = _loss(model, batch) * count
    return torch.stack([total, total.new_tensor(count)])
