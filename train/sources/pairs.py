"""Any two folders, of pictures and of depth maps with the same names (stems), and a stated scale.

Folders ``train``, ``val`` and ``test`` in both are the splits. Without them about 5 of 100 frames each become val
and test: whole subfolders, or where there are none the last ones by name, see ``train.sources.scenes``.
"""

import io
import math
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from train.codec import LAST_STEP, unit_for
from train.shards import DEFAULT_RANGE
from train.sources import nyu
from train.sources.decode import decode_image, decode_steps
from train.sources.frames import SPLITS, Frame, FrameError, Item, Source, SourceError
from train.sources.scenes import hold_out

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
DEPTHS = (".png", ".npy", ".tif", ".tiff", ".pgm")
SHARES = {"val": 0.05, "test": 0.05}


class Pairs(Source):
    """Two folders.

    Args:
        pictures: folder of RGB pictures.
        depths: folder of one-channel depth maps of 8 or 16 bits, or ``.npy`` arrays (H, W); 0 is invalid.
        scale: metres per unit of depth.
        focal: focal length in pixels of the pictures as they are; by default that of NYU's camera, which has
            a horizontal field of view of 63 degrees.
        depth_range: least and largest valid depth, metres; what is outside becomes invalid.
        depth_unit: metres per step of the stored depth; by default millimetres, or 1/256 m where they do not reach.
        camera: its name.
    """

    name = "pairs"

    def __init__(
        self,
        pictures: Path,
        depths: Path,
        scale: float,
        focal: float | None = None,
        depth_range: tuple[float, float] = DEFAULT_RANGE,
        depth_unit: float | None = None,
        camera: str | None = None,
    ) -> None:
        near, far = depth_range
        unit = unit_for(far) if depth_unit is None else depth_unit
        numbers = {
            "--scale": scale,
            "--focal": focal,
            "--min-depth": near,
            "--max-depth": far,
            "--depth-unit": unit,
        }
        for flag, value in numbers.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SourceError(f"{flag} {value}: expected a positive number")
        if near >= far:
            raise SourceError(f"--min-depth {near:g}, --max-depth {far:g}: expected a range")
        if far > LAST_STEP * unit:
            raise SourceError(
                f"--max-depth {far:g}: 16 bits of {unit:g} m reach {LAST_STEP * unit:.4g} m; "
                f"--depth-unit {1.05 * far / LAST_STEP:.2g} reaches it"
            )
        self.pictures, self.depths, self.scale, self.focal = pictures, depths, scale, focal
        self.depth_range, self.depth_unit = (near, far), unit
        self.arguments = {
            "scale": scale,
            "focal": focal,
            "depth_range": [near, far],
            "depth_unit": unit,
            "camera": camera,
        }
        self.about = {"camera": camera} if camera else {}

    def items(self) -> list[Item]:
        pictures, depths = _listing(self.pictures, PICTURES), _listing(self.depths, DEPTHS)
        if not set(pictures) & set(depths):
            raise SourceError(
                f"no picture in {self.pictures} has the name of a depth map in {self.depths}; "
                f"{next(iter(pictures))!r} and {next(iter(depths))!r} are the first of each"
            )
        stems = sorted(pictures.keys() | depths.keys())
        tops = {stem.split("/", 1)[0] if "/" in stem else "" for stem in stems}
        if tops <= set(SPLITS):
            splits = [stem.split("/", 1)[0] for stem in stems]
        else:
            splits = hold_out([str(PurePosixPath(stem).parent) for stem in stems], SHARES)
        return [
            self._item(split, stem, pictures.get(stem), depths.get(stem))
            for wanted in SPLITS
            for split, stem in zip(splits, stems, strict=True)
            if split == wanted
        ]

    def _item(self, split: str, stem: str, picture: Path | None, depth: Path | None) -> Item:
        problem = ""
        if picture is None:
            problem = f"{depth}: {self.pictures} has no picture of this name"
        elif depth is None:
            problem = f"{picture}: {self.depths} has no depth map of this name"
        stamp = " ".join(str(file.stat().st_size) for file in (picture, depth) if file)
        key = nyu.key(stem.removeprefix(f"{split}/"))
        return Item(split, key, (str(picture), str(depth)), stamp, problem)

    def load(self, item: Item, handle: Any) -> Frame:
        picture, depth = item.where
        image, image_file = decode_image(Path(picture).read_bytes(), picture)
        content = Path(depth).read_bytes()
        steps, wide = _array(content, depth) if depth.endswith(".npy") else decode_steps(content, depth)
        return Frame(
            item.split,
            item.key,
            image,
            steps.astype(np.float32) * np.float32(self.scale),
            self.focal or nyu.focal_px(max(image.shape[:2])),
            image_file,
            content if wide and self.scale == self.depth_unit else None,
        )


def _listing(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files by their path below ``folder`` without the suffix."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(place, name)
            if path.suffix.lower() in suffixes:
                stem = path.relative_to(folder).with_suffix("").as_posix()
                if stem in found:
                    raise SourceError(f"{path} and {found[stem]} have the same name")
                found[stem] = path
    if not found:
        raise SourceError(f"{folder}: is empty: no {', '.join(suffixes)} files")
    return found


def _array(content: bytes, name: str) -> tuple[np.ndarray, bool]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FrameError(f"{name}: not a .npy array, or cut short ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "uif":
        raise FrameError(f"{name}: expected a numeric array (H, W)")
    return array, False
