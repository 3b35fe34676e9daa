"""What a process knows of the others: rank, size, and the few collectives that training needs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """The processes of a run; one alone by default.

    Attributes:
        rank: of this process, 0 <= rank < size.
        size: how many there are.
        local_rank: of this process on its machine, which is the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and the terminal."""
        return self.rank == 0

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether ``flag`` is true in any process."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def mean(self, number: float, device: torch.device) -> float:
        """The mean of a number over the processes."""
        if self.size == 1:
            return number
        value = torch.tensor(
            number, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device
        )
        dist.all_reduce(value)
        return float(value.item()) / self.size

    def average(self, tensor: Tensor) -> None:
        """Replaces a tensor by its mean over the processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor /= self.size

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Joins the processes that ``torchrun`` started, by NCCL on GPUs and gloo on CPUs; alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    world = World(
        int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0"))
    )
    if device.type == "cuda":
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield world
    finally:
        dist.destroy_process_group()
