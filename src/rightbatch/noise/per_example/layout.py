"""Where a tensor holds its examples: followed from the model's inputs through its operations.

The inputs hold one example per entry of dimension 0. Transposes and reshapes move them; most other
operations leave them where they are. What cannot be told is lost, and a parameter that meets a
lost tensor counts as not understood: a length that happens to equal the batch size must not
pass for the batch.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, final

from torch import Tensor


class Kind(Enum):
    """How rows belong to examples."""

    AT = "examples along one dimension"
    BLOCKS = "dimension 0 holds the rows of the first example, then of the second, ..."
    STRIPES = "dimension 0 holds the first row of every example, then the second, ..."
    CONSTANT = "the same for every example"
    LOST = "cannot be told"


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """Where the examples are."""

    kind: Kind
    dim: int = 0

    def rows(self, tensor: Tensor, batch_size: int, examples: int) -> Tensor | None:
        """Return the first examples' rows as [examples, rows, ...]: a view, or ``None``.

        Example:
            >>> import torch
            >>> flat = torch.arange(6)  # 2 examples of 3 rows
            >>> Layout(Kind.BLOCKS).rows(flat, 2, 1), Layout(Kind.STRIPES).rows(flat, 2, 1)
            (tensor([[0, 1, 2]]), tensor([[0, 2, 4]]))
        """
        if self.kind in (Kind.LOST, Kind.CONSTANT) or tensor.dim() <= self.dim:
            return None
        length = tensor.shape[self.dim]
        if self.kind is Kind.AT:
            if length != batch_size:
                return None
            return tensor.narrow(self.dim, 0, examples).movedim(self.dim, 0).unsqueeze(1)
        if length == 0 or length % batch_size:
            return None
        rows = length // batch_size
        if self.kind is Kind.BLOCKS:
            return tensor[: examples * rows].unflatten(0, (examples, rows))
        return tensor.unflatten(0, (rows, batch_size))[:, :examples].transpose(0, 1)


FIRST, LOST, CONSTANT = Layout(Kind.AT), Layout(Kind.LOST), Layout(Kind.CONSTANT)
BLOCKS, STRIPES = Layout(Kind.BLOCKS), Layout(Kind.STRIPES)

_RESHAPES = {"reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze", "reshape_as"}
_RESHAPES |= {"view_as", "_unsafe_view", "ravel"}
_SWAPS = {"transpose", "swapaxes", "swapdims", "transpose_"}
_ALONG = {  # operations along a dimension, and where that dimension is among the arguments
    **dict.fromkeys(("sum", "mean", "amax", "amin", "max", "min", "prod", "std", "var"), 1),
    **dict.fromkeys(("any", "all", "argmax", "argmin", "median", "logsumexp", "softmax"), 1),
    **dict.fromkeys(("cumsum", "cumprod", "flip", "sort", "argsort", "gather"), 1),
    **dict.fromkeys(("index_select", "log_softmax", "nansum", "nanmean"), 1),
    **dict.fromkeys(("roll", "norm", "vector_norm", "topk", "kthvalue", "quantile"), 2),
}


@final
class Layouts:
    """The layouts of all tensors of a forward pass; only the unusual ones are stored.

    Args:
        batch_size: Examples.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._known: dict[int, tuple[weakref.ref[Tensor], Layout]] = {}

    def of(self, tensor: Tensor) -> Layout:
        """Return a tensor's layout; `FIRST` where nothing unusual is known."""
        reference, layout = self._known.get(id(tensor), (None, FIRST))
        return layout if reference is not None and reference() is tensor else FIRST

    def set(self, tensor: Tensor, layout: Layout) -> None:
        """Note a layout."""
        if layout == FIRST:
            self._known.pop(id(tensor), None)
        else:
            self._known[id(tensor)] = weakref.ref(tensor), layout

    def follow(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        data: list[Tensor],
        output: Tensor,
    ) -> None:
        """Note where an operation's output holds its examples.

        Args:
            name: Of the operation.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            data: Its tensor arguments that are not weights.
            output: What it returned, or a part of it.
        """
        if not any(self.of(tensor).kind is not Kind.CONSTANT for tensor in data):
            self.set(output, CONSTANT)
            return
        moving = [t for t in data if t.dim() and self.of(t).kind is not Kind.CONSTANT]
        if not moving:
            self.set(output, FIRST)
            return
        unusual = [t for t in moving if self.of(t) != FIRST]
        source = max(unusual or moving, key=lambda t: t.dim())
        layout = self.of(source)
        usual = [t for t in moving if self.of(t) == FIRST] if unusual else []
        aligned = all(t.dim() == source.dim() - layout.dim for t in usual)
        if len({self.of(t) for t in unusual}) > 1 or not aligned:
            self.set(output, LOST)
            return
        rule = _RULES.get(name, _unmoved)
        self.set(
            output,
            rule(layout, _Step(name, source, output, args, kwargs, self._batch_size)),
        )


@final
@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    source: Tensor
    output: Tensor
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    batch_size: int

    def option(self, index: int, *names: str) -> Any:
        for name in names:
            if name in self.kwargs:
                return self.kwargs[name]
        return self.args[index] if len(self.args) > index else None


def _unmoved(layout: Layout, step: _Step) -> Layout:
    """Most operations: examples stay where they are, if shapes agree with that."""
    output, source = step.output, step.source
    if layout == FIRST or layout.kind is Kind.LOST:
        return layout
    if output.dim() < 1 or output.dim() != source.dim():
        return LOST
    same = output.shape[layout.dim] == source.shape[layout.dim]
    return layout if same else LOST


