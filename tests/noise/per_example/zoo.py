"""Odd models, each with a batch: what the rules must get right, or refuse by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

B = 5


@dataclass(frozen=True, kw_only=True)
class Specimen:
    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    uncovered: tuple[str, ...] = ()  # names of parameters that must be refused
    paths: dict[str, str] = field(default_factory=dict)  # that must have been taken

    def __str__(self) -> str:
        return self.name


def floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(B, *shape)


def tokens(length: int = 6, count: int = 7) -> Callable[[], Tensor]:
    return lambda: torch.randint(count, (B, length))


class Calls(nn.Module):
    """A module from a function of (module, inputs)."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self._forward(self, inputs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def tied(forward: Callable[[Any, Tensor], Tensor], **options: Any) -> nn.Module:
    model = Calls(forward, embed=nn.Embedding(7, 4, **options), head=nn.Linear(4, 7))
    model.head.weight = model.embed.weight
    return model


def frozen_first() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def lora(m: Any, x: Tensor) -> Tensor:
    return m.base(x) + m.up(m.down(x))


def lora_model() -> nn.Module:
    model = Calls(lora, base=nn.Linear(4, 3), down=nn.Linear(4, 2, bias=False), up=nn.Linear(2, 3))
    model.base.requires_grad_(False)
    return model


def attention(self_attention: bool = True, **options: Any) -> nn.Module:
    options.setdefault("batch_first", True)

    def forward(m: Any, x: Tensor) -> Tensor:
        other = x if self_attention else x[:, :2].tanh()
        if not options["batch_first"]:
            x, other = x.transpose(0, 1), other.transpose(0, 1)
            return m.attend(x, other, other, need_weights=False)[0].transpose(0, 1)
        return m.attend(x, other, other, need_weights=False)[0]

    return Calls(forward, attend=nn.MultiheadAttention(4, 2, **options))


def sequence_first(m: Any, x: Tensor) -> Tensor:
    h = m.norm(m.layer(x.transpose(0, 1)))
    return m.out(F.gelu(h)).permute(1, 0, 2)


def gpt2_layer(m: Any, x: Tensor) -> Tensor:
    return torch.addmm(m.bias, x.view(-1, 4), m.weight).view(len(x), -1, 3)


def learned_positions(m: Any, ids: Tensor) -> Tensor:
    places = torch.arange(ids.shape[1])
    return m.out(torch.tanh(m.embed(ids) + m.places(places)))


def sliced_positions(m: Any, ids: Tensor) -> Tensor:
    return m.out(torch.tanh(m.embed(ids) + m.places.weight[: ids.shape[1]]))


def batched_positions(m: Any, ids: Tensor) -> Tensor:
    places = torch.arange(ids.shape[1]).unsqueeze(0).expand(len(ids), -1)
    return m.out(torch.tanh(m.embed(ids) + m.places(places)))


