"""Pictures without depth, in tars or folders: found once, read at random from where they lie."""

import hashlib
import io
import os
import tarfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from depthzoo.images import FORMATS, SUFFIXES, load_image

# Share of the pictures that may be unreadable before a command stops.
MAX_UNREADABLE = 0.01


class PictureError(ValueError):
    """Pictures that are missing or cannot be read; one line."""


@dataclass(frozen=True)
class Picture:
    """Where the bytes of a picture are.

    Attributes:
        path: of the tar or of the picture's own file.
        name: in the tar, or below the folder that was given: ``kitchen/00001.webp``.
        offset, size: of its bytes in ``path``.
    """

    path: Path
    name: str
    offset: int
    size: int

    @property
    def kind(self) -> str:
        """Name of the folder that the picture is in; "" where it is in none."""
        return PurePosixPath(self.name).parent.name

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"

    def read(self) -> NDArray[np.uint8]:
        """Decodes: uint8 RGB (H, W, 3), upright.

        Raises:
            PictureError: naming it, if it is cut short, no picture, or not to be decoded.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                Image.init()  # without it Pillow knows only some formats
                known = [name for name in FORMATS if name in Image.OPEN]
                return load_image(Image.open(io.BytesIO(content), formats=known))
        except Exception as error:  # Pillow raises SyntaxError, struct.error and its own besides
            what = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):
                what = "not a picture in a known format"
            raise PictureError(f"{self}: cannot be read: {what}") from None


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    # The depth in the project's own shards is no picture; their images are.
    return path.suffix.lower() in SUFFIXES and not hidden and not name.lower().endswith(".depth.png")


def _of_tar(path: Path) -> list[Picture]:
    size = path.stat().st_size
    found = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg() or not _is_picture(member.name.removeprefix("./")):
                    continue
                if member.offset_data + member.size > size:
                    raise PictureError(f"{path} is cut short, in the middle of {member.name}")
                name = member.name.removeprefix("./")
                found.append(Picture(path, name, member.offset_data, member.size))
    except tarfile.TarError as error:
        raise PictureError(f"{path} is not an uncompressed tar, or is cut short: {error}") from None
    return found


def _of_folder(folder: Path) -> list[Picture]:
    tars = sorted(folder.glob("*.tar"))
    if tars:
        return [picture for tar in tars for picture in _of_tar(tar)]
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(root, name) for name in sorted(names) if _is_picture(name)):
            found.append(Picture(path, path.relative_to(folder).as_posix(), 0, path.stat().st_size))
    return found


def find_pictures(sources: Iterable[Path]) -> list[Picture]:
    """All pictures of tars and folders, in the order given.

    A tar must not be compressed, so that its pictures can be read where they lie. Of a folder: the tars in it, or
    where there are none the pictures in and below it.

    Raises:
        PictureError: for a source that is missing, cut short, no tar, or without a picture.
    """
    pictures: list[Picture] = []
    for source in sources:
        try:
            if not source.exists():
                raise PictureError(f"{source}: no such tar or folder")
            found = _of_folder(source) if source.is_dir() else _of_tar(source)
        except OSError as error:
            raise PictureError(f"{source}: {error.strerror or error}") from None
        if not found:
            raise PictureError(f"{source} has no pictures; expected <kind>/NNNNN.webp, .jpg or .png")
        pictures += found
    return pictures


def fingerprint(pictures: Sequence[Picture]) -> str:
    """sha256 over names and sizes: whether a run that goes on has the pictures that it began with."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.name}\0{picture.size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class Unreadable:
    """Counts pictures that were skipped and stops at too many.

    Args:
        total: number of pictures; ``MAX_UNREADABLE`` of them may be skipped.
    """

    def __init__(self, total: int) -> None:
        self.total, self.limit = total, int(total * MAX_UNREADABLE)
        self.found: dict[str, str] = {}

    def add(self, name: str, message: str) -> bool:
        """Notes a picture; whether it is a new one.

        Raises:
            PictureError: with ``message``, where it is one too many.
        """
        new = name not in self.found
        self.found[name] = message
        if len(self.found) > self.limit:
            many = (
                f"{len(self.found)} of {self.total} pictures are unreadable, more than {MAX_UNREADABLE:.0%}"
            )
            raise PictureError(f"{many}; the last: {message}")
        return new
