"""Training batches: a fraction of each data set, in an order that is a function of (seed, epoch, index)."""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from depthzoo.prediction import working_size
from train.augment import Batch, augment
from train.config import TrainConfig
from train.distributed import World
from train.frames import Frames, decode_frames
from train.order import permutation, rarity, sample_draws, weighted_order
from train.shards import ShardDataset
from train.stream import RemoteSplit, RemoteStream, copy_split, is_remote

# Distance between the seeds of the data sets' orders.
SEED_STEP = 1_000_003


@dataclass(frozen=True)
class Sources:
    """Where the training data are and how they are read.

    Attributes:
        data: folder of the data set, with splits "train" and "val", or a URL; see ``train.stream``.
        mix: folders of further data sets, one for each fraction of the recipe's ``mix``.
        cache: where decoded frames are kept: "device", "ram", "disk", or "auto", which is the device if the frames
            fill at most half of a GPU's free memory, else RAM. Several processes share a memory map instead.
        workers: threads that decode.
    """

    data: str | Path
    mix: tuple[Path, ...] = ()
    cache: str = "auto"
    workers: int = 4

    def record(self) -> dict[str, Any]:
        """Return absolute paths for ``sources.json``, from which a resumed run finds its data."""
        data = str(self.data) if is_remote(self.data) else os.path.abspath(self.data)
        return {"data": data, "mix": [os.path.abspath(path) for path in self.mix]}


class ShuffledFrames:
    """Samples of decoded frames in an order without state: any position can be read at any time.

    With ``weights`` (n,) each frame is drawn as often as its weight says, without them once an epoch.
    """

    def __init__(self, frames: Frames, seed: int, weights: np.ndarray | None = None) -> None:
        self.frames, self.seed, self.weights = frames, seed, weights
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def locate(self, position: int) -> tuple[int, int]:
        """Return epoch and sample index at a position; see :func:`weighted_order` for repeated samples."""
        epoch, offset = divmod(position, len(self.frames.keys))
        if epoch != self._epoch:
            self._epoch = epoch
            if self.weights is None:
                self._order = permutation(self.seed, epoch, len(self.frames.keys))
            else:
                self._order = weighted_order(self.seed, epoch, self.weights)
        return epoch, int(self._order[offset])

    def batch(self, position: int, count: int) -> Batch:
        """Return the samples position, ..., position + count - 1."""
        frames, places = self.frames, [self.locate(position + i) for i in range(count)]
        draws = np.stack([sample_draws(self.seed, epoch, index) for epoch, index in places])
        chosen = [index % len(frames.keys) for _, index in places]
        where = torch.tensor(chosen, device=frames.images.device)
        return Batch(
            # A tenth of the time of images[where].
            frames.images.index_select(0, where),
            frames.depths.index_select(0, where),
            draws,
            frames.focal_px,
            [frames.keys[index] for index in chosen],
            frames.depth_unit,
        )


