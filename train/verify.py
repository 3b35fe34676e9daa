"""Whether a data set is what its ``dataset.json`` says: a line for each problem."""

import hashlib
import json
import multiprocessing
import sys
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from train.codec import step_range
from train.encoding import check_medians, median
from train.shards import DatasetError, ShardDataset, depth_facts, read_dataset
from train.sources.frames import SourceError

# Samples of a shard that are decoded unless all are.
SAMPLES = 8


def quick_problems(folder: Path) -> Iterator[str]:
    """Of files, sizes and indices; nothing is read through."""
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
    named = {shard.get("file") for entry in info["splits"].values() for shard in entry.get("shards", ())}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in named:
            yield f"{path} is not named in dataset.json"


def problems(folder: Path, full: bool = False, workers: int = 1) -> Iterator[str]:
    """All that can be found: also digests, the indices against the tars, decoding, sizes and the unit.

    Args:
        folder: of the data set.
        full: decode every sample, not ``SAMPLES`` of each shard.
        workers: processes.
    """
    quick = list(quick_problems(folder))
    yield from quick
    try:
        info = read_dataset(folder)
    except DatasetError:
        return
    splits = info["splits"]
    with ExitStack() as stack:
        tasks = []
        for split, entry in splits.items():
            try:
                data = ShardDataset(folder, split)
            except DatasetError:  # named above; the digests of its shards still tell which
                yield from (p for s in entry.get("shards", ()) for p in _digest_problems(folder, s))
                continue
            start = 0
            for shard in entry["shards"]:
                places = range(start, start + shard["count"])
                tasks.append((data, split, shard, places, full))
                start += shard["count"]
        each: Any = map
        if workers > 1:
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, context))
            each = pool.map
        medians: dict[str, list[float | None]] = {split: [] for split in splits}
        seen: set[tuple[str, str]] = set()
        results = each(_check_shard, tasks)
        for task, (lines, values) in zip(
            tasks, tqdm(results, total=len(tasks), unit="shard", disable=None), strict=True
        ):
            yield from lines
            medians[task[1]] += values
            for index in task[3]:
                name = (task[1], task[0].keys[index])
                if name in seen:
                    yield f"{folder}: split {name[0]!r} has sample {name[1]!r} twice"
                seen.add(name)
        for split, values in medians.items():
            try:
                check_medians(values, f"{folder}: split {split!r}", depth_range=depth_facts(info)[1])
            except SourceError as error:
                yield str(error)


def _digest_problems(folder: Path, shard: dict[str, Any]) -> Iterator[str]:
    path = folder / str(shard.get("file"))
    if not path.is_file():
        return
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.get("sha256"):
        yield f"{path}: sha256 is {digest}, dataset.json says {shard.get('sha256')}"


def _index_problems(path: Path) -> Iterator[str]:
    """Of the index against the tar's own headers."""
    rows = json.loads(path.with_suffix(".index.json").read_text(encoding="utf-8"))
    wanted = [
        place
        for key, extension, *at in rows
        for place in ((f"{key}.{extension}", at[0], at[1]), (f"{key}.depth.png", at[2], at[3]))
    ]
    try:
        with tarfile.open(path, "r:") as tar:
            has = [(member.name, member.offset_data, member.size) for member in tar]
    except tarfile.TarError as error:
        yield f"{path} is no whole tar: {error}"
        return
    for want, member in zip(wanted, has, strict=False):
        if want != member:
            yield f"{path}: the index has {want[0]!r} at {want[1]}, the tar has {member[0]!r} at {member[1]}"
            return
    if len(wanted) != len(has):
        yield f"{path} has {len(has)} files, its index {len(wanted)}"


def _check_shard(
    task: tuple[ShardDataset, str, dict[str, Any], Sequence[int], bool],
) -> tuple[list[str], list[float | None]]:
    data, split, shard, places, full = task
    path = data.folder / shard["file"]
    lines = [*_digest_problems(data.folder, shard), *_index_problems(path)]
    step = 1 if full else max(1, len(places) // SAMPLES)
    size = data.info["splits"][split].get("size")
    medians: list[float | None] = []
    for index in places[::step]:
        try:
            image, depth = data[index]
        except DatasetError as error:
            lines.append(str(error))
            continue
        first, last = step_range(data.depth_unit, data.depth_range)
        valid = (depth >= first) & (depth <= last)
        if not valid.any():
            near, far = data.depth_range
            lines.append(f"{path}: sample {data.keys[index]!r} has no depth from {near:g} to {far:g} m")
        medians.append(median(np.where(valid, depth, 0) * np.float32(data.depth_unit)))
        if split == "train" and list(depth.shape) != size:
            height, width = image.shape[:2]
            lines.append(
                f"{path}: sample {data.keys[index]!r} is {height}x{width}, dataset.json says {size}; "
                "prepare the data with --size"
            )
    return lines, medians