def _swapped(layout: Layout, step: _Step) -> Layout:
    if layout.kind is not Kind.AT:
        return LOST
    dims = step.source.dim()
    first, second = (step.option(1, "dim0", "axis0"), step.option(2, "dim1", "axis1"))
    first, second = first % dims, second % dims
    return Layout(Kind.AT, {first: second, second: first}.get(layout.dim, layout.dim))


def _permuted(layout: Layout, step: _Step) -> Layout:
    if layout.kind is not Kind.AT:
        return LOST
    order = step.kwargs.get("dims", step.args[1:])
    if len(order) == 1 and isinstance(order[0], Sequence):
        order = order[0]
    order = [d % step.source.dim() for d in order]
    return Layout(Kind.AT, order.index(layout.dim))


def _reversed(layout: Layout, step: _Step) -> Layout:
    if layout.kind is not Kind.AT:
        return LOST
    return Layout(Kind.AT, step.source.dim() - 1 - layout.dim)


def _matrices_transposed(layout: Layout, step: _Step) -> Layout:
    if layout.kind is not Kind.AT:
        return LOST
    dims = step.source.dim()
    return Layout(Kind.AT, {dims - 1: dims - 2, dims - 2: dims - 1}.get(layout.dim, layout.dim))


def _reshaped(layout: Layout, step: _Step) -> Layout:
    shape, before, size = step.output.shape, step.source.shape, step.batch_size
    if not shape:
        return LOST
    if layout == FIRST or layout.kind is Kind.BLOCKS:
        if layout == FIRST and before[0] != size:
            return LOST
        if shape[0] == size:
            return FIRST
        return BLOCKS if shape[0] and shape[0] % size == 0 else LOST
    if layout.kind is Kind.AT:
        through = layout.dim + 1
        if shape[:through] == before[:through]:
            return layout
        return STRIPES if shape[0] == before[:through].numel() else LOST
    if layout.kind is Kind.STRIPES:
        if shape[0] == before[0]:
            return layout
        if len(shape) > 1 and shape[0] * size == before[0] and shape[1] == size:
            return Layout(Kind.AT, 1)
    return LOST


def _indexed(layout: Layout, step: _Step) -> Layout:
    """Follow the examples' dimension through an index; they must all be kept, in order."""
    if layout.kind is not Kind.AT:
        return LOST
    given = step.args[1] if isinstance(step.args[1], tuple) else (step.args[1],)
    spelled = sum(1 for part in given if part is not None and part is not Ellipsis)
    rest = [slice(None)] * (step.source.dim() - spelled)
    index: list[Any] = []
    for part in given:
        index += rest if part is Ellipsis else [part]
    lists = sum(1 for part in index if not isinstance(part, int | slice | None))
    if lists > 1 or any(isinstance(part, bool) for part in index):
        return LOST
    before = after = 0
    for part in index:
        if part is not None and before == layout.dim:
            return Layout(Kind.AT, after) if _everything(part) else LOST
        after += not isinstance(part, int)
        before += part is not None
    return Layout(Kind.AT, after + layout.dim - before)


def _everything(part: Any) -> bool:
    return isinstance(part, slice) and (part == slice(None) or part == slice(0, None))


def _selected(layout: Layout, step: _Step) -> Layout:
    """One entry of a dimension, or each in turn: the dimension goes."""
    if layout.kind is not Kind.AT:
        return LOST
    dim = (step.option(1, "dim") or 0) % step.source.dim()
    return LOST if dim == layout.dim else Layout(Kind.AT, layout.dim - (dim < layout.dim))


def _stacked(layout: Layout, step: _Step) -> Layout:
    dim = (step.option(1, "dim") or 0) % step.output.dim()
    if layout.kind is not Kind.AT:
        return LOST
    return Layout(Kind.AT, layout.dim + (dim <= layout.dim))


def _along(layout: Layout, step: _Step) -> Layout:
    """Operations along a dimension: over the examples themselves, nothing can be told."""
    if layout == FIRST and step.output.dim():
        dims = step.option(_ALONG[step.name], "dim", "dims", "axis")
        dims = dims if isinstance(dims, Sequence) else (dims,)
        count = max(1, step.source.dim())
        if any(not isinstance(d, int) or d % count == 0 for d in dims):
            return LOST
    return _unmoved(layout, step)


def _summed(layout: Layout, step: _Step) -> Layout:
    """Follow the examples' letter through an Einstein sum."""
    equation = step.args[0] if isinstance(step.args[0], str) else ""
    inputs, _, output = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")[0]
    if layout.kind is not Kind.AT or "." in equation or not output or len(letters) <= layout.dim:
        return LOST
    place = output.find(letters[layout.dim])
    return Layout(Kind.AT, place) if place >= 0 else LOST


_RULES: dict[str, Callable[[Layout, _Step], Layout]] = {
    "embedding": lambda layout, _: layout,
    "permute": _permuted,
    "t": _reversed,
    "T": _reversed,
    "mT": _matrices_transposed,
    "mH": _matrices_transposed,
    "adjoint": _matrices_transposed,
    "movedim": lambda *_: LOST,
    "moveaxis": lambda *_: LOST,
    "__getitem__": _indexed,
    "stack": _stacked,
    "unbind": _selected,
    "select": _selected,
    **dict.fromkeys(_SWAPS, _swapped),
    **dict.fromkeys(_RESHAPES, _reshaped),
    "einsum": _summed,
    **dict.fromkeys(_ALONG, _along),
}
