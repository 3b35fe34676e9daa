"""The set of 50,688 train frames: ``nyu_data.zip``, or its folder.

``data/nyu2_train.csv`` has rows ``jpg,png``; depth is 8 bit, u8 / 255 * 10 m, in-painted. ``data/nyu2_test.csv`` lists
the 654 test frames with depth in 16-bit millimetres. Paths start with ``data/``.
Source: Alhashim & Wonka, "High Quality Monocular Depth Estimation via Transfer Learning", 2018 (DenseDepth).

There is no validation split: whole scenes of the train list are held out.
"""

import csv
import io
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from depthzoo.errors import DatasetError
from train.sources import nyu
from train.sources.base import (
    Frame,
    FrameError,
    Item,
    Source,
    argument,
    decode_image,
    decode_steps,
    hold_out,
    sample_key,
)

METRES_PER_STEP = 10 / 255
LISTS = {"train": "nyu2_train.csv", "test": "nyu2_test.csv"}


@dataclass
class Nyu50k(Source):
    """``nyu_data.zip``, the folder it unpacks to, or that folder's ``data``."""

    name = "nyu-50k"
    help = "nyu_data.zip or its folder, 50,688 train frames"

    path: Path = argument("nyu_data.zip or its folder", type=Path, metavar="ZIP|FOLDER")

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def _read(self, name: str) -> bytes:
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        try:
            return self._archive.read(name)
        except (KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise FrameError(f"{self.path}: {name}: {error}") from None

    def about(self) -> dict[str, Any]:
        return nyu.about("filled")

    def items(self) -> list[Item]:
        try:
            base = self._base()
            rows = {split: self._rows(base, split) for split in LISTS}
        finally:
            self.__dict__.pop("_archive", None)  # each worker process opens its own
        train = hold_out(
            rows["train"],
            [nyu.scene(PurePosixPath(item.where[0]).parent.name) for item in rows["train"]],
            val=nyu.VAL_FRACTION,
        )
        return train + rows["test"]

    def _base(self) -> str:
        """The folder of the lists, with a slash at its end, in the archive or below ``path``."""
        if not self.path.exists():
            raise DatasetError(f"{self.path}: no such file or folder; expected nyu_data.zip or its folder")
        if self.path.is_dir():
            names = [f"{base}{LISTS['train']}" for base in ("data/", "")]
            names = [name for name in names if (self.path / name).is_file()]
        else:
            try:
                names = [name for name in self._archive.namelist() if name.endswith(LISTS["train"])]
            except (zipfile.BadZipFile, EOFError):
                raise DatasetError(
                    f"{self.path}: not a zip file, or truncated; expected nyu_data.zip"
                ) from None
        if not names:
            raise DatasetError(
                f"{self.path}: has no data/{LISTS['train']}; expected nyu_data.zip or its folder"
            )
        return min(names, key=len).removesuffix(LISTS["train"])

    def _rows(self, base: str, split: str) -> list[Item]:
        name = base + LISTS[split]
        try:
            text = self._read(name).decode("utf-8-sig")
        except (FrameError, OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{self.path}: the list of {split} frames cannot be read: {error}") from None
        items = []
        for number, row in enumerate((row for row in csv.reader(io.StringIO(text)) if row), 1):
            if len(row) != 2:
                raise DatasetError(f"{name} row {number}: {len(row)} columns; expected picture,depth")
            image, depth = (cell.strip().removeprefix("data/") for cell in row)
            stem = str(PurePosixPath(image).with_suffix("")).removesuffix("_colors")
            items.append(Item(split, sample_key(stem), (base + image, base + depth)))
        if not items:
            raise DatasetError(f"{self.path}: {name} is empty: no {split} frames")
        return items

    def load(self, item: Item) -> Frame:
        image, image_file = decode_image(self._read(item.where[0]), item.where[0])
        content = self._read(item.where[1])
        steps, wide = decode_steps(content, item.where[1])
        if wide != (item.split == "test"):
            raise FrameError(
                f"{item.where[1]}: depth of {16 if wide else 8} bits; expected 8 bits of train frames, "
                "16-bit millimetres of test frames"
            )
        metres = steps.astype(np.float32) * np.float32(0.001 if wide else METRES_PER_STEP)
        depth_file = content if wide else None
        return Frame(
            image, metres, nyu.focal_px(image.shape[1]), image_file, depth_file, nyu.inside(image.shape)
        )
