"""Look at a data set: verify that it is what its ``dataset.json`` says, and draw random samples."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from depthzoo.errors import DatasetError
from depthzoo.files import atomic_write, sha256_of
from depthzoo.visualize import panel
from train.codec import step_range
from train.encoding import unit_problem
from train.shards import ShardDataset, read_dataset
from train.sources.base import SPLITS

SAMPLES = 8  # of a shard that are decoded unless all are
TILE, COLUMNS = 280, 3  # width of an image on the sheet in pixels, samples in a row


def problems(folder: Path, full: bool = False, workers: int = 1) -> Iterator[str]:
    """Yield one line for each problem of a data set: files, digests, decoding, sizes, unit.

    Args:
        folder: the data set's folder.
        full: decode every sample, not only ``SAMPLES`` of each shard.
        workers: number of processes.
    """
    try:
        splits = read_dataset(folder)["splits"]
    except DatasetError as error:
        yield str(error)
        return
    if not splits:
        yield f"{folder}: dataset.json has no splits"
    for split, entry in splits.items():
        try:
            data = ShardDataset(folder, split)
        except DatasetError as error:
            yield str(error)
            continue
        if len(data) != entry.get("count"):
            yield f"{folder}: split {split!r} has {len(data)} samples, dataset.json says {entry.get('count')}"
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
        path, lines, medians = data.folder / shards[number]["file"], list[str](), list[float]()
        if (digest := sha256_of(path)) != shards[number]["sha256"]:
            lines.append(f"{path}: sha256 is {digest}, dataset.json says {shards[number]['sha256']}")
        start, count = sum(shard["count"] for shard in shards[:number]), shards[number]["count"]
        first, last = step_range(data.depth_unit, data.depth_range)
        for index in range(start, start + count, 1 if self.full else max(1, count // SAMPLES)):
            name = f"{path}: sample {data.keys[index]!r}"
            try:
                _, depth = data[index]
            except DatasetError as error:
                lines.append(str(error))
                continue
            valid = depth[(depth >= first) & (depth <= last)]
            if valid.size:
                medians.append(float(np.median(valid)) * data.depth_unit)
            else:
                lines.append("{} has no depth from {:g} to {:g} m".format(name, *data.depth_range))
            if data.split == "train" and list(depth.shape) != self.entry.get("size"):
                stated = self.entry.get("size")
                lines.append(
                    f"{name} is {list(depth.shape)}, dataset.json says {stated}; prepare with --size"
                )
        return lines, medians


def write_sheet(folder: Path, out: Path, count: int = 12, seed: int = 0) -> None:
    """Write a PNG of random samples of all splits, on which a wrong transpose or unit is visible.

    Args:
        folder: the data set's folder.
        out: path of the PNG, which shows each image beside its depth with a scale in metres.
        count: number of samples.
        seed: of the choice.

    Raises:
        DatasetError: if a sample cannot be read.
    """
    splits = sorted(read_dataset(folder)["splits"], key=SPLITS.index)
    cells = []
    for number, split in enumerate(splits):
        data = ShardDataset(folder, split)
        wanted = min(len(range(number, count, len(splits))), len(data))
        cells += [_cell(data, i) for i in sorted(random.Random(seed).sample(range(len(data)), wanted))]
    width, height = (max((getattr(cell, side) for cell in cells), default=1) for side in ("width", "height"))
    page = Image.new("RGB", (COLUMNS * width, -(-len(cells) // COLUMNS) * height), "white")
    for place, cell in enumerate(cells):
        page.paste(cell, (place % COLUMNS * width, place // COLUMNS * height))
    with atomic_write(out) as temporary:
        page.save(temporary, "PNG")


def _cell(data: ShardDataset, index: int) -> Image.Image:
    image, steps = data[index]
    cell = Image.fromarray(panel(image, steps * np.float32(data.depth_unit), tile=TILE))
    draw = ImageDraw.Draw(cell)
    draw.rectangle((0, 0, cell.width, 28), "white")
    title = f"{data.split} {data.keys[index]}   {image.shape[1]} x {image.shape[0]}"
    draw.text((8, 8), title, "black", ImageFont.load_default(size=14))
    return cell
