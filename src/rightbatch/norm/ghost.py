"""Batch normalisation over ghosts: parts of a batch of one size, while the batch itself may grow.

The ``k`` ghosts of one size are interleaved: ghost ``j`` holds the examples ``j``, ``j + k``,
``j + 2 k``, ... They can then be read as ``k`` times as many channels without moving a value, so
that one call of the ordinary kernel normalises them all. Where sizes must differ, the larger
ghosts share the first examples of the batch, and the others the rest.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from rightbatch.norm.moments import Moments, pooled


def split_into_ghosts(batch_size: int, ghost_size: int) -> list[tuple[int, int]]:
    """Share a batch out among ghosts whose sizes differ by one at most.

    There are ``batch_size / ghost_size`` ghosts, rounded, and never so many that one would hold a
    single example. A remainder is spread over all of them.

    Args:
        batch_size: Examples to share out.
        ghost_size: Wanted examples per ghost.

    Returns:
        Pairs (number of ghosts, examples in each), the larger ghosts first; nothing of zero ghosts.

    Example:
        >>> split_into_ghosts(256, 64), split_into_ghosts(257, 64)
        ([(4, 64)], [(1, 65), (3, 64)])
        >>> split_into_ghosts(3, 2)
        [(1, 3)]
    """
    rounded = (2 * batch_size + ghost_size) // (2 * ghost_size)
    num_ghosts = max(1, min(rounded, batch_size // 2))
    size, num_larger = batch_size // num_ghosts, batch_size % num_ghosts  # compiled: no divmod
    sections = [(num_larger, size + 1), (num_ghosts - num_larger, size)]
    return [section for section in sections if section[0] > 0]


class GhostBatchNorm(_BatchNorm):
    """Batch normalisation by the statistics of ghosts; use the form for 1d, 2d or 3d data.

    In training, each ghost of about ``ghost_size`` examples is normalised by its own mean and
    variance, so that the noise which normalisation adds stays the same while the batch size
    changes. In evaluation this is ordinary batch normalisation, to the bit.

    The running statistics are those that ordinary batch normalisation would keep of the same
    batches: one update per forward pass, with the mean and the unbiased variance of all its
    examples, pooled from the ghosts by the law of total variance. ``momentum`` is therefore the
    weight of a *batch*, whatever the number ``k`` of its ghosts. One update per ghost would forget
    ``(1 - momentum)^k`` of the past instead, more the larger the batch, and would weigh the last
    ghost the most; its decay is had with ``momentum=1 - (1 - momentum)**k``.

    Traps: ghosts are parts of a forward pass, so a micro-batch below ``ghost_size`` is one ghost.
    Ghosts are interleaved (every k-th example), not consecutive. Where examples must share
    statistics, as two views of one image, neighbours do not. With ``subsample=True`` statistics are
    those of the first ghost alone, running ones too. ``SyncBatchNorm.convert_sync_batchnorm`` takes
    this for an ordinary layer and replaces it. On a CPU, 1d data with more than some 2000 ghosts
    times channels, and channels that are innermost, take up to twice as long as ordinary batch
    normalisation.

    Args:
        num_features: Channels.
        ghost_size: Wanted examples per ghost, at least 2. A remainder is spread over the ghosts;
            see `split_into_ghosts`.
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics; ``None``: their cumulative average.
        affine: Whether to learn a scale and a shift per channel.
        track_running_stats: Whether to keep running statistics; without them, evaluation
            normalises by the statistics of the whole batch, as ordinary batch normalisation does.
        subsample: Normalise the whole batch by the statistics of its first ghost.
        device: Of the parameters and buffers.
        dtype: Of the parameters and buffers.

    Raises:
        TypeError: If this class itself is made, which does not know the shape of its inputs.
        ValueError: If ``ghost_size`` is below 2, or, in a forward pass, the input has another
            number of dimensions or channels, or one value per channel.

    Example:
        >>> norm = GhostBatchNorm1d(1, ghost_size=2, affine=False)
        >>> output = norm(torch.tensor([[0.0], [10.0], [2.0], [30.0]]))  # ghosts: 0, 2; 10, 30
        >>> output.flatten().round(decimals=3).tolist()
        [-1.0, -1.0, 1.0, 1.0]
        >>> round(norm.running_mean.item(), 3)  # 0.1 of the mean, 10.5
        1.05

    References:
        Hoffer, Hubara and Soudry (2017), Train longer, generalize better,
        https://arxiv.org/abs/1705.08741, Algorithm 1.
    """

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        subsample: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if type(self) is GhostBatchNorm:
            raise TypeError(
                "the form must match the data's dimensions, got GhostBatchNorm, which is what "
                "they have in common. Use GhostBatchNorm1d, 2d or 3d."
            )
        check_ghost_size(ghost_size)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self.ghost_size = ghost_size
        self.subsample = subsample

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch: per ghost in training, by running statistics in evaluation."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        sections = split_into_ghosts(len(input), self.ghost_size)
        if sections[0][0] == 1 and len(sections) == 1:
            return super().forward(input)  # one ghost: the whole batch
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"the input must have `num_features` = {self.num_features} channels, got an input "
                f"of {tuple(input.shape)}. Each channel has its own statistics: make the layer "
                "with the number that it is given."
            )
        if self.subsample:
            output, moments = self._by_first_ghost(input, sum(number for number, _ in sections))
        else:
            output, moments = self._by_each_ghost(input, sections)
        self._track(moments)
        return output

    def _by_each_ghost(
        self, batch: Tensor, sections: list[tuple[int, int]]
    ) -> tuple[Tensor, list[Moments]]:
        # Splitting off the whole would copy its gradient.
        lengths = [number * size for number, size in sections]
        parts = batch.split(lengths) if len(lengths) > 1 else [batch]
        outputs: list[Tensor] = []
        moments: list[Moments] = []
        for part, (number, _) in zip(parts, sections, strict=True):
            values = part.numel() // (number * self.num_features)
            kept = self._moments(number, values)
            of_channels_last = part.dim() > 2 and not part.is_contiguous() and _is_last(part)
            normalise = self._rows if of_channels_last else self._as_channels
            outputs.append(normalise(part, number, kept))
            if kept is not None:
                moments.append(kept)
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), moments

    def _moments(self, num_ghosts: int, values: int) -> Moments | None:
        """Make room for the moments of ghosts, if running statistics are kept."""
        if self.running_mean is None:
            return None
        mean = self.running_mean.new_zeros(num_ghosts, self.num_features)
        return Moments(mean=mean, variance=torch.zeros_like(mean), values=values)

    def _as_channels(self, part: Tensor, num_ghosts: int, kept: Moments | None) -> Tensor:
        """Read the ghosts as more channels: for interleaved ghosts that moves nothing."""
        as_channels = part.reshape(-1, num_ghosts * self.num_features, *part.shape[2:])
        return F.batch_norm(
            as_channels,
            None if kept is None else kept.mean.view(-1),
            None if kept is None else kept.variance.view(-1),
            _for_each(self.weight, num_ghosts),
            _for_each(self.bias, num_ghosts),
            training=True,
            momentum=1.0,  # the moments of this batch replace the zeros
            eps=self.eps,
        ).reshape(part.shape)

    def _rows(self, part: Tensor, num_ghosts: int, kept: Moments | None) -> Tensor:
        """Take ghost by ghost: where channels are innermost, ghosts cannot be read as channels."""
        inner = part.movedim(1, -1)
        by_ghost = inner.reshape(-1, num_ghosts, inner[0].numel()).unbind(1)
        outputs = [
            F.batch_norm(
                ghost.reshape(-1, self.num_features),
                None if kept is None else kept.mean[index],
                None if kept is None else kept.variance[index],
                self.weight,
                self.bias,
                training=True,
                momentum=1.0,
                eps=self.eps,
            ).reshape(ghost.shape)
            for index, ghost in enumerate(by_ghost)
        ]
        return torch.stack(outputs, 1).reshape(inner.shape).movedim(-1, 1)

    def _by_first_ghost(self, batch: Tensor, num_ghosts: int) -> tuple[Tensor, list[Moments]]:
        ghost = batch[::num_ghosts]
        if ghost.dtype in (torch.float16, torch.bfloat16):
            ghost = ghost.float()  # as the kernels do
        axes = [axis for axis in range(ghost.dim()) if axis != 1]
        variance, mean = torch.var_mean(ghost, axes, correction=0)
        scale = torch.rsqrt(variance + self.eps)
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        shape = [-1] + [1] * (batch.dim() - 2)
        output = (batch * scale.view(shape) + shift.view(shape)).to(batch.dtype)
        values = ghost.numel() // self.num_features
        unbiased = variance.detach() * (values / (values - 1))
        return output, [Moments(mean=mean.detach()[None], variance=unbiased[None], values=values)]

    @torch.no_grad()
    def _track(self, moments: list[Moments]) -> None:
        """Update the running statistics once, as for one batch."""
        if self.running_mean is None or self.running_var is None:
            return
        weight = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if weight is None:
                weight = 1.0 / float(self.num_batches_tracked)
        mean, variance = pooled(moments)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight or 0.0)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight or 0.0)

    def extra_repr(self) -> str:
        """Say the options, as `print` shows them."""
        subsample = ", subsample=True" if self.subsample else ""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}{subsample}"


@final
class GhostBatchNorm1d(GhostBatchNorm, nn.BatchNorm1d):
    """Ghost batch normalisation of ``[examples, channels]`` or ``[examples, channels, length]``.

    See `GhostBatchNorm`; parameters, buffers and state are those of `torch.nn.BatchNorm1d`.
    """


@final
class GhostBatchNorm2d(GhostBatchNorm, nn.BatchNorm2d):
    """Ghost batch normalisation of ``[examples, channels, height, width]``.

    See `GhostBatchNorm`; parameters, buffers and state are those of `torch.nn.BatchNorm2d`.
    """


@final
class GhostBatchNorm3d(GhostBatchNorm, nn.BatchNorm3d):
    """Ghost batch normalisation of ``[examples, channels, depth, height, width]``.

    See `GhostBatchNorm`; parameters, buffers and state are those of `torch.nn.BatchNorm3d`.
    """


def check_ghost_size(ghost_size: Any) -> None:
    """Refuse a size of ghosts that has no statistics.

    Raises:
        ValueError: If it is not a whole number of at least 2.
    """
    if not isinstance(ghost_size, int) or isinstance(ghost_size, bool) or ghost_size < 2:
        raise ValueError(
            f"`ghost_size` must be a whole number of at least 2, got {ghost_size!r}. A ghost of "
            "one example has no spread between examples: use InstanceNorm or GroupNorm for that."
        )


def _for_each(parameter: Tensor | None, num_ghosts: int) -> Tensor | None:
    """Repeat a parameter for every ghost; `Tensor.repeat` is several times slower."""
    return None if parameter is None else parameter.expand(num_ghosts, -1).reshape(-1)


def _is_last(tensor: Tensor) -> bool:
    """Whether the channels are innermost in memory."""
    return tensor.movedim(1, -1).is_contiguous()
