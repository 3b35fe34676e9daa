"""A contact sheet of random samples, so that a wrong transpose or unit is seen."""

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from depthzoo.visualize import panel
from train.shards import DatasetError, ShardDataset, read_dataset

TILE = 280
COLUMNS = 3


def sheet(folder: Path, count: int = 12, seed: int = 0) -> Image.Image:
    """Picture | depth with a legend in metres, of ``count`` random samples shared among the splits.

    Raises:
        DatasetError: if a sample cannot be read.
    """
    splits = sorted(read_dataset(folder)["splits"], key=("train", "val", "test").index)
    if not splits:
        raise DatasetError(f"{folder} has no splits")
    cells = []
    for number, split in enumerate(splits):
        data = ShardDataset(folder, split)
        share = len(range(number, count, len(splits)))
        for index in sorted(random.Random(seed).sample(range(len(data)), min(share, len(data)))):
            image, steps = data[index]
            picture = Image.fromarray(panel(image, steps * np.float32(data.depth_unit), tile=TILE))
            title = f"{split} {data.keys[index]}"
            font = ImageFont.load_default(size=14)
            draw = ImageDraw.Draw(picture)
            draw.rectangle((0, 0, picture.width, 28), "white")
            draw.text((8, 8), f"{title}   {image.shape[1]} x {image.shape[0]}", "black", font)
            cells.append(picture)
    width, height = (max(getattr(cell, side) for cell in cells) for side in ("width", "height"))
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * width, rows * height), "white")
    for place, cell in enumerate(cells):
        page.paste(cell, (place % columns * width, place // columns * height))
    return page


def write_sheet(folder: Path, out: Path, count: int = 12, seed: int = 0) -> None:
    """``sheet`` into a PNG, written aside and renamed."""
    page = sheet(folder, count, seed)
    aside = out.with_name(out.name + ".part")
    try:
        page.save(aside, "PNG")
        aside.replace(out)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
