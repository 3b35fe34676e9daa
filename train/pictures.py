"""Unlabelled pictures in tars or folders, read at random from where they are."""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from depthzoo.errors import DatasetError
from depthzoo.images import SUFFIXES, load_image


@dataclass(frozen=True)
class Picture:
    """A picture that has been found but not read.

    Attributes:
        path: the tar, or the picture's own file.
        name: name in the tar, or below the folder that was given: ``kitchen/00001.webp``.
        offset, size: where its bytes are in ``path``.
    """

    path: Path
    name: str
    offset: int
    size: int

    @property
    def kind(self) -> str:
        """Name of the folder that the picture is in, "" without one."""
        return PurePosixPath(self.name).parent.name

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"

    def read(self) -> NDArray[np.uint8]:
        """Decode the picture: uint8 RGB (H, W, 3), upright.

        Raises:
            DatasetError: if it cannot be read, is truncated or is no picture.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                content = io.BytesIO(file.read(self.size))
            content.name = str(self)  # for errors
            return load_image(content)
        except (OSError, ValueError) as error:
            raise DatasetError(str(error)) from None


def find_pictures(sources: Iterable[Path]) -> list[Picture]:
    """Find all pictures of tars and folders, in the order given.

    A tar must not be compressed, because its pictures are read in place. A folder gives the tars in it, or if there are
    none the pictures in and below it.

    Raises:
        DatasetError: if a source is missing, truncated, not a tar, or has no pictures.
    """
    pictures: list[Picture] = []
    for source in sources:
        if not source.exists():
            raise DatasetError(f"{source}: no such tar or folder")
        tars = sorted(source.glob("*.tar")) if source.is_dir() else [source]
        found = [picture for tar in tars for picture in _in_tar(tar)] if tars else _in_folder(source)
        if not found:
            raise DatasetError(f"{source} has no pictures; expected <kind>/NNNNN.webp, .jpg or .png")
        pictures += found
    return pictures


def fingerprint(pictures: Sequence[Picture]) -> str:
    """Return the sha256 of all names and sizes, which tells whether a resumed run has the same pictures."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.name}\0{picture.size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    # In the project's own shards the images are pictures, the depth is not.
    return path.suffix.lower() in SUFFIXES and not hidden and not name.lower().endswith(".depth.png")


def _in_tar(path: Path) -> list[Picture]:
    size, found = path.stat().st_size, []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isreg() and _is_picture(name):
                    found.append(Picture(path, name, member.offset_data, member.size))
                    if member.offset_data + member.size > size:
                        raise DatasetError(f"{path} is truncated in the middle of {name}")
    except tarfile.TarError as error:
        raise DatasetError(f"{path} is not an uncompressed tar, or is truncated: {error}") from None
    return found


def _in_folder(folder: Path) -> list[Picture]:
    paths = [(path, path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*"))]
    return [
        Picture(path, name, 0, path.stat().st_size)
        for path, name in paths
        if _is_picture(name) and path.is_file()
    ]
