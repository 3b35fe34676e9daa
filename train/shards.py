"""The one format that training reads: WebDataset-style tar shards, indexed for random access.

A data set is a folder with ``dataset.json`` and shards ``{split}-000000.tar``. A sample ``key`` is two members
of one shard: ``key.jpg`` or ``key.png``, RGB, and ``key.depth.png``, 16 bits with 0 for invalid.
Beside each shard lies its index, ``{split}-000000.index.json``: where each member starts and how long it is.

``dataset.json`` states "depth_unit", metres per step of the 16 bits or "mm"; "depth_range", [least, largest] in metres,
of valid depth; "camera", its name; and for each split "focal_px" in pixels of the stored frames.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from train.codec import MILLIMETRE, DatasetError, decode

FORMAT = "depthzoo-shards"
VERSION = 1
# Types of a row of an index: key, extension, then offset and length of the image and of the depth.
ROW = (str, str, int, int, int, int)
# Metres; of a data set that states no range.
DEFAULT_RANGE = (0.001, 10.0)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON aside, syncs and renames, so that a reader never sees half a file."""
    aside = path.with_name(path.name + ".part")
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


class ShardWriter:
    """Writes the shards of one split; a context manager. After an exception it takes back what it wrote.

    Args:
        folder: of the data set; made if it is not there.
        split: "train", "val" or "test".
        samples_per_shard: how many samples go into one tar.
        first: number of the first shard, where those before it are there already.

    Attributes:
        entry: after closing, the split's part of ``dataset.json``.
    """

    def __init__(self, folder: Path, split: str, samples_per_shard: int = 256, first: int = 0) -> None:
        self.folder, self.split, self.samples_per_shard, self.first = folder, split, samples_per_shard, first
        folder.mkdir(parents=True, exist_ok=True)
        self._shards: list[dict[str, Any]] = []
        self._members: list[list[Any]] = []
        self._tar: tarfile.TarFile | None = None
        self._keys: set[str] = set()
        self.entry: dict[str, Any] = {}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._discard)
            if kind is None:
                self._finish_shard()
                self.entry = {"count": sum(s["count"] for s in self._shards), "shards": self._shards}
                stack.pop_all()

    def _discard(self) -> None:
        if self._tar is not None:
            with contextlib.suppress(OSError):  # a full disk refuses the end of the archive too
                self._tar.close()
            self._tar = None
        self._part().unlink(missing_ok=True)
        written = [shard["file"] for shard in self._shards]
        if self._members:  # it may have its name already, if its index could not be written
            written.append(f"{self._name()}.tar")
        for path in (self.folder / name for name in written):
            path.unlink(missing_ok=True)
            path.with_suffix(".index.json").unlink(missing_ok=True)

    def write(self, key: str, extension: str, image: bytes, depth: bytes) -> None:
        """Adds a sample: the image's encoded bytes and ``encode_depth``'s.

        Raises:
            ValueError: for a key that was written before, or that has a dot or a slash; another extension.
        """
        if extension not in ("jpg", "png"):
            raise ValueError(f"sample {key!r}: an image's extension is jpg or png, not {extension!r}")
        if key in self._keys or not key or "." in key or "/" in key:
            raise ValueError(f"sample key {key!r} is a duplicate, empty, or has a dot or a slash")
        self._keys.add(key)
        if self._tar is None:
            self._tar = tarfile.open(self._part(), "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        row: list[Any] = [key, extension]
        for name, content in ((f"{key}.{extension}", image), (f"{key}.depth.png", depth)):
            member = tarfile.TarInfo(name)  # mtime 0: the same samples give the same bytes
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
            padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            row += [self._tar.offset - padded, len(content)]
        self._members.append(row)
        if len(self._members) == self.samples_per_shard:
            self._finish_shard()

    def _name(self) -> str:
        return f"{self.split}-{self.first + len(self._shards):06d}"

    def _part(self) -> Path:
        return self.folder / f"{self._name()}.tar.part"

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        path = self.folder / f"{self._name()}.tar"
        with open(self._part(), "rb+") as file:
            os.fsync(file.fileno())  # a shard that has its name is whole, after a power cut too
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(self._part(), path)
        write_json(path.with_suffix(".index.json"), self._members)
        self._shards.append(
            {"file": path.name, "count": len(self._members), "bytes": path.stat().st_size, "sha256": digest}
        )
        self._members = []


def write_dataset(
    folder: Path,
    splits: dict[str, dict[str, Any]],
    depth_unit: float = MILLIMETRE,
    depth_range: tuple[float, float] = DEFAULT_RANGE,
    **about: Any,
) -> None:
    """Writes ``dataset.json``, last of all: a folder without it is unfinished.

    Args:
        folder: of the data set.
        splits: ``ShardWriter.entry`` by split, with "size" [H, W] and "focal_px" added.
        depth_unit: metres per step of the stored depth.
        depth_range: least and largest valid depth, metres.
        **about: source, terms, camera, and whatever else describes the set.
    """
    unit = "mm" if depth_unit == MILLIMETRE else depth_unit
    stated = {"depth_unit": unit, "depth_range": list(depth_range), "splits": splits}
    write_json(folder / "dataset.json", {"format": FORMAT, "version": VERSION, **stated, **about})


def read_dataset(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of ``dataset.json``.

    Raises:
        DatasetError: if the folder or the file is missing, or is something else.
    """
    path = Path(folder) / "dataset.json"
    if not Path(folder).is_dir():
        raise DatasetError(f"no data set at {folder}: no such folder")
    if not path.is_file():
        raise DatasetError(
            f"no data set at {folder}: dataset.json is missing; run python -m train.prepare in a checkout of depthzoo"
        )
    return parse_dataset(path.read_bytes(), str(path))


def parse_dataset(text: bytes, name: str) -> dict[str, Any]:
    """The content of a ``dataset.json``; ``name`` is what errors call it.

    Raises:
        DatasetError: if it is something else.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DatasetError(f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise DatasetError(f"{name} does not describe {FORMAT} version {VERSION}")
    if not isinstance(content.get("splits"), dict):
        raise DatasetError(f"{name} has no table of splits")
    try:
        depth_facts(content)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{name}: {error}") from None
    return content


def depth_facts(info: dict[str, Any]) -> tuple[float, tuple[float, float]]:
    """Metres per step of the stored depth, and its range in metres, from the content of ``dataset.json``."""
    stated = info.get("depth_unit", "mm")
    unit = MILLIMETRE if stated == "mm" else float(stated)
    if not 0 < unit < float("inf"):
        raise ValueError(f'depth_unit {stated!r}: expected "mm" or metres per step')
    low, high = map(float, info.get("depth_range", DEFAULT_RANGE))
    if not 0 < low < high < float("inf"):
        raise ValueError(f"depth_range [{low:g}, {high:g}]: expected 0 < least < largest, metres")
    return unit, (low, high)


@dataclass(frozen=True)
class Shard:
    """A row of ``dataset.json``: file name, samples, bytes, digest."""

    file: str
    count: int
    bytes: int
    sha256: str


def split_shards(info: dict[str, Any], split: str, where: str) -> tuple[float, list[Shard]]:
    """Focal length in pixels and shards of a split, from the content of ``dataset.json``.

    Raises:
        DatasetError: naming ``where``, if there is no such split or something is missing.
    """
    if split not in info["splits"]:
        has = ", ".join(sorted(info["splits"])) or "none"
        raise DatasetError(f"{where} has no split {split!r}; it has: {has}")
    entry = info["splits"][split]
    try:
        return float(entry["focal_px"]), [
            Shard(str(s["file"]), int(s["count"]), int(s["bytes"]), str(s["sha256"])) for s in entry["shards"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{where}: dataset.json lacks part of split {split!r}: {error!r}") from None


class ShardDataset(Sequence[tuple[np.ndarray, np.ndarray]]):
    """One split with random access: ``dataset[i]`` is (uint8 RGB (H, W, 3), uint16 steps of depth (H, W)).

    Args:
        folder: of the data set.
        split: "train", "val" or "test".
        limit: take only so many samples, evenly spread over the split; 0 takes all.

    Attributes:
        keys: of the samples, in order.
        info: the content of ``dataset.json``.
        focal_px: of the stored frames' camera, pixels.
        depth_unit: metres per step.
        depth_range: least and largest valid depth, metres.

    Raises:
        DatasetError: for a missing folder, split, shard or index, and a shard cut short.
    """

    def __init__(self, folder: str | os.PathLike[str], split: str, limit: int = 0) -> None:
        self.folder, self.split = Path(folder), split
        self.info = read_dataset(folder)
        self.focal_px, shards = split_shards(self.info, split, str(folder))
        self.depth_unit, self.depth_range = depth_facts(self.info)
        self._rows: list[tuple[Path, list[Any]]] = []
        for shard in shards:
            path = self.folder / shard.file
            if not path.is_file():
                raise DatasetError(f"{path} is missing; dataset.json names it")
            if path.stat().st_size != shard.bytes:
                raise DatasetError(f"{path} has {path.stat().st_size} bytes, dataset.json says {shard.bytes}")
            rows = self._read_index(path)
            if len(rows) != shard.count:
                raise DatasetError(f"{path} has {len(rows)} samples, dataset.json says {shard.count}")
            self._rows += [(path, row) for row in rows]
        if not self._rows:
            raise DatasetError(f"{folder}: split {split!r} is empty")
        if 0 < limit < len(self._rows):
            self._rows = [self._rows[i * len(self._rows) // limit] for i in range(limit)]
        self.keys = [row[0] for _, row in self._rows]

    @staticmethod
    def _read_index(path: Path) -> list[list[Any]]:
        index = path.with_suffix(".index.json")
        if not index.is_file():
            raise DatasetError(
                f"{index} is missing; run python -m train.prepare in a checkout of depthzoo again"
            )
        try:
            rows: list[list[Any]] = json.loads(index.read_text(encoding="utf-8"))
            for key, extension, *places in rows:
                if not all(isinstance(x, t) for x, t in zip((key, extension, *places), ROW, strict=True)):
                    raise ValueError(f"sample {key!r} is {places}")
        except (TypeError, ValueError) as error:
            raise DatasetError(
                f"{index} is no index ({error}); run python -m train.prepare in a checkout of depthzoo again"
            ) from None
        return rows

    def __len__(self) -> int:
        return len(self._rows)

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        """The stored bytes of the image and of the depth PNG; ``DatasetError`` where the index is wrong."""
        path, (key, extension, image_at, image_bytes, depth_at, depth_bytes) = self._rows[index]
        members = []
        with open(path, "rb") as file:
            for name, at, size in (
                (f"{key}.{extension}", image_at, image_bytes),
                (f"{key}.depth.png", depth_at, depth_bytes),
            ):
                # The tar header before the content has the name: an index of other samples is noticed.
                file.seek(max(at - tarfile.BLOCKSIZE, 0))
                header, content = file.read(tarfile.BLOCKSIZE), file.read(size)
                if header[:100].rstrip(b"\0") != name.encode() or len(content) != size:
                    raise DatasetError(f"{path}: {name} is cut short, or not where the index has it")
                members.append(content)
        return members[0], members[1]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override]
        """Decodes a sample.

        Raises:
            DatasetError: naming shard and key; see :func:`decode`.
        """
        path, row = self._rows[index]
        return decode(*self.encoded(index), str(path), row[0])
