"""See every use of every parameter in one forward pass, and square at the backward pass.

A torch-function mode sees each call of a PyTorch function with its arguments, so shared, sliced
and functional uses count like those of modules. The step itself stays bit for bit as it was: calls
are passed on unchanged and only hooks that read are added.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from rightbatch._comm import is_sharded
from rightbatch.noise.geometry import EUCLIDEAN, PRECONDITIONED, Preconditioner
from rightbatch.noise.per_example import maps, scales  # noqa: F401  (they register their rules)
from rightbatch.noise.per_example.attention import inner_maps_seen
from rightbatch.noise.per_example.combine import combined_inner_products, combined_squares
from rightbatch.noise.per_example.layout import CONSTANT, FIRST, Layout, Layouts
from rightbatch.noise.per_example.rules import Call, Made, NotUnderstood, Rule, Wanted, rule_of
from rightbatch.noise.per_example.uses import Use, wide
from rightbatch.noise.per_example.weights import Weights, tensors_in
from rightbatch.noise.precision import sum_dtype, widened


@final
class ExampleSquares:
    """What one forward and backward pass says of single examples. Made by `example_squares`."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        examples: int,
        batch_size: int,
        metrics: Sequence[Preconditioner] | None,
    ) -> None:
        self._parameters, self._metrics = list(parameters), metrics
        self._examples, self._batch_size = examples, batch_size
        self.layouts, self.weights = Layouts(batch_size), Weights(parameters)
        self._planned = [0] * len(parameters)  # uses seen in the forward pass
        self._arrived = [0] * len(parameters)  # gradients of the whole parameter
        self._uses: list[list[Use]] = [[] for _ in parameters]
        self._done: dict[int, Tensor] = {}
        self.paths: dict[int, str] = {}
        self.reasons: dict[int, str] = {}  # why a parameter is not understood
        self.handles: list[RemovableHandle] = []
        self.running = False  # between the forward pass's beginning and the backward pass
        for index, parameter in enumerate(parameters):
            if is_sharded(parameter):
                self.reasons[index] = "it is sharded over ranks"

    # In the forward pass.

    def see(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Pass one call on and note what it means for our parameters."""
        name = _name(function)
        if name in ("backward", "grad") and function in (Tensor.backward, torch.autograd.grad):
            self.running = False
        tensors = tensors_in((args, kwargs)) if self.running else []
        weights = [t for t in tensors if t in self.weights]
        if function is F.multi_head_attention_forward and weights:
            return self._attention(function, args, kwargs, weights)
        output = function(*args, **kwargs)
        if tensors or self.running:
            self._note(function, name, args, kwargs, tensors, weights, output)
        return output

    def _note(
        self,
        function: Any,
        name: str,
        args: Any,
        kwargs: Any,
        tensors: list[Tensor],
        weights: list[Tensor],
        output: Any,
    ) -> None:
        outputs = tensors_in(output)
        if not outputs:
            return
        data = [t for t in tensors if t not in self.weights]
        for tensor in outputs:
            if not any(tensor is weight for weight in weights):
                self.layouts.follow(name, args, kwargs, data, tensor)
        flowing = [t for t in outputs if t.requires_grad and not any(t is w for w in weights)]
        if not weights or not flowing:
            return
        if all(self.layouts.of(t) == CONSTANT for t in data):
            if not self.weights.note(function, args, kwargs, output):
                self._refuse(weights, f"{name} changes it at random or in place")
            return
        rule = rule_of(function)
        if rule is None or not isinstance(output, Tensor):
            self._refuse(weights, f"{name} has no rule")
            return
        self._apply(rule, args, kwargs, weights, output)

    def _apply(
        self, rule: Rule, args: Any, kwargs: Any, weights: list[Tensor], output: Tensor
    ) -> None:
        call = Call(
            args,
            kwargs,
            output,
            self._batch_size,
            self._examples,
            self.layouts,
            self.weights.__contains__,
        )
        try:
            wanted = rule(call)
            call.rows(output)  # its gradient will have this shape
        except NotUnderstood as error:
            self._refuse(weights, str(error))
            return
        served = {id(weight) for weight, _ in wanted}
        self._refuse([w for w in weights if id(w) not in served], "it is used as data")
        for weight, _ in wanted:
            for index in self.weights.behind(weight):
                self._planned[index] += 1
        layout, shape = self.layouts.of(output), output.shape
        served_weights = [weight for weight, _ in wanted]
        seen = _untouched(output, call)
        # The gradient's hook holds the call: no circle, and none of the batch's own tensors.
        del call.output
        call.args, call.kwargs = (), {}
        waiting = [(call, wanted)]

        def hook(grads: Tensor) -> None:
            if not waiting:
                self._refuse(served_weights, "two backward passes went through one forward pass")
                return
            # Taken out: what the call was given is to be freed as early as without us.
            first_call, first_wanted = waiting.pop()
            rows = grads.detach().reshape(shape)
            self._gradient_came(first_call, layout, first_wanted, rows)

        self.handles.append(seen.register_hook(hook))

    def _attention(
        self, function: Any, args: Any, kwargs: dict[str, Any], weights: list[Tensor]
    ) -> Any:
        query = args[0] if args else kwargs["query"]
        before = list(self._planned)
        if query.dim() != 3:
            self._refuse(weights, "attention of one example without a batch")
            return function(*args, **kwargs)
        with inner_maps_seen(query, self.layouts, self.see):
            output = function(*args, **kwargs)
        for tensor in tensors_in(output):
            self.layouts.set(tensor, FIRST)
        self.layouts.set(output[0], self.layouts.of(query))
        missed = [
            w for w in weights if any(self._planned[i] == before[i] for i in self.weights.behind(w))
        ]
        self._refuse(missed, "attention uses it outside its linear maps")
        return output

    def _refuse(self, weights: Sequence[Tensor], reason: str) -> None:
        for weight in weights:
            for index in self.weights.behind(weight):
                self.reasons.setdefault(index, reason)

    # In the backward pass.

    def arrived(self, index: int) -> None:
        """Note that a parameter got its gradient."""
        self._arrived[index] += 1

    def _gradient_came(self, call: Call, layout: Layout, wanted: Wanted, grads: Tensor) -> None:
        if any(tensor._version != version for tensor, version in call.kept):
            self._refuse([w for w, _ in wanted], "its input was changed in place")
            return
        with torch.no_grad(), torch.autocast(grads.device.type, enabled=False):
            rows = wide(call.rows_by(layout, grads))
            for weight, make in wanted:
                self._add(weight, make, rows)

    def _add(self, weight: Tensor, make: Made, rows: Tensor) -> None:
        behind = self.weights.behind(weight)
        if all(index in self.reasons for index in behind):
            return
        for index, use in self.weights.uses(weight, make(rows), self._examples):
            if index in self._done:
                self.reasons[index] = "it was used in several forward passes"
            self._uses[index].append(use)
        for index in behind:
            if self._planned[index] == 1:
                self._finish(index)

    def _finish(self, index: int) -> None:
        """Square now, so that nothing of this parameter is held any longer."""
        uses, self._uses[index] = self._uses[index], []
        if self._metrics is None:
            squares, self.paths[index] = combined_squares(uses, self._examples)
            self._done[index] = widened(squares.detach())[None]
        else:
            metric = self._metrics[index]
            self._done[index] = combined_inner_products(uses, self._examples, metric)
            self.paths[index] = "one at a time"

    # Afterwards.

    def uncovered(self) -> list[int]:
        """Return the indices of the parameters whose uses were not all understood."""
        self._settle()
        return sorted(self.reasons)

    def squares(self) -> Tensor:
        """Return ``|dL/dp|^2`` restricted to each example: [metrics, examples, parameters].

        Of contributions to the loss that was differentiated, as they are. Columns of
        parameters that are not understood are NaN; of those that got no gradient, zero.
        """
        self._settle()
        names = EUCLIDEAN if self._metrics is None else PRECONDITIONED
        shape = len(names), self._examples, len(self._parameters)
        device = self._parameters[0].device
        result = torch.zeros(shape, dtype=sum_dtype(device), device=device)
        for index, squares in self._done.items():
            result[..., index] = squares.to(device)
        result[..., self.uncovered()] = torch.nan
        return result

    def _settle(self) -> None:
        self.running = False
        for index, uses in enumerate(self._uses):
            came, finished = self._arrived[index], index in self._done
            if came > 1:
                self.reasons.setdefault(index, "it got its gradient in several parts")
            elif came and not uses and not finished:
                self.reasons.setdefault(index, "its gradient came from a use that was not seen")
            elif uses and index not in self.reasons and not finished:
                with torch.no_grad():
                    self._finish(index)
            finite_or_not = self._done.get(index)
            if finite_or_not is not None and index not in self.reasons:
                self._check_pulled(index, finite_or_not)

    def _check_pulled(self, index: int, squares: Tensor) -> None:
        if self.paths[index] == "pulled back" and bool(squares.isnan().all()):
            self.reasons[index] = "what it was made into cannot be repeated"


def _untouched(output: Tensor, call: Call) -> Tensor:
    """Return the tensor whose hook sees the output's gradient even after changes in place.

    Some functions return a view of a result of their own; changes in place of a view
    reroute gradients around it, but not around what it is a view of.
    """
    base = output._base
    if base is None or not base.requires_grad or base.numel() != output.numel():
        return output
    given = tensors_in((call.args, call.kwargs))
    return output if any(base is t or base is t._base for t in given) else base


def _name(function: Any) -> str:
    """Name a function; of a property, the property."""
    name = getattr(function, "__name__", "")
    return getattr(function.__self__, "__name__", name) if name == "__get__" else name
