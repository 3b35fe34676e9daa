"""A data set behind a URL: its files are opened by webdataset, read on where a connection broke, and verified.

A URL is a folder's, as in ``https://host/nyu``; or ``{}`` in it stands for the file's name, as in
``pipe:aws s3 cp s3://bucket/nyu/{} -``, which runs a command that writes the file to its standard output.
"""

import hashlib
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from depthzoo.files import atomic_write, sha256_of
from train.codec import DatasetError
from train.connection import CHUNK, BrokenError, Connection, Retries, persistently
from train.shards import Shard, ShardDataset, parse_dataset, split_shards, write_json

LARGEST_DESCRIPTION = 64 << 20  # bytes of a dataset.json
# A name that is safe in a path, a URL and a shell.
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")


def is_remote(data: str) -> bool:
    """Whether a data set's place is a URL, not a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|pipe:|file:/", data) is not None


@dataclass(frozen=True)
class Encoded:
    """A sample as it is in a shard; None for a member that is missing."""

    url: str
    key: str
    image: bytes | None
    depth: bytes | None


class RemoteSet:
    """A data set behind a URL.

    Args:
        url: see above.

    Attributes:
        info: the content of ``dataset.json``.
        text: its bytes.
        digest: their sha256.

    Raises:
        DatasetError: it cannot be read, or is something else.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.text = persistently(self.place("dataset.json"), _read_description)
        self.digest = hashlib.sha256(self.text).hexdigest()
        self.info = parse_dataset(self.text, self.place("dataset.json"))

    def place(self, name: str) -> str:
        """The URL of a file."""
        return self.url.replace("{}", name) if "{}" in self.url else f"{self.url.rstrip('/')}/{name}"

    def shards(self, split: str) -> tuple[float, list[Shard]]:
        """Focal length in pixels and shards of a split.

        Raises:
            DatasetError: there is none, it is empty, or a name is none of a shard's.
        """
        focal_px, shards = split_shards(self.info, split, self.url)
        for shard in shards:
            if not SHARD_NAME.fullmatch(shard.file):
                raise DatasetError(f"{self.url}: dataset.json names a shard {shard.file!r}")
        if not sum(shard.count for shard in shards):
            raise DatasetError(f"{self.url}: split {split!r} is empty")
        return focal_px, shards

    def samples(
        self, shard: Shard, first: int, last: int, closing: threading.Event
    ) -> Iterator[tuple[int, Encoded]]:
        """Samples first, ..., last - 1 of a shard, with their numbers in it.

        A shard is read from its start: what was had before a connection broke is read over. Its digest is checked
        where it is read to its end.

        Args:
            shard: of a split.
            first, last: 0 <= first < last <= shard.count.
            closing: set, it ends the iteration.

        Raises:
            DatasetError: it cannot be read after some attempts, or is not what ``dataset.json`` says.
        """
        url = self.place(shard.file)
        retries = Retries(url, closing)
        while first < last and not closing.is_set():
            try:
                with Connection(url, closing) as connection:
                    for number, sample in self._whole(connection, shard):
                        if first <= number < last:
                            retries.failures = 0
                            first = number + 1
                            yield number, sample
                        if number + 1 == last < shard.count or closing.is_set():
                            return
            except BrokenError as error:
                if not closing.is_set():
                    retries.failed(error)

    @staticmethod
    def _whole(connection: Connection, shard: Shard) -> Iterator[tuple[int, Encoded]]:
        """All samples of a shard; the last one only if the shard is whole."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        url, before, count = connection.url, None, 0
        members = tar_file_expander([{"url": url, "stream": connection}])
        try:
            for sample in group_by_keys(members):
                if before is not None:
                    yield count - 1, before
                image = sample.get("jpg", sample.get("png"))
                before, count = Encoded(url, sample["__key__"], image, sample.get("depth.png")), count + 1
            while connection.read(CHUNK):
                pass
        except tarfile.TarError:
            connection.read(CHUNK)  # its error says more, if it was cut short
            raise BrokenError(f"no whole tar file after {count} samples") from None
        except ValueError as error:
            raise DatasetError(f"{url}: {error.args[0]}") from None
        if count < shard.count:
            raise BrokenError(f"{count} samples, dataset.json says {shard.count}")
        if connection.sha256.hexdigest() != shard.sha256 or before is None:
            raise DatasetError(
                f"{url}: sha256 {connection.sha256.hexdigest()}, dataset.json says {shard.sha256}; one of them changed"
            )
        yield count - 1, before


def _read_description(connection: Connection) -> bytes:
    text = b""
    while part := connection.read(CHUNK):
        text += part
        if len(text) > LARGEST_DESCRIPTION:
            raise DatasetError(f"{connection.url} does not describe a data set: it is too large")
    return text


def index_of(path: Path) -> list[list[Any]]:
    """The index of a shard: key, extension, then offset and length of the image and of the depth."""
    rows: dict[str, dict[str, tarfile.TarInfo]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            rows.setdefault(key, {})[extension] = member
    index: list[list[Any]] = []
    for key, members in rows.items():
        pictures = [extension for extension in ("jpg", "png") if extension in members]
        if len(pictures) != 1 or "depth.png" not in members:
            raise DatasetError(f"{path}: sample {key!r} has the members {', '.join(members)}")
        both = (members[pictures[0]], members["depth.png"])
        index.append([key, pictures[0], *(x for member in both for x in (member.offset_data, member.size))])
    return index


def fetch_split(url: str, split: str, folder: Path) -> ShardDataset:
    """Copies one split into a folder; shards that are there already stay.

    Args:
        url: of the data set.
        split: "train", "val" or "test".
        folder: of the copy.

    Raises:
        DatasetError: for what cannot be read, or is not what ``dataset.json`` says; nothing half-written stays.
        OSError: it cannot be written.
    """
    remote = RemoteSet(url)
    _, shards = remote.shards(split)
    folder.mkdir(parents=True, exist_ok=True)
    description = folder / "dataset.json"
    if description.is_file() and description.read_bytes() != remote.text:
        description.unlink()
    done, total = 0, sum(shard.bytes for shard in shards)
    with tqdm(total=total, desc=f"fetching {split}", unit="B", unit_scale=True, disable=None) as bar:
        for shard in shards:
            path = folder / shard.file
            there = path.is_file() and path.stat().st_size == shard.bytes
            if not there or sha256_of(path) != shard.sha256:
                persistently(remote.place(shard.file), partial(_copy, path=path, shard=shard, bar=bar))
            write_json(path.with_suffix(".index.json"), index_of(path))
            done += shard.bytes
            bar.update(done - bar.n)
    with atomic_write(description) as temporary:
        temporary.write_bytes(remote.text)
    return ShardDataset(folder, split)


def _copy(connection: Connection, path: Path, shard: Shard, bar: Any) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        while chunk := connection.read(CHUNK):
            file.write(chunk)
            if file.tell() > shard.bytes:
                raise DatasetError(f"{connection.url}: more than the {shard.bytes} bytes of dataset.json")
            bar.update(len(chunk))
        if file.tell() < shard.bytes:
            raise BrokenError(f"{file.tell()} bytes, dataset.json says {shard.bytes}")
        digest = connection.sha256.hexdigest()
        if digest != shard.sha256:
            raise DatasetError(f"{connection.url}: sha256 {digest}, dataset.json says {shard.sha256}")
