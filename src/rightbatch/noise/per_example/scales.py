"""Rules for scales and shifts: normalisations, biases added by hand, learned positions, PReLU.

Their gradients are no larger than what they are computed from, so they are built.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rightbatch.noise.per_example.layout import FIRST, Kind
from rightbatch.noise.per_example.rules import Call, NotUnderstood, Wanted, norm_rule, summed
from rightbatch.noise.per_example.uses import Dense, OneRow, Use, wide


@norm_rule(F.layer_norm)
def layer_norm(call: Call) -> Wanted:
    """Scale and shift of each element of the normalised shape."""
    inputs, shape, weight, bias, eps = call.bind(
        "input", "normalized_shape", "weight", "bias", "eps"
    )
    eps = 1e-5 if eps is None else eps
    return _elementwise(
        call,
        inputs,
        len(shape),
        weight,
        bias,
        lambda rows: F.layer_norm(rows, list(shape), None, None, eps),
    )


@norm_rule(*([F.rms_norm] if hasattr(F, "rms_norm") else []))
def rms_norm(call: Call) -> Wanted:
    """Scale of each element of the normalised shape."""
    inputs, shape, weight, eps = call.bind("input", "normalized_shape", "weight", "eps")
    if eps is None:  # that of the type the layer ran in, not of the one that we compute in
        eps = torch.finfo(inputs.dtype).eps
    return _elementwise(
        call,
        inputs,
        len(shape),
        weight,
        None,
        lambda rows: F.rms_norm(rows, list(shape), None, eps),
    )


def _elementwise(
    call: Call,
    inputs: Tensor,
    dims: int,
    weight: Any,
    bias: Any,
    normalized: Callable[[Tensor], Tensor],
) -> Wanted:
    call.anywhere = dims
    wanted: Wanted = []
    if call.tracked(weight):
        kept = call.keep(inputs)

        def make(grads: Tensor) -> Dense:
            products = normalized(kept()) * grads
            return Dense(summed(products, range(1, products.dim() - dims)))

        wanted.append((weight, make))
    if call.tracked(bias):
        wanted.append((bias, lambda grads: Dense(summed(grads, range(1, grads.dim() - dims)))))
    return wanted


@norm_rule(F.group_norm)
def group_norm(call: Call) -> Wanted:
    """Scale and shift of each channel."""
    inputs, groups, weight, bias, eps = call.bind("input", "num_groups", "weight", "bias", "eps")
    eps = 1e-5 if eps is None else eps
    return _channelwise(
        call, inputs, weight, bias, lambda rows: F.group_norm(rows, groups, None, None, eps)
    )


@norm_rule(F.instance_norm)
def instance_norm(call: Call) -> Wanted:
    """Scale and shift of each channel; by running statistics where a module evaluates."""
    inputs, mean, var, weight, bias, own, _, eps = call.bind(
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "use_input_stats",
        "momentum",
        "eps",
    )
    eps = 1e-5 if eps is None else eps
    if own is False:
        return _by_statistics(call, inputs, mean, var, weight, bias, eps)
    if inputs.dim() < 3:
        raise NotUnderstood("InstanceNorm of one example without a batch")
    channels = inputs.shape[1]
    return _channelwise(
        call, inputs, weight, bias, lambda rows: F.group_norm(rows, channels, None, None, eps)
    )


@norm_rule(F.batch_norm)
def batch_norm(call: Call) -> Wanted:
    """Scale and shift of each channel by running statistics; in train mode examples mix."""
    inputs, mean, var, weight, bias, training, _, eps = call.bind(
        "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"
    )
    if training or mean is None:
        raise NotUnderstood("BatchNorm by the statistics of its batch mixes examples")
    eps = 1e-5 if eps is None else eps
    return _by_statistics(call, inputs, mean, var, weight, bias, eps)


def _by_statistics(
    call: Call, inputs: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any, eps: float
) -> Wanted:
    mean, var = wide(mean.detach().clone()), wide(var.detach().clone())
    return _channelwise(
        call,
        inputs,
        weight,
        bias,
        lambda rows: F.batch_norm(rows, mean, var, None, None, training=False, eps=eps),
    )


def _channelwise(
    call: Call, inputs: Tensor, weight: Any, bias: Any, normalized: Callable[[Tensor], Tensor]
) -> Wanted:
    wanted: Wanted = []
    if call.tracked(weight):
        kept = call.keep(inputs)

        def make(grads: Tensor) -> Dense:
            rows = kept()
            products = normalized(rows.flatten(0, 1)).view_as(rows) * grads
            return Dense(_over_space(products))

        wanted.append((weight, make))
    if call.tracked(bias):
        wanted.append((bias, lambda grads: Dense(_over_space(grads))))
    return wanted


def _over_space(tensor: Tensor) -> Tensor:
    """Sum [examples, rows, channels, *space] to [examples, channels]."""
    return summed(tensor, [d for d in range(1, tensor.dim()) if d != 2])


@norm_rule(torch.prelu, F.prelu)
def prelu(call: Call) -> Wanted:
    """Slope of the negative side, of each channel or of all."""
    inputs, weight = call.bind("input", "weight")
    kept, count = call.keep(inputs), weight.numel()

    def make(grads: Tensor) -> Dense:
        products = kept().clamp_max(0) * grads
        if count == 1:
            return Dense(products.flatten(1).sum(1, keepdim=True))
        return Dense(_over_space(products))

    return [(weight, make)]


@norm_rule(torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__)
def add(call: Call) -> Wanted:
    """``x + p``, with broadcasting."""
    return _shift(call, 1.0)


@norm_rule(torch.sub, Tensor.sub, Tensor.sub_, Tensor.__sub__)
def subtract(call: Call) -> Wanted:
    """``x - p`` or ``p - x``."""
    return _shift(call, -1.0)


def _shift(call: Call, sign: float) -> Wanted:
    left, right = call.bind("input", "other")
    factor = sign * call.kwargs.get("alpha", 1)
    wanted: Wanted = []
    for weight, times in ((left, 1.0), (right, factor)):
        if call.tracked(weight):
            reduce = _to_shape_of(call, weight)
            wanted.append((weight, lambda grads, r=reduce, f=times: r(grads * f)))
    return wanted


@norm_rule(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def multiply(call: Call) -> Wanted:
    """``x * p``, with broadcasting."""
    left, right = call.bind("input", "other")
    if call.tracked(left) == call.tracked(right):
        raise NotUnderstood("a product of two parameters")
    weight, data = (left, right) if call.tracked(left) else (right, left)
    reduce = _to_shape_of(call, weight)
    if not isinstance(data, Tensor) or data.dim() != call.output.dim():
        raise NotUnderstood("a product that spreads its input")
    kept = call.keep(data)
    return [(weight, lambda grads: reduce(kept() * grads))]


@norm_rule(torch.cat, torch.concat)
def concatenate(call: Call) -> Wanted:
    """A parameter beside each example's inputs, such as a class token."""
    tensors, dim = call.bind("tensors", "dim")
    dim = (dim or 0) % call.output.dim()
    if dim == 0 or call.layouts.of(call.output) != FIRST:
        raise NotUnderstood("a parameter put beside other examples")
    wanted: Wanted = []
    start = 0
    for tensor in tensors:
        if call.tracked(tensor):
            place, length = start, tensor.shape[dim]
            wanted.append(
                (
                    tensor,
                    lambda grads, place=place, length=length: OneRow(
                        grads[:, 0].narrow(dim, place, length), call.batch_size
                    ),
                )
            )
        start += tensor.shape[dim]
    return wanted


def _to_shape_of(call: Call, weight: Tensor) -> Callable[[Tensor], Use]:
    """Prepare to sum gradients over what a weight was spread over."""
    call.anywhere = 0
    dims, layout = call.output.dim(), call.layouts.of(call.output)
    shape = [1] * (dims - weight.dim()) + list(weight.shape)
    mine = shape.pop(layout.dim)
    if mine != 1 and (layout.kind is not Kind.AT or layout.dim or mine != call.batch_size):
        raise NotUnderstood("a parameter with a row for each example")

    def reduce(grads: Tensor) -> Use:
        over = [1] + [d + 2 for d, n in enumerate(shape) if n == 1]
        each = grads.sum(over).reshape(len(grads), *_without_batch(weight.shape, mine, dims))
        if mine != 1:
            return OneRow(each, mine)
        return Dense(each.reshape(len(grads), *weight.shape))

    return reduce


def _without_batch(shape: Sequence[int], mine: int, dims: int) -> list[int]:
    return list(shape[1:]) if mine != 1 and len(shape) == dims else list(shape)
