"""The batches of a run: a share from its data set, one from a second data set, one that a teacher has labelled."""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from depthzoo.predictor import working_size
from train.augment import augment
from train.cards import measured
from train.config import TrainConfig
from train.distributed import World
from train.loading import Batch, DecodedSet, SampleStream, open_frames, rarity
from train.progress import TrainingError
from train.shards import ShardDataset, write_json
from train.streaming import ShardStream, fetch_split, is_remote
from train.teacher import labelled_by_teacher

# Distance between the seeds of the data sets' orders.
SEED_STEP = 1_000_003
SOURCES = "sources.json"  # of a run: where its data were
REMOTE_VAL = "data"  # folder of a run that holds the validation split of a remote data set


@dataclass(frozen=True)
class Sources:
    """Where a run's data are, and how they are read.

    Attributes:
        data: folder of the data set, with "train" and "val", or the URL of one.
        mix_data: folder of a second data set, for a recipe with ``mix``.
        pictures: tars or folders of pictures without depth, for a recipe with a teacher.
        cache: where decoded frames are kept: "auto", "device", "ram" or "none".
        workers: threads that decode with ``cache="none"``, and a stream.
    """

    data: str | Path
    mix_data: Path | None = None
    pictures: tuple[Path, ...] = ()
    cache: str = "auto"
    workers: int = 4

    def record(self, run: Path) -> None:
        """Writes into a run's folder where the data are, for a resume."""
        local = [None if place is None else os.path.abspath(place) for place in (self.data, self.mix_data)]
        data = str(self.data) if is_remote(str(self.data)) else local[0]
        pictures = [os.path.abspath(path) for path in self.pictures]
        write_json(run / SOURCES, {"data": data, "mix_data": local[1], "pictures": pictures})


class Stream(Protocol):
    """Samples by position in an endless sequence of shuffled epochs."""

    def batch(self, position: int, count: int) -> Batch:
        """The samples position, ..., position + count - 1."""


