"""Average the running statistics of batch normalisation over ranks, before a checkpoint."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from rightbatch._comm import Comm, comm_for, default_comm


@torch.no_grad()
def synchronize_batch_norm(
    model: nn.Module, *, ema_model: nn.Module | None = None, comm: Comm | None = None
) -> None:
    """Average the running statistics of a model's BatchNorm layers over all ranks, in place.

    Without this, each rank keeps statistics of the examples that it saw, and a checkpoint holds
    those of one rank. Means are averaged; variances by the law of total variance, so that the
    spread between ranks counts: ``mean_r(variance_r) + mean_r((mean_r - mean)^2)``. Every rank
    weighs the same, except that one which has seen no batch does not count, and that cumulative
    averages (``momentum=None``) weigh by their batches. One process changes nothing.

    Traps: every rank must call this, not only the one that saves. `DistributedDataParallel` with
    ``broadcast_buffers=True``, its default, overwrites the statistics of all ranks with those of
    rank 0 before each forward pass, so that only the latest batch of the others is left to average:
    pass ``broadcast_buffers=False``. Averaged weights have other activations than the trained
    ones: where that matters, `torch.optim.swa_utils.update_bn` measures their statistics anew.

    Args:
        model: Whose layers, ordinary, ghost or SyncBatchNorm, are averaged; wrapped or not.
        ema_model: Its averaged twin, such as `torch.optim.swa_utils.AveragedModel`: its own
            statistics are averaged over ranks too. Update it before this call, not after.
        comm: The ranks; default: those of the model's wrapper, else of the default process group.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(3))
        >>> synchronize_batch_norm(model)  # alone: nothing to average
        >>> model[0].running_var.tolist()
        [1.0, 1.0, 1.0]
    """
    if comm is None:
        comm = comm_for(model)
        device = next((part.device for part in model.parameters()), None)
        comm = comm if comm.world_size > 1 else default_comm(device)
    if comm.world_size == 1:
        return
    layers: dict[_BatchNorm, None] = {}  # in order, shared ones once
    for part in (model, ema_model):
        layers.update(dict.fromkeys(_tracking(part)))
    if layers:
        _average(list(layers), comm)


def _tracking(model: nn.Module | None) -> list[_BatchNorm]:
    if model is None:
        return []
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and not is_lazy(module.running_mean)  # it has seen nothing
    ]


def _average(layers: list[_BatchNorm], comm: Comm) -> None:
    """Replace the statistics of all layers in two rounds: means, then spreads around them."""
    sizes = [layer.num_features for layer in layers]
    means = _joined([layer.running_mean for layer in layers])
    variances = _joined([layer.running_var for layer in layers])
    weights = means.new_tensor([_weight(layer) for layer in layers])
    counts = means.new_tensor([_num_batches(layer) for layer in layers])
    each = torch.repeat_interleave(weights, torch.tensor(sizes, device=weights.device))

    heard = comm.sum(torch.cat([each * means, each, counts]))
    total = heard[len(means) : 2 * len(means)]
    mean = heard[: len(means)] / total.clamp(min=1.0)
    spread = comm.sum(each * (variances + (means - mean).square())) / total.clamp(min=1.0)

    seen = (heard[2 * len(means) :] / comm.world_size).round().long()
    pooled = zip(mean.split(sizes), spread.split(sizes), total.split(sizes), seen, strict=True)
    for layer, (new_mean, new_variance, weight, num_batches) in zip(layers, pooled, strict=True):
        if weight[0] == 0:  # no rank has seen a batch
            continue
        _overwrite(layer.running_mean, new_mean)
        _overwrite(layer.running_var, new_variance)
        _overwrite(layer.num_batches_tracked, num_batches)


def _joined(buffers: list[Tensor | None]) -> Tensor:
    present = [buffer for buffer in buffers if buffer is not None]
    return torch.cat([buffer.double().to(present[0].device) for buffer in present])


def _overwrite(buffer: Tensor | None, value: Tensor) -> None:
    if buffer is not None:
        buffer.copy_(value)


def _num_batches(layer: _BatchNorm) -> float:
    return 1.0 if layer.num_batches_tracked is None else float(layer.num_batches_tracked)


def _weight(layer: _BatchNorm) -> float:
    """How much a rank's statistics count: by its batches where they are a plain average."""
    num_batches = _num_batches(layer)
    return num_batches if layer.momentum is None else float(num_batches > 0)
