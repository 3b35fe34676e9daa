"""A contact sheet of random samples, on which a wrong transpose or unit is visible."""

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from depthzoo.errors import DatasetError
from depthzoo.files import atomic_write
from depthzoo.visualize import panel
from train.shards import ShardDataset, read_dataset
from train.sources.base import SPLITS

TILE = 280
COLUMNS = 3


def write_sheet(folder: Path, out: Path, count: int = 12, seed: int = 0) -> None:
    """Write a PNG of ``count`` random samples of all splits: image and depth with a scale in metres.

    Raises:
        DatasetError: if a sample cannot be read.
    """
    splits = sorted(read_dataset(folder)["splits"], key=SPLITS.index)
    if not splits:
        raise DatasetError(f"{folder} has no splits")
    cells = []
    for number, split in enumerate(splits):
        data = ShardDataset(folder, split)
        wanted = min(len(range(number, count, len(splits))), len(data))
        for index in sorted(random.Random(seed).sample(range(len(data)), wanted)):
            cells.append(_cell(data, index))
    width, height = (max(getattr(cell, side) for cell in cells) for side in ("width", "height"))
    columns = min(COLUMNS, len(cells))
    page = Image.new("RGB", (columns * width, -(-len(cells) // columns) * height), "white")
    for place, cell in enumerate(cells):
        page.paste(cell, (place % columns * width, place // columns * height))
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
