"""The data format that training reads: WebDataset-style tar shards with an index for random access.

A data set is a folder with ``dataset.json`` and shards ``{split}-000000.tar``. Each sample is two members of one shard:
``{key}.jpg`` or ``{key}.png``, the RGB image, and ``{key}.depth.png``, depth in 16-bit steps with 0 for invalid.
Beside each shard lies its index, ``{split}-000000.index.json``: the offset and length of each member.

``dataset.json`` holds "depth_unit" (metres per step, or "mm"), "depth_range" ([least, largest] valid depth in metres),
"camera" (its name), and for each split the shards, "size" ([H, W]) and "focal_px" (pixels of the stored images).
"""

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

from depthzoo.errors import DatasetError
from depthzoo.files import atomic_write, sha256_of, write_json
from train.codec import MILLIMETRE, decode

FORMAT = "depthzoo-shards"
VERSION = 1
DEFAULT_RANGE = (0.001, 10.0)  # metres, of a data set that states none
# Types of a row of an index: key, extension, then offset and length of the image and of the depth.
ROW = (str, str, int, int, int, int)


class ShardWriter:
    """Write the shards of one split. A context manager, which writes the last shard unless an exception was raised.

    A shard is kept in memory until it is complete and then written atomically.

    Args:
        folder: the data set's folder, created if it does not exist.
        split: "train", "val" or "test".
        samples_per_shard: number of samples in one tar.
        first: number of the first shard to write.

    Attributes:
        entry: after closing, the split's entry in ``dataset.json`` ("count" and "shards").
    """

    def __init__(self, folder: Path, split: str, samples_per_shard: int = 256, first: int = 0) -> None:
        self.folder, self.split, self.samples_per_shard, self.first = folder, split, samples_per_shard, first
        folder.mkdir(parents=True, exist_ok=True)
        self._shards: list[dict[str, Any]] = []
        self._samples: list[tuple[str, str, bytes, bytes]] = []
        self._keys: set[str] = set()
        self.entry: dict[str, Any] = {}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            if self._samples:
                self._write_shard()
            self.entry = {"count": sum(s["count"] for s in self._shards), "shards": self._shards}

    def write(self, key: str, extension: str, image: bytes, depth: bytes) -> None:
        """Add a sample.

        Args:
            key: name of the sample, unique in its split, without dots and slashes.
            extension: "jpg" or "png".
            image: the encoded image.
            depth: what :func:`encode_depth` returns.

        Raises:
            ValueError: for a bad or duplicate key, or another extension.
        """
        if extension not in ("jpg", "png"):
            raise ValueError(f"sample {key!r}: an image's extension is jpg or png, not {extension!r}")
        if key in self._keys or not key or "." in key or "/" in key:
            raise ValueError(f"sample key {key!r} is a duplicate, empty, or has a dot or a slash")
        self._keys.add(key)
        self._samples.append((key, extension, image, depth))
        if len(self._samples) == self.samples_per_shard:
            self._write_shard()

    def _write_shard(self) -> None:
        path = self.folder / f"{self.split}-{self.first + len(self._shards):06d}.tar"
        index: list[list[Any]] = []
        with atomic_write(path) as temporary:
            with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                for key, extension, image, depth in self._samples:
                    index.append([key, extension])
                    for name, content in ((f"{key}.{extension}", image), (f"{key}.depth.png", depth)):
                        member = tarfile.TarInfo(name)  # mtime 0: the same samples give the same bytes
                        member.size = len(content)
                        index[-1] += [tar.offset + tarfile.BLOCKSIZE, len(content)]
                        tar.addfile(member, io.BytesIO(content))
            digest, size = sha256_of(temporary), temporary.stat().st_size
        write_json(path.with_suffix(".index.json"), index)
        self._shards.append({"file": path.name, "count": len(index), "bytes": size, "sha256": digest})
        self._samples = []


