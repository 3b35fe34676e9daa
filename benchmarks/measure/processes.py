"""Training by several processes, each started here, as ``torchrun`` would."""

import os
import socket
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.measure.children import in_children
from benchmarks.measure.sample_set import recipe, start_run
from train.distributed import joined

WARM_STEPS = 3


def train_together(
    count: int,
    model: str,
    size: tuple[int, int],
    batch: int,
    data: Path,
    frames: int,
    kind: str,
    seconds: float,
) -> list[float]:
    """Seconds of each step of a run of so many processes.

    Args:
        count: of the processes; on CUDA each has a GPU of its own, on a CPU one thread.
        model: with its recipe.
        size: (H, W) of the pictures.
        batch: pictures of each process in a step.
        data: a data set.
        frames: so many of it.
        kind: "cpu" or "cuda".
        seconds: of steps, but three at least.

    Raises:
        ChildProcessError: one of them failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        rest = (count, port, model, size, batch, data, frames, kind, Path(folder, "run"), seconds)
        times: list[float] = in_children(_train, [(rank, *rest) for rank in range(count)])[0]
    return times


def _train(
    rank: int,
    count: int,
    port: int,
    model: str,
    size: tuple[int, int],
    batch: int,
    data: Path,
    frames: int,
    kind: str,
    out: Path,
    seconds: float,
) -> list[float]:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cpu":
        torch.set_num_threads(1)
    config = recipe(model, size=size, batch_size=batch * count, frames=frames)
    times: list[float] = []
    with joined(device) as world:
        run = start_run(config, data, out, device, world)
        for number in range(-WARM_STEPS, 1000):
            if number >= 3 and world.any(sum(times) > seconds, device):
                break
            started = time.perf_counter()
            run.train_step()
            if kind == "cuda":
                torch.cuda.synchronize(device)
            if count > 1:
                dist.barrier()
            if number >= 0:
                times.append(time.perf_counter() - started)
    return times
