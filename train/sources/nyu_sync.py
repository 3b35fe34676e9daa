"""The synchronised frames of BTS: list files, and pictures with raw depth in 16-bit millimetres.

A row of a list is ``rgb depth focal``: ``/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png
518.8579``, below ``sync/`` for train (24,231 rows) and below ``official_splits/test/`` for test (654 rows).
Source: Lee et al., "From Big to Small: Multi-Scale Local Planar Guidance", 2019.

There is no validation split: whole scenes of the train list are held out, see ``train.sources.scenes``.
"""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from train.sources import nyu
from train.sources.decode import decode_image, decode_steps
from train.sources.frames import Frame, FrameError, Item, Source, SourceError
from train.sources.scenes import hold_out

LISTS = {"train": "nyudepthv2_train_files_with_gt.txt", "test": "nyudepthv2_test_files_with_gt.txt"}
ROOTS = {
    "train": ("sync", "official_splits/train", ""),
    "test": ("official_splits/test", "sync", ""),
}


class NyuSync(Source):
    """A folder with ``sync/`` and ``official_splits/test/``, and its list files.

    Args:
        path: of the folder.
        train_list, test_list: by default the files of BTS's names in ``path`` or its ``train_test_inputs/``.
            Without a test list there is no test split.
    """

    name = "nyu-sync"

    def __init__(self, path: Path, train_list: Path | None = None, test_list: Path | None = None) -> None:
        self.path = path
        self.lists = {"train": train_list, "test": test_list}
        self.arguments = {}
        self.about = {"truth": "raw", "terms": nyu.TERMS, "camera": nyu.CAMERA}

    def items(self) -> list[Item]:
        if not self.path.is_dir():
            raise SourceError(f"{self.path}: no such folder; expected one with sync/ and list files")
        train_list, test_list = self._list("train"), self._list("test")
        if train_list is None:
            raise SourceError(f"{self.path}: has no {LISTS['train']}; give --train-list FILE")
        train = self._rows("train", train_list)
        splits = hold_out(
            [nyu.scene(PurePosixPath(item.key.rsplit("-", 1)[0]).name) for item in train],
            {"val": nyu.VAL_SHARE},
        )
        chosen = [Item(s, i.key, i.where, i.stamp, i.problem) for s, i in zip(splits, train, strict=True)]
        return [
            *(item for split in ("train", "val") for item in chosen if item.split == split),
            *(self._rows("test", test_list) if test_list else []),
        ]

    def _list(self, split: str) -> Path | None:
        given = self.lists[split]
        if given is not None:
            if not given.is_file():
                raise SourceError(f"{given}: no such list file")
            return given
        places = (self.path / LISTS[split], self.path / "train_test_inputs" / LISTS[split])
        return next((place for place in places if place.is_file()), None)

    def _rows(self, split: str, path: Path) -> list[Item]:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise SourceError(f"{path}: not a text file; expected rows of: rgb depth focal") from None
        items = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                picture, depth, focal = line.split()
                focal_px = float(focal)
            except ValueError:
                raise SourceError(
                    f"{path} line {number}: {line.strip()!r}; expected: rgb depth focal"
                ) from None
            files, problem = [], ""
            for name in (picture, depth):
                file = self._find(split, name)
                files.append(file)
                if file is None:
                    problem = problem or f"{path} line {number}: {name} is not in {self.path}"
            stamp = " ".join(str(file.stat().st_size) for file in files if file is not None)
            key = nyu.key(str(PurePosixPath(picture.lstrip("/")).with_suffix("")))
            where = (*(str(file) for file in files), focal_px)
            items.append(Item(split, key, where, f"{stamp} {focal_px}", problem))
        if not items:
            raise SourceError(f"{path} is empty: no {split} frames")
        return items

    def _find(self, split: str, name: str) -> Path | None:
        places = (self.path / root / name.lstrip("/") for root in ROOTS[split])
        return next((place for place in places if place.is_file()), None)

    def load(self, item: Item, handle: Any) -> Frame:
        picture, depth, focal = item.where
        image, image_file = decode_image(Path(picture).read_bytes(), picture)
        content = Path(depth).read_bytes()
        steps, wide = decode_steps(content, depth)
        if not wide:
            raise FrameError(f"{depth}: depth is no 16-bit PNG; expected millimetres of 16 bits")
        metres = steps.astype(np.float32) * np.float32(0.001)
        return Frame(item.split, item.key, image, metres, focal, image_file, content, nyu.inside(image.shape))