def write_dataset(
    folder: Path,
    splits: dict[str, dict[str, Any]],
    depth_unit: float = MILLIMETRE,
    depth_range: tuple[float, float] = DEFAULT_RANGE,
    **about: Any,
) -> None:
    """Write ``dataset.json``. Call this last: a folder without it is not a data set.

    Args:
        folder: the data set's folder.
        splits: ``ShardWriter.entry`` by split, with "size" ([H, W]) and "focal_px" added.
        depth_unit: metres per step of the stored depth.
        depth_range: least and largest valid depth in metres.
        **about: source, terms, camera and other facts about the set.
    """
    unit = "mm" if depth_unit == MILLIMETRE else depth_unit
    stated = {"depth_unit": unit, "depth_range": list(depth_range), "splits": splits}
    write_json(folder / "dataset.json", {"format": FORMAT, "version": VERSION, **stated, **about})


def read_dataset(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check ``dataset.json``.

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
    """Parse and check the content of a ``dataset.json``.

    Args:
        text: the file's content.
        name: the file's name, for errors.

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
    """Return the metres per step and the depth range in metres that a ``dataset.json`` states."""
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
    """A shard as ``dataset.json`` lists it: file name, number of samples, bytes, sha256."""

    file: str
    count: int
    bytes: int
    sha256: str


def split_shards(info: dict[str, Any], split: str, where: str) -> tuple[float, list[Shard]]:
    """Return the focal length in pixels and the shards of a split.

    Args:
        info: the content of ``dataset.json``.
        split: "train", "val" or "test".
        where: name of the data set, for errors.

    Raises:
        DatasetError: if there is no such split or its entry is incomplete.
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
    """One split with random access.

    ``dataset[i]`` is (uint8 RGB (H, W, 3), uint16 steps of depth (H, W)).

    Args:
        folder: the data set's folder.
        split: "train", "val" or "test".
        limit: maximum number of samples, evenly spread over the split. If 0, all.

    Attributes:
        keys: keys of the samples, in order.
        info: the content of ``dataset.json``.
        focal_px: focal length of the stored images in pixels.
        depth_unit: metres per step.
        depth_range: least and largest valid depth in metres.

    Raises:
        DatasetError: for a missing folder, split, shard or index, or a truncated shard.
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
            rows = _read_index(path.with_suffix(".index.json"))
            if len(rows) != shard.count:
                raise DatasetError(f"{path} has {len(rows)} samples, dataset.json says {shard.count}")
            self._rows += [(path, row) for row in rows]
        if not self._rows:
            raise DatasetError(f"{folder}: split {split!r} is empty")
        if 0 < limit < len(self._rows):
            self._rows = [self._rows[i * len(self._rows) // limit] for i in range(limit)]
        self.keys = [row[0] for _, row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        """Return the stored bytes of an image and its depth PNG.

        Raises:
            DatasetError: if they are not where the index says.
        """
        path, (key, extension, image_at, image_bytes, depth_at, depth_bytes) = self._rows[index]
        members = []
        with open(path, "rb") as file:
            for name, at, size in (
                (f"{key}.{extension}", image_at, image_bytes),
                (f"{key}.depth.png", depth_at, depth_bytes),
            ):
                # The tar header before the content has the name, so an index of other samples is noticed.
                file.seek(max(at - tarfile.BLOCKSIZE, 0))
                header, content = file.read(tarfile.BLOCKSIZE), file.read(size)
                if header[:100].rstrip(b"\0") != name.encode() or len(content) != size:
                    raise DatasetError(f"{path}: {name} is truncated, or not where the index says")
                members.append(content)
        return members[0], members[1]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override]
        """Decode a sample. See :func:`decode` for the errors."""
        path, row = self._rows[index]
        return decode(*self.encoded(index), str(path), row[0])


def _read_index(path: Path) -> list[list[Any]]:
    again = "run python -m train.prepare in a checkout of depthzoo again"
    if not path.is_file():
        raise DatasetError(f"{path} is missing; {again}")
    try:
        rows: list[list[Any]] = json.loads(path.read_text(encoding="utf-8"))
        for key, extension, *places in rows:
            if not all(isinstance(x, t) for x, t in zip((key, extension, *places), ROW, strict=True)):
                raise ValueError(f"sample {key!r} is {places}")
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path} is no index ({error}); {again}") from None
    return rows
