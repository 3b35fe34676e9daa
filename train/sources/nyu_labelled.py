"""The 1449 labelled frames: ``nyu_depth_v2_labeled.mat``, an HDF5 file with MATLAB's axes.

``images`` is (N, 3, W, H) uint8, ``depths`` (in-painted) and ``rawDepths`` (with holes) are (N, W, H) metres.
Source: Silberman et al., "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012.
"""

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path

import h5py
import numpy as np

from train.sources.frames import Frame, FrameError, Item, Source, SourceError
from train.sources.nyu import CAMERA, TERMS, focal_px, inside

VAL_FRAMES = 95
ARRAYS = {"filled": "depths", "raw": "rawDepths"}


def official_split(fold: int = 0) -> dict[str, list[int]]:
    """0-based frame numbers of "train" and "val", together the official 795, and of "test" (654).

    Args:
        fold: 0 is the committed validation split of 95 frames; 1 to 4 hold out 99 to 121 others, as whole runs
            too, and the folds do not overlap.
    """
    runs = json.loads(Path(__file__).with_name("nyu_split.json").read_text(encoding="utf-8"))
    if fold:
        held_out, others = (
            runs["val"],
            sorted(runs["train"], key=lambda run: hashlib.sha256(b"%d" % run[0]).digest()),
        )
        for _ in range(fold):
            rest, held = list(others), list[list[int]]()
            while sum(last - first + 1 for first, last in held) < VAL_FRAMES:
                held.append(rest.pop(0))
            others = rest
        runs |= {
            "val": sorted(held),
            "train": sorted([*held_out, *(r for r in runs["train"] if r not in held)]),
        }
    return {
        split: [frame for first, last in runs[split] for frame in range(first, last + 1)]
        for split in ("train", "val", "test")
    }


class NyuLabelled(Source):
    """The official ``.mat`` file. A file with the first frames only serves tests and trials.

    Args:
        path: of the file.
        depth: "filled" or "raw" (holes are 0).
        fold: which of the train frames are held out as "val", see :func:`official_split`.
    """

    name = "nyu-labelled"

    def __init__(self, path: Path, depth: str = "filled", fold: int = 0) -> None:
        self.path, self.array, self.fold = path, ARRAYS[depth], fold
        self.arguments = {"depth": depth} | ({"fold": fold} if fold else {})
        self.about = {"truth": depth, "terms": TERMS, "camera": CAMERA}

    def items(self) -> list[Item]:
        if not self.path.is_file():
            raise SourceError(f"{self.path}: no such file; expected nyu_depth_v2_labeled.mat")
        try:
            with self.open() as file:
                for name in ("images", self.array):
                    if name not in file:
                        raise SourceError(
                            f"{self.path}: has no array {name!r}; expected nyu_depth_v2_labeled.mat"
                        )
                images, depths = file["images"], file[self.array]
                count = images.shape[0]
                if images.shape != (count, 3, 640, 480) or depths.shape != (count, 640, 480):
                    raise SourceError(
                        f"{self.path}: images {images.shape} and {self.array} {depths.shape}; "
                        "expected (N, 3, 640, 480), (N, 640, 480)"
                    )
                # The whole file would take seconds to read: its size and its ends tell files apart.
                ends = b"".join(a[i].tobytes() for a in (images, depths) for i in (0, -1) if count)
        except OSError:
            raise SourceError(f"{self.path}: not an HDF5 (MATLAB v7.3) file, or cut short") from None
        stamp = f"{self.path.stat().st_size} {hashlib.sha256(ends).hexdigest()}"
        return [
            Item(split, f"nyu-{number:04d}", number, stamp)
            for split, numbers in official_split(self.fold).items()
            for number in numbers
            if number < count
        ]

    def open(self) -> AbstractContextManager[h5py.File]:
        # MATLAB's compressed chunks span dozens of frames: the cache has to hold a row of them.
        file: AbstractContextManager[h5py.File] = h5py.File(
            self.path, "r", rdcc_nbytes=256 << 20, rdcc_nslots=100_003
        )
        return file

    def load(self, item: Item, handle: h5py.File) -> Frame:
        try:
            image = handle["images"][item.where].transpose(2, 1, 0)
            metres = handle[self.array][item.where].T
        except OSError as error:
            raise FrameError(f"{self.path}: frame {item.where}: {error}") from None
        image, focal = np.ascontiguousarray(image), focal_px(image.shape[1])
        return Frame(item.split, item.key, image, metres, focal, inside=inside(image.shape))
