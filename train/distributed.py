"""The processes of a run, and the few collectives that training needs."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

# Each process keeps its own BatchNorm statistics. torch has two names for this; the older one warns if both exist.
_PARAMETERS = inspect.signature(DistributedDataParallel).parameters
OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers": False
}


@dataclass(frozen=True)
class World:
    """The processes of a run; by default only one."""

    rank: int = 0  # of this process
    size: int = 1
    local_rank: int = 0  # of this process on its machine: the number of its GPU

    @property
    def writes(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether ``flag`` is true in any process."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def mean(self, number: float, device: torch.device) -> float:
        """Return the mean of a number over the processes."""
        if self.size == 1:
            return number
        value = torch.tensor(
            number, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device
        )
        dist.all_reduce(value)
        return float(value.item()) / self.size

    def average(self, tensor: Tensor) -> None:
        """Replace a tensor by its mean over the processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor /= self.size

    def wrap(self, network: Any, device: torch.device) -> Any:
        """Make backward passes average their gradients over the processes."""
        if self.size == 1:
            return network
        index = None if device.index is None else [device.index]
        return DistributedDataParallel(network, device_ids=index, **OWN_BUFFERS)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes that ``torchrun`` started, with NCCL on GPUs and gloo on CPUs; without it there is one."""
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
