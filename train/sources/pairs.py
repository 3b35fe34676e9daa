"""Any two folders, of images and of depth maps with the same names (stems), and a stated scale."""

import io
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from depthzoo.errors import DatasetError
from train.codec import LAST_STEP, MILLIMETRE, decode_image, decode_steps, unit_for
from train.shards import DEFAULT_RANGE
from train.sources import nyu
from train.sources.base import SPLITS, Frame, Item, Source, argument, hold_out, sample_key

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
DEPTHS = (".png", ".npy", ".tif", ".tiff", ".pgm")


def _unit(text: str) -> float:
    return MILLIMETRE if text == "mm" else float(text)


@dataclass
class Pairs(Source):
    """Two folders with files of the same names, images and depth maps.

    Depth maps have one channel of 8 or 16 bits, or are ``.npy`` arrays (H, W); 0 is invalid, as is depth outside the
    range. Folders train, val and test in both are the splits. Without them, 5% of the
    frames each become val and test: whole subfolders, or if there are none the last frames by name.
    """

    name = "pairs"
    help = "two folders of images and depth maps with equal names"

    images: Path = argument("folder of RGB images", type=Path, metavar="IMAGES")
    depths: Path = argument("folder of depth maps", type=Path, metavar="DEPTHS")
    scale: float = argument("metres per unit of depth, 0.001 for mm", required=True, type=float, metavar="M")
    focal: float | None = argument(
        "focal length in pixels (default: NYU's field of view)", None, type=float, metavar="PX"
    )
    min_depth: float = argument(
        "least valid depth, metres (default: 0.001)", DEFAULT_RANGE[0], type=float, metavar="M"
    )
    max_depth: float = argument(
        "largest valid depth, metres (default: 10)", DEFAULT_RANGE[1], type=float, metavar="M"
    )
    depth_unit: float = argument(
        "of the stored 16 bits, metres (default: mm, beyond 65 m 1/256)", 0.0, type=_unit, metavar="mm|M"
    )
    camera: str | None = argument("name of the camera, for the weights' card", None, metavar="NAME")

    def __post_init__(self) -> None:
        near, far = self.depth_range = (self.min_depth, self.max_depth)
        if self.depth_unit == 0:
            self.depth_unit = unit_for(far)
        for name in ("scale", "focal", "min_depth", "max_depth", "depth_unit"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise DatasetError(f"--{name.replace('_', '-')} {value}: expected a positive number")
        if near >= far:
            raise DatasetError(f"--min-depth {near:g}, --max-depth {far:g}: expected a range")
        if far > (reach := LAST_STEP * self.depth_unit):
            raise DatasetError(
                f"--max-depth {far:g}: 16 bits of {self.depth_unit:g} m reach {reach:.4g} m; "
                f"--depth-unit {1.05 * far / LAST_STEP:.2g} reaches it"
            )

    def about(self) -> dict[str, Any]:
        return {"camera": self.camera} if self.camera else {}

    def items(self) -> list[Item]:
        images, depths = _listing(self.images, IMAGES), _listing(self.depths, DEPTHS)
        if not set(images) & set(depths):
            raise DatasetError(
                f"no picture in {self.images} has the name of a depth map in {self.depths}; "
                f"{next(iter(images))!r} and {next(iter(depths))!r} are the first of each"
            )
        stems = sorted(images.keys() | depths.keys())
        where = {stem: (images.get(stem), depths.get(stem)) for stem in stems}
        if {stem.split("/", 1)[0] if "/" in stem else "" for stem in stems} <= set(SPLITS):
            parts = [stem.split("/", 1) for stem in stems]
            return [Item(split, sample_key(name), where[f"{split}/{name}"]) for split, name in parts]
        items = [Item("train", sample_key(stem), where[stem]) for stem in stems]
        return hold_out(items, [str(PurePosixPath(stem).parent) for stem in stems], val=0.05, test=0.05)

    def load(self, item: Item) -> Frame:
        path, depth_path = item.where
        if path is None:
            raise DatasetError(f"{depth_path}: {self.images} has no picture of this name")
        if depth_path is None:
            raise DatasetError(f"{path}: {self.depths} has no depth map of this name")
        image, image_file = decode_image(path.read_bytes(), str(path))
        content = depth_path.read_bytes()
        read = _array if depth_path.suffix == ".npy" else decode_steps
        steps, wide = read(content, str(depth_path))
        return Frame(
            image,
            steps.astype(np.float32) * np.float32(self.scale),
            self.focal or nyu.focal_px(max(image.shape[:2])),
            image_file,
            content if wide and self.scale == self.depth_unit else None,
        )


def _listing(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files by their path below ``folder``, without the suffix."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and path.is_file():
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise DatasetError(f"{path} and {found[stem]} have the same name")
            found[stem] = path
    if not found:
        raise DatasetError(f"{folder}: is empty: no {', '.join(suffixes)} files")
    return found


def _array(content: bytes, name: str) -> tuple[np.ndarray, bool]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(f"{name}: not a .npy array, or truncated ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "uif":
        raise DatasetError(f"{name}: expected a numeric array (H, W)")
    return array, False