class TrainData:
    """The batches of a run, each with its fraction of every data set, and the validation split.

    Args:
        config: of the run.
        sources: of the data.
        out: folder of the run, into which the validation split of a remote data set is copied.
        device: where batches go.
        world: the processes.

    Attributes:
        counts: images of each data set in a step, over all processes.
        sets: the train splits, local or remote.
        validation: the "val" split.
        digest: of all ``dataset.json``, by which a resume notices that the data changed.
        epoch_steps: steps in which the first data set is seen once.
        first_step: the first step whose batch can be read; of a stream, the one at which it was opened.

    Raises:
        ValueError: data that are missing, or do not fit the recipe or the number of processes.
    """

    def __init__(
        self, config: TrainConfig, sources: Sources, out: Path, device: torch.device, world: World
    ) -> None:
        self.config, self.sources, self.out, self.device, self.world = config, sources, out, device, world
        mixed = [round(fraction * config.batch_size) for fraction in config.mix]
        self.counts = [config.batch_size - sum(mixed), *mixed]
        self._check()
        self.sets: list[ShardDataset | RemoteSplit]
        if is_remote(sources.data):
            self.sets = [RemoteSplit(str(sources.data), "train")]
            if world.writes:
                copy_split(str(sources.data), "val", out / "data")
            world.barrier()
            self.validation = ShardDataset(out / "data", "val")
        else:
            self.sets = [ShardDataset(sources.data, "train", config.frames)]
            self.validation = ShardDataset(sources.data, "val")
        self.sets += [ShardDataset(folder, "train") for folder in sources.mix]
        if world.size > len(self.sets[0]):
            raise ValueError(f"{world.size} processes for {len(self.sets[0])} train frames")
        # dataset.json holds the sha256 of every shard.
        descriptions = [
            s.description if isinstance(s, RemoteSplit) else (s.folder / "dataset.json").read_bytes()
            for s in self.sets
        ]
        self.digest = hashlib.sha256(b"".join(descriptions)).hexdigest()
        self.epoch_steps = math.ceil(len(self.sets[0]) / self.counts[0])
        self.streams: list[ShuffledFrames | RemoteStream] = []
        self.first_step = 0

    def _check(self) -> None:
        config, sources, world = self.config, self.sources, self.world
        if len(config.mix) != len(sources.mix):
            raise ValueError(
                f"mix = {list(config.mix)} needs {len(config.mix)} data sets (--mix-data), got {len(sources.mix)}"
            )
        if any(count % (world.size * config.accumulate) for count in self.counts):
            counts = " + ".join(map(str, self.counts))
            raise ValueError(
                f"batch_size {config.batch_size} gives {counts} images a step, which {world.size} processes with "
                f"accumulate = {config.accumulate} cannot share evenly"
            )
        if is_remote(sources.data) and (config.frames or config.balance):
            raise ValueError("frames and balance need a local data set; a remote one is streamed whole")

    def open(self, step: int = 0) -> None:
        """Decode the train frames, or start the stream of a remote set at the given step; called once."""
        if self.world.writes:
            # A corrupt validation frame is found before the first step.
            for index in tqdm(range(len(self.validation)), "decoding val", unit="frame", disable=None):
                self.validation[index]
        for number, (split, count) in enumerate(zip(self.sets, self.counts, strict=True)):
            seed = self.config.seed + number * SEED_STEP
            if isinstance(split, RemoteSplit):
                self.first_step = step
                self.streams.append(RemoteStream(split, seed, self.world, count * step, self.sources.workers))
                continue
            frames = decode_frames(
                split, self.device, self.world, self.sources.cache, self.sources.workers, self.out
            )
            balanced = number == 0 and self.config.balance > 0
            weights = rarity(frames.log_medians(), self.config.balance) if balanced else None
            self.streams.append(ShuffledFrames(frames, seed, weights))

    def batch(
        self, step: int, size: tuple[int, int], depth_range: tuple[float, float] = (0.0, math.inf)
    ) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """Return this process's part of the batch of a step.

        Args:
            step: of the run.
            size: (H, W). The batch has about as many pixels in the aspect of the first data set's frames, as they
                are fed in evaluation.
            depth_range: canonical metres that the network can predict; labels outside are invalid.

        Returns:
            Image (N, 3, H, W) in [0, 1], canonical depth (N, 1, H, W) in metres, mask (N, 1, H, W), and the keys.
        """
        parts, keys = [], []
        if stored := self.sets[0].info["splits"]["train"].get("size"):
            size = working_size(stored[0], stored[1], size)
        for stream, count in zip(self.streams, self.counts, strict=True):
            mine = count // self.world.size
            if mine:
                batch = stream.batch(step * count + self.world.rank * mine, mine)
                parts.append(augment(batch, size, self.config.augment, self.device, depth_range))
                keys += batch.keys
        image, depth, mask = (torch.cat(column) for column in zip(*parts, strict=True))
        return image.contiguous(memory_format=torch.channels_last), depth, mask, keys

    def describe(self) -> dict[str, Any]:
        """Return what the card of the weights says of the data."""
        first, *others = (split.info for split in self.sets)
        kept = ("source", "truth", "terms", "teacher", "pictures_from")
        terms = [str(info.get("terms", "")) for info in (first, *others)]
        # Of the validation split, whose frames are whole: train frames may be cropped.
        whole = self.validation.info
        camera = whole.get("camera", "not stated")
        width = (whole["splits"]["val"].get("size") or self.validation[0][1].shape)[1]
        return {
            "dataset": {key: first.get(key) for key in ("source", "truth", "terms")},
            "mixed_with": [{key: info[key] for key in kept if info.get(key)} for info in others] or None,
            "terms": "; ".join(dict.fromkeys(filter(None, terms))),
            "camera": {"name": camera, "focal_px": self.validation.focal_px, "at_width": width},
            "depth_range": list(self.validation.depth_range),
        }
