"""What a model says about a picture, and every form that it can be kept in."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depthzoo import visualize
from depthzoo.camera import CANONICAL_FOCAL
from depthzoo.images import reworded


@dataclass(frozen=True, eq=False)
class Prediction:
    """Depth of one picture.

    Attributes:
        depth: (H, W) float32, metres along the camera's axis.
        image: (H, W, 3) uint8 RGB, the picture as the model saw it: upright, before resizing.
        focal_px: focal length in pixels of the picture, which ``depth`` is for: the one that was given, that of
            EXIF, or that of the canonical camera (see :mod:`depthzoo.camera`). If None, the last.
    """

    depth: NDArray[np.float32]
    image: NDArray[np.uint8]
    focal_px: float | None = None

    def colored(
        self, colormap: str = visualize.DEFAULT_COLORMAP, near: float | None = None, far: float | None = None
    ) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB; see :func:`depthzoo.visualize.colorize`."""
        return visualize.colorize(self.depth, colormap, near, far)

    def panel(self, truth: NDArray[Any] | None = None, **options: Any) -> NDArray[np.uint8]:
        """Picture | depth (| truth | error) with legends, uint8 RGB; see :func:`depthzoo.visualize.panel`."""
        return visualize.panel(self.image, self.depth, truth, **options)

    def save_depth16(self, path: str | os.PathLike[str]) -> None:
        """Writes a 16-bit PNG of millimetres: 65.535 m and beyond are 65535; 0 is no depth (NaN, negative).

        Raises (as do all the writers): ValueError for another suffix, OSError where it cannot be written.
        A failed write leaves no file, and an older one of the same name whole.
        """
        with _whole_file(path, ".png") as file:
            millimetres = np.nan_to_num(self.depth, nan=0, posinf=np.inf) * np.float32(1000)
            Image.fromarray(np.rint(millimetres.clip(0, 65535)).astype(np.uint16)).save(file, "PNG")

    def save_npy(self, path: str | os.PathLike[str]) -> None:
        """Writes :attr:`depth`, float32 metres, as a NumPy file."""
        with _whole_file(path, ".npy") as file:
            np.save(file, self.depth)

    def save_color(self, path: str | os.PathLike[str], colormap: str = visualize.DEFAULT_COLORMAP) -> None:
        """Writes :meth:`colored` as PNG or JPEG, by the suffix."""
        _save_pixels(path, lambda: self.colored(colormap))

    def save_panel(
        self, path: str | os.PathLike[str], truth: NDArray[Any] | None = None, **options: Any
    ) -> None:
        """Writes :meth:`panel` as PNG or JPEG, by the suffix."""
        _save_pixels(path, lambda: self.panel(truth, **options))

    def save_ply(self, path: str | os.PathLike[str]) -> None:
        """Writes a coloured point cloud, one vertex a pixel; frame: x right, y down, z forward, metres.

        z is :attr:`depth`; x and y follow from it by :attr:`focal_px`.
        """
        focal = self.focal_px or CANONICAL_FOCAL * max(self.depth.shape)
        with _whole_file(path, ".ply") as file:
            visualize.write_ply(file, self.depth, self.image, focal)


def _save_pixels(path: str | os.PathLike[str], draw: Callable[[], NDArray[np.uint8]]) -> None:
    with _whole_file(path, ".png", ".jpg", ".jpeg") as file:
        kind = "PNG" if str(path).lower().endswith(".png") else "JPEG"
        Image.fromarray(draw()).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))


@contextmanager
def _whole_file(path: str | os.PathLike[str], *suffixes: str) -> Iterator[IO[bytes]]:
    """A file that takes its name only once it is written whole."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder")
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise reworded(error, f"{path}: {error.strerror or error}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
