"""Stand-ins for loaders with workers, drawing ahead as they do, without their processes."""

import copy
import pickle
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from rightbatch.batches import BatchSizeSampler


class Ahead:
    """Draws ``ahead`` batches first, then one before each delivery; a batch is its numbers."""

    def __init__(self, sampler: BatchSizeSampler, ahead: int) -> None:
        self.sampler, self.ahead = sampler, ahead

    def __iter__(self) -> Iterator[torch.Tensor]:
        draws = iter(self.sampler)
        if self.ahead == 0:
            yield from (torch.tensor(numbers) for numbers in draws)
            return
        sent: deque[bytes] = deque()

        def send() -> None:
            numbers = next(draws, None)
            if numbers is not None:
                sent.append(pickle.dumps(numbers))

        for _ in range(self.ahead):
            send()
        while sent:
            numbers = pickle.loads(sent.popleft())
            assert type(numbers) is list
            send()
            yield torch.tensor(numbers)


class KeepsState:
    """Keeps the sampler's state as a `StatefulDataLoader` does: taken at draws, paired later.

    The iterator's state is restored after the sampler's, into a fresh iterator.
    """

    def __init__(self, sampler: BatchSizeSampler, ahead: int) -> None:
        self.sampler, self.ahead = sampler, ahead
        self._state: dict[str, Any] | None = None
        self._loaded: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        draws = iter(self.sampler)
        if self._loaded is not None:
            self.sampler.load_state_dict(self._loaded["sampler"])
            draws = iter(self.sampler)
            draws.load_state_dict(self._loaded["iterator"])
            self._loaded = None
        sent: deque[tuple[bytes, dict[str, Any]]] = deque()
        self._state = self._taken(draws)

        def send() -> None:
            numbers = next(draws, None)
            if numbers is not None:
                data = pickle.dumps(numbers) if self.ahead else pickle.dumps(list(numbers))
                sent.append((data, self._taken(draws)))

        for _ in range(max(1, self.ahead)):
            send()
        while sent:
            data, self._state = sent.popleft()
            if self.ahead:
                send()
            yield torch.tensor(pickle.loads(data))
            if not self.ahead:
                send()

    def _taken(self, draws: Any) -> dict[str, Any]:
        iterator = copy.deepcopy(draws.state_dict())
        return {"iterator": iterator, "sampler": copy.deepcopy(self.sampler.state_dict())}

    def state_dict(self) -> dict[str, Any]:
        assert self._state is not None
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = state
