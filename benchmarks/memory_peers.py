"""Run another library's finder under a memory limit, and tell what it did.

Run as ``python -m benchmarks.memory_peers FINDER MODEL BUDGET_MIB FILE``, a process for each.
"""

import json
import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.memory_tasks import EXAMPLES, MIB, MODELS, Drawn, loss, optimizer_for
from rightbatch.hardware.child import _wake_up
from rightbatch.hardware.outcomes import classify

STEPS = 3
START = 4096  # where a search downwards begins


class Record:
    """The batches that a finder really ran."""

    def __init__(self) -> None:
        self.delivered: list[int] = []
        self.ooms = 0

    def see(self, size: int) -> None:
        """Note a size, once for each run of batches of it."""
        if not self.delivered or self.delivered[-1] != size:
            self.delivered.append(size)

    def step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Compute the loss and note what was run."""
        self.see(len(batch[0]))
        try:
            return loss(model, batch)
        except Exception as error:
            self.ooms += classify(error) == "oom"
            raise


def lightning_finder(mode: str) -> Callable[[str, Record], int | None]:
    def find(name: str, record: Record) -> int | None:
        import lightning
        from lightning.pytorch.tuner import Tuner

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.batch_size = MODELS[name][0](), 2

            def training_step(self, batch: Any, index: int) -> Tensor:
                return record.step(self.net, batch)

            def configure_optimizers(self) -> Any:
                return optimizer_for(self)

            def train_dataloader(self) -> DataLoader[Any]:
                return DataLoader(Drawn(MODELS[name][1], EXAMPLES), batch_size=self.batch_size)

        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        return Tuner(trainer).scale_batch_size(Module(), mode=mode, steps_per_trial=STEPS)

    return find


def accelerate_finder(name: str, record: Record) -> int | None:
    from accelerate.utils import find_executable_batch_size

    build, draw = MODELS[name]

    @find_executable_batch_size(starting_batch_size=START)
    def train(batch_size: int) -> int:
        model = build()
        optimizer = optimizer_for(model)
        batches = iter(DataLoader(Drawn(draw, EXAMPLES), batch_size=batch_size))
        for _ in range(STEPS):
            optimizer.zero_grad()
            record.step(model, next(batches)).backward()
            optimizer.step()
        return batch_size

    return train()


FINDERS: dict[str, Callable[[str, Record], int | None]] = {
    "Lightning, power": lightning_finder("power"),
    "Lightning, binsearch": lightning_finder("binsearch"),
    "accelerate": accelerate_finder,
}


def main(finder: str, name: str, budget_mib: int, file: Path) -> None:
    """Limit this process to what it has now and the budget, then let the finder run."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    find = FINDERS[finder]
    if finder.startswith("Lightning"):
        import lightning  # noqa: F401  (before the limit: libraries are not charged)
    _wake_up(torch.device("cpu"))
    held = sum(p.nbytes for p in MODELS[name][0]().parameters())
    status = Path("/proc/self/status").read_text().splitlines()
    data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    # The weights count, and are not there yet: the whole budget is on top of what is.
    limit = data + budget_mib * MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    record, begin, error = Record(), time.perf_counter(), ""
    try:
        size = find(name, record)
    except Exception as caught:
        size, error = None, f"{type(caught).__name__}: {caught}"[:200]
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    file.write_text(
        json.dumps(
            {
                "size": size,
                "tried": record.delivered,
                "ooms": record.ooms,
                "seconds": time.perf_counter() - begin,
                "weights_bytes": held,
                "error": error,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
