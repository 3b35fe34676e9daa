"""The frames of a split, decoded once into memory, a memory map or the memory of a GPU."""

import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from depthzoo.errors import DatasetError
from train.augment import as_tensors
from train.distributed import World
from train.shards import ShardDataset

# Fraction of a GPU's free memory that decoded frames may take with cache="auto".
DEVICE_FRACTION = 0.5


@dataclass(frozen=True)
class Frames:
    """The decoded frames of a split."""

    images: Tensor  # (n, 3, h, w) uint8
    depths: Tensor  # (n, 1, h, w) int16, the bits of the stored uint16 steps; 0 is invalid
    keys: Sequence[str]
    focal_px: float  # of the stored frames
    depth_unit: float = 0.001  # metres per step of depth

    def log_medians(self) -> np.ndarray:
        """Return ln of the median valid depth of each frame, metres: (n,) float64, NaN for a frame without any."""
        medians = np.full(len(self.keys), np.nan)
        for index, depth in enumerate(self.depths):
            steps = (depth.flatten()[::7].int() & 0xFFFF).cpu().numpy()
            if (valid := steps[steps > 0]).size:
                medians[index] = np.log(np.median(valid) * self.depth_unit)
        return medians


def decode_frames(
    dataset: ShardDataset,
    device: torch.device,
    world: World | None = None,
    cache: str = "auto",
    workers: int = 4,
    folder: Path | None = None,
) -> Frames:
    """Decode a split of frames of one size, once for all processes of a machine.

    Several processes share a memory map, which the first one of each machine fills; one process uses a map with
    cache="disk". Its file in ``folder`` is unlinked as soon as it is open, so that it never outlives the run.

    Raises:
        DatasetError: naming a sample that cannot be decoded or has another size; frames that do not fit the device.
        OSError: the disk is too small for the memory map.
    """
    world = world or World()
    count, (height, width) = len(dataset), dataset[0][1].shape
    pixels = count * height * width
    resident = _fits_device(dataset, pixels * 5, device, cache)
    if world.size > 1 or cache == "disk":
        buffer = _memory_map(folder or Path(), pixels * 5, world)
    else:
        buffer = torch.empty(pixels * 5, dtype=torch.uint8, device=device if resident else None)
    depths = buffer[: 2 * pixels].view(torch.int16).view(count, 1, height, width)
    images = buffer[2 * pixels :].view(count, 3, height, width)

    def decode(index: int) -> None:
        image, depth = dataset[index]
        if depth.shape != (height, width):
            raise DatasetError(
                f"{dataset.folder}: sample {dataset.keys[index]!r} is {depth.shape[0]}x{depth.shape[1]}, others "
                f"{height}x{width}; prepare the data with --size"
            )
        images[index], depths[index] = as_tensors(image, depth)

    if world.local_rank == 0:
        silent = None if world.writes else True  # None: only on a terminal
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for _ in tqdm(
                pool.map(decode, range(count)), "decoding train", count, unit="frame", disable=silent
            ):
                pass
    world.barrier()
    if resident:
        images, depths = images.to(device), depths.to(device)
    return Frames(images, depths, dataset.keys, dataset.focal_px, dataset.depth_unit)


def _fits_device(dataset: ShardDataset, need: int, device: torch.device, cache: str) -> bool:
    """Whether decoded frames of ``need`` bytes are kept on the device."""
    if device.type != "cuda" or cache in ("ram", "disk"):
        return False
    free = torch.cuda.mem_get_info(device)[0]
    if cache == "device" and need >= free:
        sizes = f"{need / 2**30:.1f} GiB decoded, {free / 2**30:.1f} GiB free on {device}"
        raise DatasetError(f"{dataset.folder}: {sizes}; use --cache ram")
    return cache == "device" or need < DEVICE_FRACTION * free


def _memory_map(folder: Path, size: int, world: World) -> Tensor:
    """uint8 (size,) that all processes of a machine share."""
    path = folder / f".frames-{platform.node()}"
    if world.local_rank == 0:
        with open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                # A disk that is too small is an error here, and a crash at a later write.
                os.posix_fallocate(file.fileno(), 0, size)
    world.barrier()
    buffer = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
    world.barrier()
    if world.local_rank == 0:
        path.unlink()
    return buffer
