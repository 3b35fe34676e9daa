"""Load pictures to check and to calibrate an export on."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import depthzoo
from depthzoo.images import SUFFIXES, load_image
from depthzoo.prediction import resize_image, working_size

EXAMPLES = Path(depthzoo.__file__).parent / "examples"


def load_pictures(path: Path | None, count: int) -> list[np.ndarray]:
    """Load pictures, evenly spread over a folder or tar.

    Args:
        path: a folder of pictures, a tar of pictures, or a folder of tars such as a data set of ``train.prepare``,
            whose test split is left out. None is the pictures bundled with depthzoo.
        count: number of pictures; all of them where there are fewer.

    Returns:
        RGB pictures, uint8 (H, W, 3).

    Raises:
        ValueError, OSError: there is no picture, or one cannot be read.
    """
    path = path or EXAMPLES
    readers: list[Callable[[], np.ndarray]] = []
    tars = [path] if path.is_file() else sorted(path.glob("*.tar"))
    for tar in tars:
        if not tar.name.startswith("test"):
            readers += tar_readers(tar)
    if not tars:
        files = sorted(file for file in path.rglob("*") if is_picture(file.name))
        readers = [lambda file=file: load_image(file) for file in files]  # type: ignore[misc]
    if not readers:
        raise ValueError(f"no pictures at {path}")
    count = min(count, len(readers))
    return [readers[index * len(readers) // count]() for index in range(count)]


def is_picture(name: str) -> bool:
    hidden = Path(name).name.startswith(".")
    return Path(name).suffix.lower() in SUFFIXES and not hidden and not name.endswith(".depth.png")


def tar_readers(path: Path) -> list[Callable[[], np.ndarray]]:
    """Return a function per picture of a tar that loads it."""

    def read(offset: int, size: int) -> np.ndarray:
        with path.open("rb") as file:
            file.seek(offset)
            return load_image(Image.open(io.BytesIO(file.read(size))))

    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in tar if member.isfile() and is_picture(member.name)]
    except tarfile.ReadError:
        raise ValueError(f"{path} is not a tar") from None
    return [lambda m=member: read(m.offset_data, m.size) for member in members]  # type: ignore[misc]


def network_input(picture: np.ndarray, size: tuple[int, int], exact: bool) -> np.ndarray:
    """Resize a picture as the network sees it: float32 (1, 3, h, w) in [0, 1].

    Args:
        picture: uint8 (H, W, 3).
        size: working size (H, W).
        exact: resize to ``size`` itself; else keep the aspect ratio and about its area.
    """
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    fed = size if exact else working_size(picture.shape[0], picture.shape[1], size)
    return (resize_image(image, fed).float() / 255).numpy()