class Feed:
    """What a run trains on, as one batch a step; every draw is a function of (seed, epoch, sample).

    Args:
        config: of the run.
        sources: of the data.
        out: folder of the run, for what is made or fetched for it.
        device: where batches go.
        world: the processes.

    Attributes:
        shares: pictures of each data set in a step, over all processes.
        validation: the "val" split.
        frames: number of train frames of the first data set.
        digest: of all ``dataset.json``, to notice data that changed.
        about: ``dataset.json`` of each data set: "data", and "mix" and "pseudo" where there are any.

    Raises:
        TrainingError, DatasetError, ValueError: one line each.
    """

    def __init__(
        self, config: TrainConfig, sources: Sources, out: Path, device: torch.device, world: World
    ) -> None:
        self.config, self.sources, self.device, self.world = config, sources, device, world
        extra, pseudo = (round(share * config.batch_size) for share in (config.mix, config.pseudo_share))
        self.shares = {"data": config.batch_size - extra - pseudo, "mix": extra, "pseudo": pseudo}
        self._check()
        self._sets: dict[str, ShardDataset] = {}
        self._streams: dict[str, Stream] = {}
        digests = []
        if is_remote(str(sources.data)):
            stream = self._remote(str(sources.data))
            self._streams["data"] = stream
            self.validation = self._fetched(out / REMOTE_VAL)
            self.frames, self.about = len(stream), {"data": stream.info}
            digests.append(stream.digest.encode())
        else:
            self._sets["data"] = ShardDataset(sources.data, "train", config.frames)
            self.validation = ShardDataset(sources.data, "val")
            self.frames, self.about = len(self._sets["data"]), {}
        if world.size > self.frames:
            raise TrainingError(f"{world.size} processes for {self.frames} train frames")
        if sources.mix_data:
            self._sets["mix"] = ShardDataset(sources.mix_data, "train")
        if config.pseudo_share:
            folder = labelled_by_teacher(
                config.teacher, sources.pictures, out / "pseudo", config.size, device, world
            )
            self._sets["pseudo"] = ShardDataset(folder, "train")
        self.about |= {name: dataset.info for name, dataset in self._sets.items()}
        # dataset.json has the sha256 of every shard.
        digests += [Path(s.folder, "dataset.json").read_bytes() for s in self._sets.values()]
        self.digest = hashlib.sha256(b"".join(digests)).hexdigest()

    def _check(self) -> None:
        config, sources, world = self.config, self.sources, self.world
        if (sources.mix_data is None) != (config.mix == 0):
            raise TrainingError(
                "mix needs a second data set (--mix-data), and a second data set needs mix above 0"
            )
        if bool(sources.pictures) != (config.pseudo_share > 0):
            raise TrainingError(
                "a teacher needs pictures to label (--pictures), and pictures need a [teacher] in the recipe"
            )
        if any(share % (world.size * config.accumulate) for share in self.shares.values()):
            shares = " + ".join(str(share) for share in self.shares.values() if share)
            raise TrainingError(
                f"batch_size {config.batch_size} gives {shares} pictures a step, which {world.size} processes with "
                f"accumulate = {config.accumulate} cannot share evenly"
            )
        if is_remote(str(sources.data)) and (config.frames or config.balance):
            raise TrainingError("frames and balance need a local data set; a remote one is streamed whole")

    def _remote(self, url: str) -> ShardStream:
        config, world = self.config, self.world
        return ShardStream(
            url,
            "train",
            config.seed,
            world.rank,
            world.size,
            workers=self.sources.workers,
            max_bad=config.max_bad,
        )

    def _fetched(self, folder: Path) -> ShardDataset:
        if self.world.writes:
            fetch_split(str(self.sources.data), "val", folder)
        self.world.barrier()
        return ShardDataset(folder, "val")

    def open(self) -> None:
        """Decodes what is to be kept decoded, and the validation split once; called once, before the first batch.

        Raises:
            DatasetError: for what cannot be decoded or does not fit; ``max_bad`` is of train frames only, for figures
                of fewer validation frames could not be compared.
        """
        if self.world.writes:
            for index in tqdm(range(len(self.validation)), "decoding val", unit="frame", disable=None):
                self.validation[index]
        sources = self.sources
        for number, (name, share) in enumerate(self.shares.items()):
            if name in self._streams or name not in self._sets or not share:
                continue
            frames = open_frames(
                self._sets[name],
                sources.cache,
                self.device,
                sources.workers,
                self.config.max_bad,
                self.world.writes,
            )
            ahead = share if sources.cache == "none" else 0
            weights = None
            if name == "data" and self.config.balance:
                if not isinstance(frames, DecodedSet):
                    raise TrainingError("balance needs the decoded frames: not with --cache none")
                weights = rarity(frames.log_medians(), self.config.balance)
            self._streams[name] = SampleStream(frames, self.config.seed + number * SEED_STEP, ahead, weights)

    def batch(
        self, step: int, size: tuple[int, int], depth_range: tuple[float, float] = (0.0, math.inf)
    ) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """This process's part of a step.

        Args:
            step: of the run.
            size: (H, W); the batch has about as many pixels, in the aspect of the first data set's frames, as
                evaluation feeds them.
            depth_range: canonical metres that the network can give.

        Returns:
            Image (N, 3, H, W), canonical depth and mask (N, 1, H, W), keys.
        """
        parts, keys = [], []
        if stored := self.about["data"]["splits"]["train"].get("size"):
            size = working_size(stored[0], stored[1], size)
        for name, stream in self._streams.items():
            share = self.shares[name]
            mine = share // self.world.size
            batch = stream.batch(step * share + self.world.rank * mine, mine)
            parts.append(augment(batch, size, self.config.augment, self.device, depth_range))
            keys += batch.keys
        image, depth, mask = (torch.cat(column) for column in zip(*parts, strict=True))
        return image.contiguous(memory_format=torch.channels_last), depth, mask, keys

    def describe(self) -> dict[str, Any]:
        """What the weights' card says of the data."""
        about = dict(self.about)
        first = about.pop("data")
        keep = ("source", "truth", "terms", "teacher", "pictures_from")
        mixed = [{key: facts[key] for key in keep if facts.get(key)} for facts in about.values()]
        terms = [first.get("terms", ""), *(str(facts.get("terms", "")) for facts in about.values())]
        return {
            "dataset": {key: first.get(key) for key in ("source", "truth", "terms")},
            "mixed_with": mixed or None,
            "terms": "; ".join(dict.fromkeys(filter(None, terms))),
            **measured(self.validation),
        }
