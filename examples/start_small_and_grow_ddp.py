"""Start small and grow on several devices, and go on after a crash.

    torchrun --standalone --nproc-per-node 2 examples/start_small_and_grow_ddp.py \
        --checkpoint run.pt

Run the same command again after a crash: training goes on from the last checkpoint, and ends with
the same weights to the bit. Data and model are those of ``start_small_and_grow.py``.
"""

import argparse
import gc
import os
from pathlib import Path
from typing import Any

import start_small_and_grow as plain
import torch
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import rightbatch as rb

EPOCHS, STEPS_BETWEEN_CHECKPOINTS = 12, 25

make_task = plain.make_task


def join_group() -> torch.device:
    """Meet the other ranks, on a GPU each where there are some."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl")
    return device


def save(checkpoint: Path, parts: dict[str, Any]) -> None:
    """Write beside, then rename: who is killed while writing leaves the last checkpoint whole."""
    beside = checkpoint.with_suffix(".new")
    torch.save({name: part.state_dict() for name, part in parts.items()}, beside)
    beside.replace(checkpoint)


def train(device: torch.device, checkpoint: Path | None) -> rb.BatchSizeController:
    model = DistributedDataParallel(plain.make_model().to(device))
    optimizer = plain.make_optimizer(model)
    data, _ = plain.make_data()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    # Sizes are those of all devices together; each of them loads its share.
    sampler = rb.BatchSizeSampler(data, plain.BATCH_SIZE, rank=rank, world_size=world_size)
    loader = DataLoader(data, batch_sampler=sampler)
    monitor = plain.watch(model, optimizer, len(data))
    controller = rb.BatchSizeController(
        optimizer,
        plain.follow_the_noise(len(data)),
        sampler=sampler,
        monitor=monitor,
        log=print if rank == 0 else None,  # all ranks move together; one of them says so
    )
    # Everything that changes while training. A model with dropout adds the random state.
    parts = {
        "model": model.module,
        "optimizer": optimizer,
        "sampler": sampler,
        "monitor": monitor,
        "controller": controller,
    }
    if checkpoint is not None and checkpoint.exists():
        states = torch.load(checkpoint, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(states[name])
    with monitor:
        for _ in range(sampler.epoch, EPOCHS):
            for inputs, labels in sampler.follow(loader):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs.to(device)), labels.to(device))
                loss.backward()  # and the mean over the devices, whose shares are equal
                monitor.observe(len(labels))
                optimizer.step()
                controller.step()
                is_due = sampler.delivered % STEPS_BETWEEN_CHECKPOINTS == 0
                if checkpoint is not None and rank == 0 and is_due:
                    save(checkpoint, parts)
    if rank == 0:
        right = plain.accuracy(model.module.cpu())
        print(f"batch {controller.batch_size}, {sampler.delivered} updates, {right:.1%} right")
        if checkpoint is not None:
            save(checkpoint, parts)
    return controller


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--checkpoint", type=Path, help="written on the way, and resumed from")
    checkpoint = options.parse_args().checkpoint
    device = join_group()
    train(device, checkpoint)
    dist.barrier()  # nobody leaves while another may still be talking
    gc.collect()  # the wrapped model goes before its group
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
