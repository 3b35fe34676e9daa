"""HDF5 frames, loose or in tars, as the data hubs carry them: 47,584 train and 654 val.

Each file has ``rgb`` (3, H, W) uint8 and ``depth`` (H, W) metres, in ``train/<scene>/00001.h5`` and
``val/official/00001.h5``, or in tars ``train-000000.tar`` and ``val-000000.tar``.
Source: Ma & Karaman, "Sparse-to-Dense", ICRA 2018; Wofk et al., "FastDepth", ICRA 2019.

What they call val are the 654 official test frames: they become "test", and whole scenes of train (whole tars,
if their members are in no folders) are held out for "val", see ``train.sources.scenes``.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from train.sources import nyu
from train.sources.frames import Frame, FrameError, Item, Source, SourceError
from train.sources.scenes import hold_out

EXPECTED = "expected folders train/ and val/ of .h5 files, or train-*.tar and val-*.tar"


class NyuH5(Source):
    """A folder of ``.h5`` files or of tars, or one tar.

    Args:
        path: of the folder or tar; tars are read where they are, so they must not be compressed.
    """

    name = "nyu-h5"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arguments = {}
        self.about = {"truth": "filled", "terms": nyu.TERMS, "camera": nyu.CAMERA}

    def items(self) -> list[Item]:
        if not self.path.exists():
            raise SourceError(f"{self.path}: no such file or folder; {EXPECTED}")
        found = sorted(self._loose() if self.path.is_dir() else self._members(self.path), key=lambda f: f[0])
        if not found:
            raise SourceError(f"{self.path}: has no .h5 files; {EXPECTED}")
        train: list[tuple[str, tuple[str, int, int], str]] = []
        test: list[tuple[str, tuple[str, int, int], str]] = []
        scenes = []
        for name, where, stamp in found:
            *folders, file = PurePosixPath(name).parts
            split, rest = _split(folders)
            if split is None:
                raise SourceError(f"{self.path}: {name} is neither in train nor in val; {EXPECTED}")
            key = nyu.key("/".join([*rest, file.removesuffix(".h5")]))
            (train if split == "train" else test).append((key, where, stamp))
            if split == "train":
                scenes.append(nyu.scene(rest[-1]) if rest else "")
        if not train:
            raise SourceError(f"{self.path}: has no train frames; {EXPECTED}")
        splits = hold_out(scenes, {"val": nyu.VAL_SHARE})
        return [
            *(
                Item(split, *frame)
                for split in ("train", "val")
                for s, frame in zip(splits, train, strict=True)
                if s == split
            ),
            *(Item("test", *frame) for frame in test),
        ]

    def _loose(self) -> Iterator[tuple[str, tuple[str, int, int], str]]:
        """(path below the source, where, stamp) of every frame in files and tars."""
        for folder, folders, files in os.walk(self.path):
            folders.sort()
            for name in sorted(files):
                path = Path(folder, name)
                if name.endswith(".h5"):
                    size = path.stat().st_size
                    yield path.relative_to(self.path).as_posix(), (str(path), 0, size), str(size)
                elif name.endswith(".tar"):
                    yield from self._members(path)
                elif name.endswith((".tar.gz", ".tgz")):
                    raise SourceError(f"{path}: unpack it first; compressed tars cannot be read at random")

    def _members(self, path: Path) -> Iterator[tuple[str, tuple[str, int, int], str]]:
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.isfile() and member.name.endswith(".h5"):
                        where = (str(path), member.offset_data, member.size)
                        # A member in no folder takes the tar's name for one: train-000003/00001.h5.
                        yield f"{path.stem}/{member.name.lstrip('./')}", where, str(member.size)
        except tarfile.TarError as error:
            raise SourceError(f"{path}: not an uncompressed tar, or cut short ({error})") from None

    def load(self, item: Item, handle: Any) -> Frame:
        path, offset, size = item.where
        name = f"{path}: {item.key}"
        with open(path, "rb") as file:
            file.seek(offset)
            content = file.read(size)
        try:
            with h5py.File(io.BytesIO(content), "r") as frame:
                missing = [array for array in ("rgb", "depth") if array not in frame]
                if missing:
                    raise FrameError(
                        f"{name}: has no array {missing[0]!r}; it has {', '.join(frame) or 'none'}"
                    )
                rgb, depth = np.asarray(frame["rgb"]), np.asarray(frame["depth"])
        except (OSError, RuntimeError) as error:
            raise FrameError(f"{name}: not an HDF5 file, or cut short ({error})") from None
        if rgb.ndim != 3 or rgb.shape[0] != 3 or rgb.dtype != np.uint8 or depth.shape != rgb.shape[1:]:
            raise FrameError(
                f"{name}: rgb {rgb.shape} {rgb.dtype}, depth {depth.shape}; expected (3, H, W) uint8, (H, W)"
            )
        image = np.ascontiguousarray(rgb.transpose(1, 2, 0))
        focal = nyu.focal_px(image.shape[1])
        return Frame(item.split, item.key, image, depth, focal, inside=nyu.inside(image.shape))


def _split(folders: list[str]) -> tuple[str | None, list[str]]:
    """ "train" or "test", and the folders below the one that says so; for a tar, its name says so."""
    for place, folder in enumerate(folders):
        if folder in ("train", "val", "test"):
            return "train" if folder == "train" else "test", folders[place + 1 :]
    for place, folder in enumerate(folders):
        if folder.startswith(("train", "val", "test")):
            # The tar's name stays in the key, and is the scene of members that have no folder.
            return "train" if folder.startswith("train") else "test", folders[place:]
    return None, []
