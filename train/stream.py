"""Data sets behind a URL, read with the webdataset library.

A URL is that of a folder, as in ``https://host/nyu``; or ``{}`` in it stands for the name of a file, as in
``pipe:aws s3 cp s3://bucket/nyu/{} -``, a command that writes the file to its standard output.
"""

import hashlib
import random
import re
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from depthzoo.errors import DatasetError, one_line
from depthzoo.files import atomic_write, sha256_of
from train.augment import Batch, as_tensors
from train.codec import decode
from train.distributed import World
from train.order import permutation, sample_draws
from train.shards import depth_facts, parse_dataset, split_shards

# Encoded samples among which the next one is drawn, and batches kept for the BatchNorm statistics of averaged weights.
SHUFFLE, RECENT = 1024, 32
# A name that is safe in a path, a URL and a shell command.
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")


def is_remote(data: str | Path) -> bool:
    """Whether a data set is given by a URL."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|pipe:|file:/", str(data)) is not None


def _webdataset() -> Any:
    try:
        import webdataset
    except ModuleNotFoundError:
        raise DatasetError(
            'data behind a URL needs webdataset, which is not installed; run pip install "depthzoo[stream]"'
        ) from None
    return webdataset


def read_url(url: str) -> bytes:
    """Return the content of a file; a DatasetError if it cannot be read."""
    try:
        with _webdataset().gopen(url, "rb") as file:
            content: bytes = file.read()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{url} cannot be read: {_reason(error)}") from None
    return content


def _reason(error: Exception) -> str:
    # webdataset's own message is the whole command line with the exit code at its end.
    if code := re.search(r": exit (\d+) \(read\)", str(error)):
        http = ", an HTTP error such as 404" if code[1] == "22" else ""
        return f"its command ended with exit code {code[1]}{http}"
    # It appends what it was reading to the arguments.
    return one_line(error) if isinstance(error, OSError) else str(error.args[0])


class RemoteSplit:
    """One split of a data set behind a URL: ``description`` and ``info``, the bytes and the content of its
    ``dataset.json``, and ``shards``.

    Raises:
        DatasetError: it cannot be read, is no data set, or has no such split.
    """

    def __init__(self, url: str, split: str) -> None:
        self.url, self.split = url, split
        self.description = read_url(self.place("dataset.json"))
        self.info = parse_dataset(self.description, self.place("dataset.json"))
        self.focal_px, self.shards = split_shards(self.info, split, url)
        for shard in self.shards:
            if not SHARD_NAME.fullmatch(shard.file):
                raise DatasetError(f"{url}: dataset.json names a shard {shard.file!r}")
        if not len(self):
            raise DatasetError(f"{url}: split {split!r} is empty")

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)

    def place(self, name: str) -> str:
        """Return the URL of a file."""
        return self.url.replace("{}", name) if "{}" in self.url else f"{self.url.rstrip('/')}/{name}"


def copy_split(url: str, split: str, folder: Path) -> None:
    """Copy one split into a folder; shards that are there already are kept, others are verified."""
    remote = RemoteSplit(url, split)
    files: list[tuple[str, bytes]] = []
    for shard in tqdm(remote.shards, f"copying {split}", unit="shard", disable=None):
        path = folder / shard.file
        if not path.is_file() or sha256_of(path) != shard.sha256:
            content = read_url(remote.place(shard.file))
            if (digest := hashlib.sha256(content).hexdigest()) != shard.sha256:
                raise DatasetError(
                    f"{remote.place(shard.file)}: sha256 {digest}, dataset.json says {shard.sha256}"
                )
            files.append((shard.file, content))
        index = path.with_suffix(".index.json").name
        files.append((index, read_url(remote.place(index))))
    for name, content in [*files, ("dataset.json", remote.description)]:
        with atomic_write(folder / name) as part:
            part.write_bytes(content)


class RemoteStream:
    """Samples streamed from the shards of a split, decoded in the background.

    An epoch visits the shards in a random order, each in one process, and draws samples from a buffer. The stream
    only moves forward: batches are read in the order of their positions, and the last ``RECENT`` can be read again.
    It starts with the shard that holds the sample at ``position``, counted over all processes.
    """

    def __init__(
        self, split: RemoteSplit, seed: int, world: World, position: int = 0, workers: int = 4
    ) -> None:
        if world.size > len(split.shards):
            raise DatasetError(f"{world.size} processes for {len(split.shards)} shards of {split.url}")
        if position and world.writes:
            print(f"{split.url}: continuing at the start of a shard, in another order", file=sys.stderr)
        self.split, self.seed, self.world = split, seed, world
        self._samples = self._read(position)
        self._reader, self._decoders = ThreadPoolExecutor(1), ThreadPoolExecutor(max(1, workers))
        self._next: Future[list[tuple[str, Tensor, Tensor]]] | None = None
        self._recent: dict[int, Batch] = {}

    def _read(self, position: int) -> Iterator[dict[str, Any]]:
        wds, shards = _webdataset(), self.split.shards
        epoch, skipped = divmod(position, len(self.split))
        while True:
            order = permutation(self.seed, epoch, len(shards))
            left = order[np.cumsum([shards[i].count for i in order]) > skipped]
            urls = [self.split.place(shards[i].file) for i in left[self.world.rank :: self.world.size]]
            shuffle = random.Random(f"{self.seed} {epoch} {self.world.rank}")
            stages = (wds.SimpleShardList(urls), wds.tarfile_to_samples(), wds.shuffle(SHUFFLE, rng=shuffle))
            try:
                yield from wds.DataPipeline(*stages)
            except (OSError, ValueError, tarfile.TarError) as error:
                # webdataset appends the URL to the arguments.
                raise DatasetError(f"{error.args[-1]} cannot be read: {_reason(error)}") from None
            epoch, skipped = epoch + 1, 0

    def _load(self, count: int) -> list[tuple[str, Tensor, Tensor]]:
        return list(self._decoders.map(self._decode, [next(self._samples) for _ in range(count)]))

    def _decode(self, sample: dict[str, Any]) -> tuple[str, Tensor, Tensor]:
        key, url = sample["__key__"], sample["__url__"]
        image, depth = sample.get("jpg", sample.get("png")), sample.get("depth.png")
        if image is None or depth is None:
            raise DatasetError(f"{url}: sample {key!r} lacks its image or its depth.png")
        return key, *as_tensors(*decode(image, depth, url, key))

    def batch(self, position: int, count: int) -> Batch:
        """Return the next ``count`` samples of this process, or those given before for the same position."""
        if position not in self._recent:
            loading = self._next or self._reader.submit(self._load, count)
            keys, images, depths = zip(*loading.result(), strict=True)
            self._next = self._reader.submit(self._load, count)
            if len({image.shape for image in images}) > 1:
                raise DatasetError(f"{self.split.url}: frames differ in size; prepare the data with --size")
            draws = np.stack([sample_draws(self.seed, 0, position + i) for i in range(count)])
            unit, _ = depth_facts(self.split.info)
            batch = Batch(
                torch.stack(images), torch.stack(depths), draws, self.split.focal_px, list(keys), unit
            )
            self._recent = dict([*self._recent.items(), (position, batch)][-RECENT:])
        return self._recent[position]
