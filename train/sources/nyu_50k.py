"""The set of 50,688 train frames: ``nyu_data.zip``, or its folder.

``data/nyu2_train.csv`` has rows ``jpg,png``; depth is 8 bit, u8 / 255 * 10 m, in-painted. ``data/nyu2_test.csv``
has the 654 test frames with depth in 16-bit millimetres. Paths start with ``data/``.
Source: Alhashim & Wonka, "High Quality Monocular Depth Estimation via Transfer Learning", 2018 (DenseDepth).

There is no validation split: whole scenes of the train list are held out, see ``train.sources.scenes``.
"""

import csv
import io
import zipfile
import zlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath

import numpy as np

from train.sources import nyu
from train.sources.decode import decode_image, decode_steps
from train.sources.frames import Frame, FrameError, Item, Source, SourceError
from train.sources.scenes import hold_out

METRES_PER_STEP = 10 / 255
LISTS = {"train": "nyu2_train.csv", "test": "nyu2_test.csv"}


class Nyu50k(Source):
    """``nyu_data.zip``, the folder it unpacks to, or that folder's ``data``.

    Args:
        path: of the zip or folder.
    """

    name = "nyu-50k"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arguments = {}
        self.about = {"truth": "filled", "terms": nyu.TERMS, "camera": nyu.CAMERA}

    def open(self) -> AbstractContextManager[zipfile.ZipFile | None]:
        if self.path.is_dir():
            return nullcontext()
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, EOFError):
            raise SourceError(f"{self.path}: not a zip file, or cut short; expected nyu_data.zip") from None

    def items(self) -> list[Item]:
        if not self.path.exists():
            raise SourceError(f"{self.path}: no such file or folder; expected nyu_data.zip or its folder")
        with self.open() as archive:
            stamps = None
            if archive is not None:
                stamps = {info.filename: f"{info.file_size} {info.CRC:08x}" for info in archive.infolist()}
            base = self._base(stamps)
            rows = {split: self._rows(archive, base, split) for split in LISTS}
            found = [
                self._item(split, base, row, stamps) for split in LISTS for row in enumerate(rows[split], 1)
            ]
        train = [item for item in found if item.split == "train"]
        scenes = [nyu.scene(PurePosixPath(item.where[0]).parent.name) for item in train]
        splits = hold_out(scenes, {"val": nyu.VAL_SHARE})
        chosen = [Item(s, i.key, i.where, i.stamp, i.problem) for s, i in zip(splits, train, strict=True)]
        return [
            *(item for split in ("train", "val") for item in chosen if item.split == split),
            *(item for item in found if item.split == "test"),
        ]

    def _base(self, stamps: dict[str, str] | None) -> str:
        """The folder of the lists, with a slash at its end, in the archive or below ``path``."""
        if stamps is None:
            places = [base for base in ("data/", "") if (self.path / base / LISTS["train"]).is_file()]
        else:
            names = sorted((name for name in stamps if name.endswith(LISTS["train"])), key=len)
            places = [name.removesuffix(LISTS["train"]) for name in names]
        if not places:
            raise SourceError(
                f"{self.path}: has no data/{LISTS['train']}; expected nyu_data.zip or its folder"
            )
        return places[0]

    def _rows(self, archive: zipfile.ZipFile | None, base: str, split: str) -> list[list[str]]:
        name = base + LISTS[split]
        try:
            text = self._read(archive, name).decode("utf-8-sig")
        except (FrameError, UnicodeDecodeError) as error:
            raise SourceError(f"{self.path}: the list of {split} frames cannot be read: {error}") from None
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
        for number, row in enumerate(rows, 1):
            if len(row) != 2:
                raise SourceError(f"{name} row {number}: {len(row)} columns; expected picture,depth")
        if not rows:
            raise SourceError(f"{self.path}: {name} is empty: no {split} frames")
        return rows

    def _item(self, split: str, base: str, row: tuple[int, list[str]], stamps: dict[str, str] | None) -> Item:
        number, names = row
        inner = [name.strip().removeprefix("data/") for name in names]
        places = [base + name for name in inner]
        stamp, problem = [], ""
        for place in places:
            if stamps is None:
                file = self.path / place
                one = str(file.stat().st_size) if file.is_file() else None
            else:
                one = stamps.get(place)
            stamp.append(one or "")
            if one is None:
                problem = problem or f"{self.path}: has no {place}; {LISTS[split]} row {number} names it"
        stem = str(PurePosixPath(inner[0]).with_suffix("")).removesuffix("_colors")
        return Item(split, nyu.key(stem), tuple(places), " ".join(stamp), problem)

    def _read(self, archive: zipfile.ZipFile | None, name: str) -> bytes:
        if archive is None:
            try:
                return (self.path / name).read_bytes()
            except OSError as error:
                raise FrameError(f"{self.path / name}: {error.strerror}") from None
        try:
            return archive.read(name)
        except (KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise FrameError(f"{self.path}: {name}: {error}") from None

    def load(self, item: Item, handle: zipfile.ZipFile | None) -> Frame:
        picture, depth = (self._read(handle, name) for name in item.where)
        image, image_file = decode_image(picture, item.where[0])
        steps, wide = decode_steps(depth, item.where[1])
        if wide != (item.split == "test"):
            raise FrameError(
                f"{item.where[1]}: depth of {16 if wide else 8} bits; expected 8 bits of train frames, "
                "16-bit millimetres of test frames"
            )
        metres = steps.astype(np.float32) * np.float32(0.001 if wide else METRES_PER_STEP)
        return Frame(
            item.split,
            item.key,
            image,
            metres,
            nyu.focal_px(image.shape[1]),
            image_file,
            depth if wide else None,
            nyu.inside(image.shape),
        )