def positional(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Calls(
        forward, embed=nn.Embedding(7, 4), places=nn.Embedding(9, 4), out=nn.Linear(4, 3)
    )


def vision_transformer(m: Any, x: Tensor) -> Tensor:
    patches = m.patch(x).flatten(2).transpose(1, 2)
    h = torch.cat([m.cls.expand(len(x), -1, -1), patches], dim=1) + m.places
    return m.out(m.block(h)[:, 0])


def transformer_layer(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, **options)


def windows(m: Any, x: Tensor) -> Tensor:
    parts = x.view(len(x), 2, 3, 4).reshape(-1, 3, 4)
    return m.out(m.norm(m.layer(parts))).view(len(x), 2, 3, 3)


def lookalike(m: Any, x: Tensor) -> Tensor:
    """As many positions as examples, and positions first."""
    return m.out(torch.tanh(m.layer(x.transpose(0, 1)))).transpose(0, 1)


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return checkpoint(
            lambda h: self.second(torch.tanh(h)), hidden, use_reentrant=self.reentrant
        )


def twice(m: Any, x: Tensor) -> Tensor:
    return m.out(torch.tanh(m.again(torch.tanh(m.again(x)))))


def spectral() -> nn.Module:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    return layer.eval()


def conv(dims: int, *args: int, **options: Any) -> Callable[[], nn.Module]:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return lambda: kind(*args, **options)


def deconv(dims: int, *args: int, **options: Any) -> Callable[[], nn.Module]:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    return lambda: kind(*args, **options)


def _s(
    name: str, make: Callable[[], nn.Module], batch: Callable[[], Tensor], **more: Any
) -> Specimen:
    return Specimen(name=name, make=make, batch=batch, **more)


LINEAR = (
    _s("linear", lambda: nn.Linear(3, 4), floats(3), paths={"weight": "one"}),
    _s("positions_few", lambda: nn.Linear(8, 9), floats(3, 8), paths={"weight": "gram"}),
    _s("positions_many", lambda: nn.Linear(3, 4), floats(9, 3), paths={"weight": "explicit"}),
    _s("positions_in_two_dimensions", lambda: nn.Linear(3, 4), floats(2, 3, 3)),
    _s("no_bias", lambda: nn.Linear(3, 4, bias=False), floats(3)),
    _s("used_twice", lambda: Calls(twice, again=nn.Linear(3, 3), out=nn.Linear(3, 2)), floats(3)),
    _s("frozen_first", frozen_first, floats(3)),
    _s("lora", lora_model, floats(5, 4)),
    _s(
        "inplace_relu",
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
        floats(6, 3),
    ),
    _s(
        "functional",
        lambda: Calls(lambda m, x: F.linear(x, m.w, m.b), w=parameter(3, 4), b=parameter(3)),
        floats(4),
    ),
    _s("matmul", lambda: Calls(lambda m, x: x @ m.w, w=parameter(4, 3)), floats(2, 4)),
    _s(
        "matmul_of_transpose",
        lambda: Calls(lambda m, x: x @ m.w.T + m.b, w=parameter(3, 4), b=parameter(3)),
        floats(2, 4),
    ),
    _s(
        "matmul_with_vector",
        lambda: Calls(lambda m, x: x @ m.w, w=parameter(4)),
        floats(2, 4),
        uncovered=("w",),
    ),
    _s(
        "tied_autoencoder",
        lambda: Calls(lambda m, x: torch.tanh(x @ m.w.T) @ m.w, w=parameter(3, 4)),
        floats(4),
        paths={"w": "one at a time"},
    ),
    _s(
        "gpt2_layer",
        lambda: Calls(gpt2_layer, weight=parameter(4, 3), bias=parameter(3)),
        floats(6, 4),
    ),
    _s(
        "rows_cut_out",
        lambda: Calls(
            lambda m, x: F.linear(x, m.w[:2]) + 2 * F.linear(x, m.w[2:]), w=parameter(4, 3)
        ),
        floats(3),
    ),
    _s(
        "rows_overlapping",
        lambda: Calls(
            lambda m, x: F.linear(x, m.w[:3]) + 2 * F.linear(x, m.w[1:]), w=parameter(4, 3)
        ),
        floats(3),
        paths={"w": "one at a time"},
    ),
    _s(
        "sequence_first",
        lambda: Calls(
            sequence_first, layer=nn.Linear(3, 4), norm=nn.LayerNorm(4), out=nn.Linear(4, 2)
        ),
        floats(7, 3),
    ),
    _s(
        "as_long_as_the_batch",
        lambda: Calls(lookalike, layer=nn.Linear(3, 4), out=nn.Linear(4, 2)),
        floats(B, 3),
    ),
    _s(
        "windows",
        lambda: Calls(windows, layer=nn.Linear(4, 4), norm=nn.LayerNorm(4), out=nn.Linear(4, 3)),
        floats(6, 4),
    ),
    _s("checkpoint", lambda: Checkpointed(reentrant=False), floats(3)),
    _s(
        "checkpoint_reentrant",
        lambda: Checkpointed(reentrant=True),
        floats(3),
        uncovered=("second.weight", "second.bias"),
    ),
    _s(
        "bilinear",
        lambda: Calls(lambda m, x: m.layer(x, x), layer=nn.Bilinear(3, 3, 2)),
        floats(3),
        uncovered=("layer.weight", "layer.bias"),
    ),
)

CONVOLUTION = (
    _s("conv1d_same_dilated", conv(1, 3, 4, 3, padding="same", dilation=2), floats(3, 9)),
    _s("conv1d", conv(1, 3, 4, 3), floats(3, 9)),
    _s("conv2d", conv(2, 3, 4, 3, padding=1), floats(3, 6, 5)),
    _s("conv2d_few_positions", conv(2, 8, 9, 3), floats(8, 4, 4), paths={"weight": "gram"}),
    _s(
        "conv2d_strided_dilated",
        conv(2, 3, 4, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(1, 2)),
        floats(3, 9, 8),
    ),
    _s("conv2d_grouped", conv(2, 4, 6, 3, groups=2), floats(4, 5, 5)),
    _s("conv2d_depthwise", conv(2, 4, 8, 3, groups=4, padding="same"), floats(4, 5, 5)),
    _s("conv2d_even_same", conv(2, 3, 4, (2, 4), padding="same", dilation=(1, 1)), floats(3, 5, 6)),
    _s("conv3d", conv(3, 2, 3, 2, stride=2, padding=1), floats(2, 4, 5, 3)),
    *(
        _s(f"conv1d_{mode}", conv(1, 2, 3, 3, padding=2, padding_mode=mode), floats(2, 7))
        for mode in ("reflect", "circular", "replicate")
    ),
    _s("conv_transpose1d", deconv(1, 3, 4, 3, stride=2, padding=1, output_padding=1), floats(3, 5)),
    _s(
        "conv_transpose2d",
        deconv(2, 4, 6, (3, 2), stride=(2, 3), groups=2, dilation=2, output_padding=1),
        floats(4, 4, 3),
    ),
    _s("conv_transpose3d", deconv(3, 2, 3, 2), floats(2, 3, 2, 4)),
    _s(
        "channels_last",
        lambda: conv(2, 3, 4, 3)().to(memory_format=torch.channels_last),
        lambda: torch.randn(B, 3, 6, 5).to(memory_format=torch.channels_last),
    ),
    _s(
        "images_of_a_video",
        lambda: Calls(
            lambda m, x: m.norm(m.layer(x.flatten(0, 1))).unflatten(0, (len(x), -1)),
            layer=nn.Conv2d(2, 4, 3),
            norm=nn.GroupNorm(2, 4),
        ),
        floats(3, 2, 5, 5),
    ),
)

OTHER = (
    _s(
        "embedding_padding_counted_from_the_end",
        lambda: Calls(lambda m, x: F.embedding(x, m.w, padding_idx=-2), w=parameter(7, 4)),
        tokens(),
    ),
    _s(
        "embedding_by_frequency",
        lambda: nn.Embedding(7, 4, scale_grad_by_freq=True),
        tokens(),
        uncovered=("weight",),
    ),
    _s("layer_norm", lambda: nn.LayerNorm((3, 4)), floats(2, 3, 4)),
    _s("rms_norm", lambda: nn.RMSNorm(4), floats(3, 4)),
    _s("group_norm", lambda: nn.GroupNorm(2, 4), floats(4, 3, 5)),
    _s("instance_norm", lambda: nn.InstanceNorm2d(3, affine=True), floats(3, 4, 4)),
    _s(
        "instance_norm_tracking",
        lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True).eval(),
        floats(3, 4, 4),
    ),
    _s("batch_norm_evaluating", lambda: nn.BatchNorm1d(3).eval(), floats(3)),
    _s("prelu", lambda: nn.Sequential(nn.PReLU(3), nn.PReLU()), floats(3, 4)),
    _s(
        "scale_and_shift",
        lambda: Calls(
            lambda m, x: m.scale * x + m.shift - 3 * m.shift,
            scale=parameter(3),
            shift=parameter(1, 2, 1),
        ),
        floats(2, 3),
    ),
    _s("embedding", lambda: nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)), tokens()),
    _s(
        "embedding_padding",
        lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=-7), nn.Linear(4, 3)),
        tokens(),
    ),
    _s(
        "embedding_of_one",
        lambda: Calls(lambda m, x: m.embed(x[:, 0]), embed=nn.Embedding(7, 4)),
        tokens(),
    ),
    _s(
        "embedding_max_norm",
        lambda: nn.Sequential(nn.Embedding(7, 4, max_norm=1e9), nn.Linear(4, 3)),
        tokens(),
        uncovered=("0.weight",),
    ),
    _s(
        "tied",
        lambda: tied(lambda m, x: m.head(torch.tanh(m.embed(x)))),
        tokens(),
        paths={"embed.weight": "tied"},
    ),
    _s(
        "tied_padding",
        lambda: tied(lambda m, x: m.head(torch.tanh(m.embed(x))), padding_idx=2),
        tokens(),
        paths={"embed.weight": "tied"},
    ),
    _s(
        "tied_and_summed",
        lambda: tied(lambda m, x: m.head(m.embed(x)) + m.head(torch.tanh(m.embed(x)))),
        tokens(),
        paths={"embed.weight": "one at a time"},
    ),
    _s("learned_positions", positional(learned_positions), tokens()),
    _s("positions_as_long_as_the_batch", positional(learned_positions), tokens(B)),
    _s("sliced_positions", positional(sliced_positions), tokens()),
    _s("batched_positions", positional(batched_positions), tokens()),
    _s("attention", attention, floats(6, 4)),
    _s("attention_as_long_as_the_batch", attention, floats(B, 4)),
    _s("attention_across", lambda: attention(self_attention=False), floats(6, 4)),
    _s("attention_sequence_first", lambda: attention(batch_first=False), floats(6, 4)),
    _s(
        "attention_other_widths",
        lambda: Calls(
            lambda m, x: m.attend(x, x[..., :3], x[..., :2])[0],
            attend=nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True),
        ),
        floats(6, 4),
    ),
    _s(
        "attention_with_extra_keys",
        lambda: attention(add_bias_kv=True),
        floats(6, 4),
        uncovered=("attend.bias_k", "attend.bias_v"),
    ),
    _s("transformer_layer", transformer_layer, floats(6, 4)),
    _s(
        "transformer_layer_norm_first",
        lambda: transformer_layer(norm_first=True, activation="gelu"),
        floats(6, 4),
    ),
    _s(
        "vision_transformer",
        lambda: Calls(
            vision_transformer,
            patch=nn.Conv2d(1, 4, 2, stride=2),
            cls=parameter(1, 1, 4),
            places=parameter(1, 5, 4),
            block=transformer_layer(),
            out=nn.Linear(4, 3),
        ),
        floats(1, 4, 4),
    ),
    _s("spectral_norm", spectral, floats(4)),
    _s("weight_norm", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), floats(2, 4)),
    _s(
        "pruned",
        lambda: Calls(
            lambda m, x: F.linear(x, m.w * m.mask),
            w=parameter(3, 4),
            mask=nn.Buffer(torch.ones(3, 4).tril()),
        ),
        floats(4),
    ),
    _s(
        "gru",
        lambda: Calls(
            lambda m, x: m.out(m.cell(x)[0]),
            cell=nn.GRU(3, 4, batch_first=True),
            out=nn.Linear(4, 2),
        ),
        floats(5, 3),
        uncovered=("cell.weight_ih_l0", "cell.weight_hh_l0", "cell.bias_ih_l0", "cell.bias_hh_l0"),
    ),
)

ZOO = LINEAR + CONVOLUTION + OTHER
