"""HDF5 frames, loose or in tars, as the data hubs carry them: 47,584 train and 654 val.

Each file has ``rgb`` (3, H, W) uint8 and ``depth`` (H, W) metres, in ``train/<scene>/00001.h5`` and
``val/official/00001.h5``, or in tars ``train-000000.tar`` and ``val-000000.tar``.
Source: Ma & Karaman, "Sparse-to-Dense", ICRA 2018; Wofk et al., "FastDepth", ICRA 2019.

Their val is the 654 official test frames, which become "test". Whole scenes of train (whole tars, if the tars have no
folders) are held out as "val".
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from depthzoo.errors import DatasetError
from train.sources import nyu
from train.sources.base import Frame, Item, Source, argument, hold_out, sample_key

EXPECTED = "expected folders train/ and val/ of .h5 files, or train-*.tar and val-*.tar"
Place = tuple[str, int, int]  # file, offset, length


@dataclass
class NyuH5(Source):
    """A folder of ``.h5`` files or of tars, or one tar. Tars are read in place, so they must not be compressed."""

    name = "nyu-h5"
    help = "HDF5 frames, loose or in tars, 47,584 train frames"

    path: Path = argument("folder of .h5 files or tars, or a tar", type=Path, metavar="FOLDER|TAR")

    def about(self) -> dict[str, Any]:
        return nyu.about("filled")

    def items(self) -> list[Item]:
        if not self.path.exists():
            raise DatasetError(f"{self.path}: no such file or folder; {EXPECTED}")
        train, test, scenes = list[Item](), list[Item](), list[str]()
        for name, place in sorted(self._files()):
            *folders, file = PurePosixPath(name).parts
            split, folders = _split(folders)
            if split is None:
                raise DatasetError(f"{self.path}: {name} is neither in train nor in val; {EXPECTED}")
            item = Item(split, sample_key("/".join([*folders, file.removesuffix(".h5")])), place)
            if split == "train":
                train.append(item)
                scenes.append(nyu.scene(folders[-1]) if folders else "")
            else:
                test.append(item)
        if not train:
            what = "train frames" if test else ".h5 files"
            raise DatasetError(f"{self.path}: has no {what}; {EXPECTED}")
        return hold_out(train, scenes, val=nyu.VAL_FRACTION) + test

    def _files(self) -> Iterator[tuple[str, Place]]:
        """Yield the path of each frame below the source, and where its bytes are."""
        for path in self.path.rglob("*") if self.path.is_dir() else [self.path]:
            if path.suffix == ".h5":
                yield path.relative_to(self.path).as_posix(), (str(path), 0, path.stat().st_size)
            elif path.name.endswith((".tar.gz", ".tgz")):
                raise DatasetError(f"{path}: unpack it first; compressed tars cannot be read at random")
            elif path.suffix == ".tar" or path == self.path:
                yield from _members(path)

    def load(self, item: Item) -> Frame:
        path, offset, length = item.where
        name = f"{path}: {item.key}"
        with open(path, "rb") as file:
            file.seek(offset)
            content = file.read(length)
        try:
            with h5py.File(io.BytesIO(content), "r") as frame:
                if missing := [array for array in ("rgb", "depth") if array not in frame]:
                    has = ", ".join(frame) or "none"
                    raise DatasetError(f"{name}: has no array {missing[0]!r}; it has {has}")
                rgb, depth = np.asarray(frame["rgb"]), np.asarray(frame["depth"])
        except (OSError, RuntimeError) as error:
            raise DatasetError(f"{name}: not an HDF5 file, or truncated ({error})") from None
        if rgb.ndim != 3 or rgb.shape[0] != 3 or rgb.dtype != np.uint8 or depth.shape != rgb.shape[1:]:
            raise DatasetError(
                f"{name}: rgb {rgb.shape} {rgb.dtype}, depth {depth.shape}; expected (3, H, W) uint8, (H, W)"
            )
        image = np.ascontiguousarray(rgb.transpose(1, 2, 0))
        return Frame(image, depth, nyu.focal_px(image.shape[1]), inside=nyu.inside(image.shape))


def _members(path: Path) -> Iterator[tuple[str, Place]]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(".h5"):
                    # The tar's name counts as a folder, for members that are in none: train-000003/00001.h5.
                    name = f"{path.stem}/{member.name.lstrip('./')}"
                    yield name, (str(path), member.offset_data, member.size)
    except tarfile.TarError as error:
        raise DatasetError(f"{path}: not an uncompressed tar, or truncated ({error})") from None


def _split(folders: list[str]) -> tuple[str | None, list[str]]:
    """ "train" or "test", and the folders that go into the key."""
    for place, folder in enumerate(folders):
        if folder in ("train", "val", "test"):
            return "train" if folder == "train" else "test", folders[place + 1 :]
    for place, folder in enumerate(folders):
        if folder.startswith(("train", "val", "test")):
            # The tar's name stays in the key, and is the scene of members without a folder.
            return "train" if folder.startswith("train") else "test", folders[place:]
    return None, []
