"""Rules for linear maps, convolutions and tables."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rightbatch.noise.per_example.kernels import Convolved
from rightbatch.noise.per_example.outer import Outer
from rightbatch.noise.per_example.rules import Call, NotUnderstood, Wanted, float_matrix, norm_rule
from rightbatch.noise.per_example.tables import Rows
from rightbatch.noise.per_example.uses import Dense


@norm_rule(F.linear)
def linear(call: Call) -> Wanted:
    """``x w' + b``, with any number of positions."""
    inputs, weight, bias = call.bind("input", "weight", "bias")
    return _affine(call, inputs, weight, bias, transposed=False)


@norm_rule(torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
def matmul(call: Call) -> Wanted:
    """``x w``."""
    inputs, weight = call.bind("input", "other")
    if weight is None:
        weight = call.kwargs.get("mat2")
    return _affine(call, inputs, weight, None, transposed=True)


@norm_rule(torch.addmm)
def addmm(call: Call) -> Wanted:
    """``b + x w``, as GPT-2's layers compute it."""
    bias, inputs, weight = call.bind("input", "mat1", "mat2")
    if call.kwargs.get("beta", 1) != 1 or call.kwargs.get("alpha", 1) != 1:
        raise NotUnderstood("addmm with factors")
    return _affine(call, inputs, weight, bias, transposed=True)


def _affine(call: Call, inputs: Tensor, weight: Any, bias: Any, *, transposed: bool) -> Wanted:
    call.anywhere = 1
    if inputs.dim() < 2 or (call.tracked(weight) and weight.dim() != 2):
        raise NotUnderstood("not a matrix applied to the rows of a batch")
    wanted: Wanted = []
    if call.tracked(weight):
        kept, shape = call.keep(inputs), weight.shape
        wanted.append(
            (
                weight,
                lambda grads: Outer(
                    float_matrix(kept()), float_matrix(grads), shape, transposed=transposed
                ),
            )
        )
    if call.tracked(bias):
        if bias.dim() != 1:
            raise NotUnderstood("a bias that is not a vector")
        if bias.shape[0] != call.output.shape[-1]:
            raise NotUnderstood("a bias that is spread over outputs")
        wanted.append((bias, lambda grads: Dense(float_matrix(grads).sum((1, 2)))))
    return wanted


@norm_rule(F.embedding)
def embedding(call: Call) -> Wanted:
    """Rows of a table, looked up."""
    ids, weight, padding, max_norm, _, by_frequency = call.bind(
        "input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"
    )
    if max_norm is not None or by_frequency:
        raise NotUnderstood("an embedding with max_norm or scale_grad_by_freq")
    call.anywhere = 0
    kept, num_rows = call.keep(ids), weight.shape[0]

    def make(grads: Tensor) -> Rows:
        tokens = kept().flatten(1)
        rows = grads.reshape(*tokens.shape, -1)
        if padding is not None:
            rows = rows.masked_fill((tokens == padding % num_rows)[..., None], 0)
        return Rows(tokens, rows, num_rows)

    return [(weight, make)]


@norm_rule(torch.conv1d, torch.conv2d, torch.conv3d)
def convolution(call: Call) -> Wanted:
    """Convolutions; padding modes other than zeros pad before."""
    inputs, weight, bias, stride, padding, dilation, groups = call.bind(
        "input", "weight", "bias", "stride", "padding", "dilation", "groups"
    )
    dims = weight.dim() - 2
    stride, dilation = _each(stride, dims, 1), _each(dilation, dims, 1)
    before, after = _paddings(padding, weight.shape[2:], dilation)
    if inputs.dim() != dims + 2:
        raise NotUnderstood("a convolution of one image without a batch")
    wanted: Wanted = []
    if call.tracked(weight):
        kept, shape = call.keep(inputs), weight.shape
        uneven = [
            extra
            for a, b in zip(reversed(before), reversed(after), strict=True)
            for extra in (0, b - a)
        ]

        def make(grads: Tensor) -> Convolved:
            images = kept()
            if any(uneven):
                images = F.pad(images, uneven)
            return Convolved(
                images,
                grads,
                shape,
                stride=stride,
                padding=before,
                dilation=dilation,
                groups=groups or 1,
            )

        wanted.append((weight, make))
    return wanted + _channel_bias(call, bias)


@norm_rule(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def transposed_convolution(call: Call) -> Wanted:
    """The same with inputs and output gradients in each other's places."""
    inputs, weight, bias, stride, padding, _, groups, dilation = call.bind(
        "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"
    )
    dims = weight.dim() - 2
    if inputs.dim() != dims + 2:
        raise NotUnderstood("a convolution of one image without a batch")
    wanted: Wanted = []
    if call.tracked(weight):
        kept, shape = call.keep(inputs), weight.shape
        wanted.append(
            (
                weight,
                lambda grads: Convolved(
                    grads,
                    kept(),
                    shape,
                    stride=_each(stride, dims, 1),
                    padding=_each(padding, dims, 0),
                    dilation=_each(dilation, dims, 1),
                    groups=groups or 1,
                ),
            )
        )
    return wanted + _channel_bias(call, bias)


def _channel_bias(call: Call, bias: Any) -> Wanted:
    if not call.tracked(bias):
        return []
    return [(bias, lambda grads: Dense(grads.flatten(3).sum((1, 3))))]


def _each(value: Any, dims: int, default: int) -> list[int]:
    """Spell a setting out for every dimension."""
    if value is None:
        value = default
    values = list(value) if isinstance(value, Sequence) else [value]
    return values * dims if len(values) == 1 else values


def _paddings(
    padding: Any, kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the zeros before and after, in every dimension.

    Example:
        >>> _paddings("same", (4,), (1,)), _paddings(2, (3, 3), (1, 1))
        (([1], [2]), ([2, 2], [2, 2]))
    """
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [t // 2 for t in total], [t - t // 2 for t in total]
    each = _each(0 if padding == "valid" else padding, len(kernel), 0)
    return each, each
