"""Forms of NYU Depth V2 that come as files with lists of them: the set of 50,688 train frames, and that of BTS.

They have no validation split: whole scenes of the train list are held out.
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
from train.codec import decode_image, decode_steps
from train.sources import nyu
from train.sources.base import Frame, Item, Source, argument, hold_out, sample_key


def make_items(rows: list[tuple[str, str, float | None]], split: str, where: str) -> list[Item]:
    """Return the frames of a list with rows (image, depth, focal length).

    Raises:
        DatasetError: for an empty list.
    """
    if not rows:
        raise DatasetError(f"{where} is empty: no {split} frames")
    stems = [str(PurePosixPath(row[0]).with_suffix("")).removesuffix("_colors") for row in rows]
    items = [Item(split, sample_key(stem), row) for stem, row in zip(stems, rows, strict=True)]
    if split == "test":
        return items
    scenes = [nyu.scene(PurePosixPath(row[0]).parent.name) for row in rows]
    return hold_out(items, scenes, val=nyu.VAL_FRACTION)


@dataclass
class Nyu50k(Source):
    """``nyu_data.zip``, the folder it unpacks to, or that folder's ``data``.

    ``data/nyu2_train.csv`` has rows ``jpg,png``; depth is 8 bit, u8 / 255 * 10 m, in-painted. ``data/nyu2_test.csv``
    lists the 654 test frames with depth in 16-bit millimetres. Paths start with ``data/``.
    Source: Alhashim & Wonka, "High Quality Monocular Depth Estimation via Transfer Learning", 2018 (DenseDepth).
    """

    name = "nyu-50k"
    help = "nyu_data.zip or its folder, 50,688 train frames"

    path: Path = argument("nyu_data.zip or its folder", type=Path, metavar="ZIP|FOLDER")

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes() if self.path.is_dir() else self._archive.read(name)
        except (KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise DatasetError(f"{self.path}: {name}: {error}") from None

    def about(self) -> dict[str, Any]:
        return nyu.about("filled")

    def items(self) -> list[Item]:
        expected = "expected nyu_data.zip or its folder"
        if not self.path.exists():
            raise DatasetError(f"{self.path}: no such file or folder; {expected}")
        names = [f"{base}nyu2_train.csv" for base in ("data/", "") if self.path.is_dir()]
        names = [name for name in names if (self.path / name).is_file()]
        try:
            if not self.path.is_dir():
                names = [name for name in self._archive.namelist() if name.endswith("nyu2_train.csv")]
            if not names:
                raise DatasetError(f"{self.path}: has no data/nyu2_train.csv; {expected}")
            base = min(names, key=len).removesuffix("nyu2_train.csv")
            return [item for split in ("train", "test") for item in self._list(base, split)]
        except (zipfile.BadZipFile, EOFError):
            raise DatasetError(f"{self.path}: not a zip file, or truncated; {expected}") from None
        finally:
            self.__dict__.pop("_archive", None)  # each worker process opens its own

    def _list(self, base: str, split: str) -> list[Item]:
        name = f"{base}nyu2_{split}.csv"
        try:
            lines = list(csv.reader(io.StringIO(self._read(name).decode("utf-8-sig"))))
        except (DatasetError, UnicodeDecodeError) as error:
            raise DatasetError(f"{self.path}: the list of {split} frames cannot be read: {error}") from None
        rows: list[tuple[str, str, float | None]] = []
        for number, cells in enumerate(filter(None, lines), 1):
            if len(cells) != 2:
                raise DatasetError(f"{name} row {number}: {len(cells)} columns; expected picture,depth")
            image, depth = (base + cell.strip().removeprefix("data/") for cell in cells)
            rows.append((image, depth, None))
        items = make_items(rows, split, f"{self.path}: {name}")
        # A key is the path below the folder of the list.
        return [item._replace(key=item.key.removeprefix(sample_key(base) + "-")) for item in items]

    def load(self, item: Item) -> Frame:
        image_name, depth_name, _ = item.where
        image, image_file = decode_image(self._read(image_name), image_name)
        content = self._read(depth_name)
        steps, wide = decode_steps(content, depth_name)
        if wide != (item.split == "test"):
            raise DatasetError(
                f"{depth_name}: depth of {16 if wide else 8} bits; expected 8 bits of train frames, "
                "16-bit millimetres of test frames"
            )
        metres = steps.astype(np.float32) * np.float32(0.001 if wide else 10 / 255)
        focal, depth_file = nyu.focal_px(image.shape[1]), content if wide else None
        return Frame(image, metres, focal, image_file, depth_file, nyu.inside(image.shape))


@dataclass
class NyuSync(Source):
    """A folder with ``sync/`` and ``official_splits/test/``, images and raw depth in 16-bit millimetres.

    A row of a list is ``rgb depth focal``: ``/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png
    518.8579``, below ``sync/`` for train (24,231 rows) and below ``official_splits/test/`` for test (654 rows).
    Without a list, the files of BTS's names are taken from the folder or its ``train_test_inputs/``.
    Source: Lee et al., "From Big to Small: Multi-Scale Local Planar Guidance", 2019.
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
        items: list[Item] = []
        for split, given in (("train", self.train_list), ("test", self.test_list)):
            usual = f"nyudepthv2_{split}_files_with_gt.txt"
            places = (self.path / usual, self.path / "train_test_inputs" / usual)
            path = given or next((place for place in places if place.is_file()), None)
            if path is not None:
                items += self._list(path, split)
            elif split == "train":
                raise DatasetError(f"{self.path}: has no {usual}; give --train-list FILE")
        return items

    def _list(self, path: Path, split: str) -> list[Item]:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            raise DatasetError(f"{path}: no such list file") from None
        except UnicodeDecodeError:
            raise DatasetError(f"{path}: not a text file; expected rows of: rgb depth focal") from None
        rows: list[tuple[str, str, float | None]] = []
        for number, line in enumerate(lines, 1):
            try:
                image, depth, focal = line.split() or ("", "", "0")
                rows += [(image, depth, float(focal))] if image else []
            except ValueError:
                found = f"{path} line {number}: {line.strip()!r}"
                raise DatasetError(f"{found}; expected: rgb depth focal") from None
        return make_items(rows, split, str(path))

    def _read(self, split: str, name: str) -> bytes:
        roots = (
            ("official_splits/test", "sync", "") if split == "test" else ("sync", "official_splits/train", "")
        )
        for root in roots:
            if (path := self.path / root / name.lstrip("/")).is_file():
                return path.read_bytes()
        raise DatasetError(f"{name} is not in {self.path}")

    def load(self, item: Item) -> Frame:
        image_name, depth_name, focal = item.where
        image, image_file = decode_image(self._read(item.split, image_name), image_name)
        content = self._read(item.split, depth_name)
        steps, wide = decode_steps(content, depth_name)
        if not wide:
            raise DatasetError(f"{depth_name}: depth is no 16-bit PNG; expected millimetres of 16 bits")
        metres = steps.astype(np.float32) * np.float32(0.001)
        return Frame(image, metres, focal, image_file, content, nyu.inside(image.shape))
