"""The synchronised frames of BTS: list files, and images with raw depth in 16-bit millimetres.

A row of a list is ``rgb depth focal``: ``/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png
518.8579``, below ``sync/`` for train (24,231 rows) and below ``official_splits/test/`` for test (654 rows).
Source: Lee et al., "From Big to Small: Multi-Scale Local Planar Guidance", 2019.

There is no validation split: whole scenes of the train list are held out.
"""

from dataclasses import dataclass
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

LISTS = {"train": "nyudepthv2_train_files_with_gt.txt", "test": "nyudepthv2_test_files_with_gt.txt"}
ROOTS = {"train": ("sync", "official_splits/train", ""), "test": ("official_splits/test", "sync", "")}


@dataclass
class NyuSync(Source):
    """A folder with ``sync/`` and ``official_splits/test/``, and its list files.

    Without a list, the files of BTS's names are taken from the folder or its ``train_test_inputs/``.
    """

    name = "nyu-sync"
    help = "synchronised frames with list files, 24,231 train frames"

    path: Path = argument("folder with sync/ and list files", type=Path, metavar="FOLDER")
    train_list: Path | None = argument("rows: rgb depth focal", None, type=Path, metavar="FILE")
    test_list: Path | None = argument("without it, no test split", None, type=Path, metavar="FILE")

    def about(self) -> dict[str, Any]:
        return nyu.about("raw")

    def items(self) -> list[Item]:
        if not self.path.is_dir():
            raise DatasetError(f"{self.path}: no such folder; expected one with sync/ and list files")
        train_list, test_list = self._list("train", self.train_list), self._list("test", self.test_list)
        if train_list is None:
            raise DatasetError(f"{self.path}: has no {LISTS['train']}; give --train-list FILE")
        train = self._rows("train", train_list)
        scenes = [nyu.scene(PurePosixPath(item.key.rsplit("-", 1)[0]).name) for item in train]
        train = hold_out(train, scenes, val=nyu.VAL_FRACTION)
        return train + (self._rows("test", test_list) if test_list else [])

    def _list(self, split: str, given: Path | None) -> Path | None:
        if given is not None:
            if not given.is_file():
                raise DatasetError(f"{given}: no such list file")
            return given
        places = (self.path / LISTS[split], self.path / "train_test_inputs" / LISTS[split])
        return next((place for place in places if place.is_file()), None)

    def _rows(self, split: str, path: Path) -> list[Item]:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise DatasetError(f"{path}: not a text file; expected rows of: rgb depth focal") from None
        items = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                image, depth, focal = line.split()
                where = (image, depth, float(focal))
            except ValueError:
                raise DatasetError(
                    f"{path} line {number}: {line.strip()!r}; expected: rgb depth focal"
                ) from None
            items.append(Item(split, sample_key(str(PurePosixPath(image).with_suffix(""))), where))
        if not items:
            raise DatasetError(f"{path} is empty: no {split} frames")
        return items

    def _find(self, split: str, name: str) -> Path:
        for root in ROOTS["test" if split == "test" else "train"]:
            if (path := self.path / root / name.lstrip("/")).is_file():
                return path
        raise FrameError(f"{name} is not in {self.path}")

    def load(self, item: Item) -> Frame:
        image_name, depth_name, focal = item.where
        image, image_file = decode_image(self._find(item.split, image_name).read_bytes(), image_name)
        content = self._find(item.split, depth_name).read_bytes()
        steps, wide = decode_steps(content, depth_name)
        if not wide:
            raise FrameError(f"{depth_name}: depth is no 16-bit PNG; expected millimetres of 16 bits")
        metres = steps.astype(np.float32) * np.float32(0.001)
        return Frame(image, metres, focal, image_file, content, nyu.inside(image.shape))
