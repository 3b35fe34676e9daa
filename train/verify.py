"""Check whether a data set is what its ``dataset.json`` says: one line for each problem."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from depthzoo.errors import DatasetError
from depthzoo.files import sha256_of
from train.codec import step_range
from train.encoding import unit_problem
from train.shards import ShardDataset, read_dataset

SAMPLES = 8  # of a shard that are decoded unless all are


def quick_problems(folder: Path) -> Iterator[str]:
    """Yield the problems of files, sizes and indices, without reading the shards."""
    try:
        info = read_dataset(folder)
    except DatasetError as error:
        yield str(error)
        return
    if not info["splits"]:
        yield f"{folder}: dataset.json has no splits"
    for split, entry in info["splits"].items():
        try:
            count = len(ShardDataset(folder, split))
        except DatasetError as error:
            yield str(error)
            continue
        if count != entry.get("count"):
            yield f"{folder}: split {split!r} has {count} samples, dataset.json says {entry.get('count')}"


def problems(folder: Path, full: bool = False, workers: int = 1) -> Iterator[str]:
    """Yield all problems: also digests, decoding, sizes and the unit.

    Args:
        folder: the data set's folder.
        full: decode every sample, not only ``SAMPLES`` of each shard.
        workers: number of processes.
    """
    yield from quick_problems(folder)
    try:
        splits = read_dataset(folder)["splits"]
    except DatasetError:
        return
    for split, entry in splits.items():
        try:
            data = ShardDataset(folder, split)
        except DatasetError:  # named above; the digests tell which shards are damaged
            for shard in entry.get("shards", ()):
                yield from _digest_problems(folder, shard)
            continue
        shards = _Shards(data, entry, full)
        checked = DataLoader(shards, batch_size=None, num_workers=workers if workers > 1 else 0)
        medians: list[float] = []
        for lines, values in tqdm(checked, split, len(shards), unit="shard", disable=None):
            yield from lines
            medians += values
        if problem := unit_problem(medians, depth_range=data.depth_range):
            yield f"{folder}: split {split!r}: {problem}"


class _Shards(Dataset[tuple[list[str], list[float]]]):
    """The problems of each shard of a split, and the medians of its samples in metres."""

    def __init__(self, data: ShardDataset, entry: dict[str, Any], full: bool) -> None:
        self.data, self.entry, self.full = data, entry, full

    def __len__(self) -> int:
        return len(self.entry["shards"])

    def __getitem__(self, number: int) -> tuple[list[str], list[float]]:
        data, shards = self.data, self.entry["shards"]
        path = data.folder / shards[number]["file"]
        lines = list(_digest_problems(data.folder, shards[number]))
        start, count = sum(shard["count"] for shard in shards[:number]), shards[number]["count"]
        medians: list[float] = []
        for index in range(start, start + count, 1 if self.full else max(1, count // SAMPLES)):
            name = f"{path}: sample {data.keys[index]!r}"
            try:
                _, depth = data[index]
            except DatasetError as error:
                lines.append(str(error))
                continue
            first, last = step_range(data.depth_unit, data.depth_range)
            valid = depth[(depth >= first) & (depth <= last)]
            if valid.size:
                medians.append(float(np.median(valid)) * data.depth_unit)
            else:
                lines.append("{} has no depth from {:g} to {:g} m".format(name, *data.depth_range))
            if data.split == "train" and list(depth.shape) != self.entry.get("size"):
                size = "x".join(map(str, depth.shape))
                lines.append(
                    f"{name} is {size}, dataset.json says {self.entry.get('size')}; prepare the data with --size"
                )
        return lines, medians


def _digest_problems(folder: Path, shard: dict[str, Any]) -> Iterator[str]:
    path = folder / str(shard.get("file"))
    if path.is_file() and (digest := sha256_of(path)) != shard.get("sha256"):
        yield f"{path}: sha256 is {digest}, dataset.json says {shard.get('sha256')}"
