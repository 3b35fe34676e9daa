"""The 1449 labelled frames of NYU Depth V2: ``nyu_depth_v2_labeled.mat``, an HDF5 file with MATLAB's axes.

``images`` is (N, 3, W, H) uint8; ``depths`` (in-painted) and ``rawDepths`` (with holes) are (N, W, H) metres.
Source: Silberman et al., "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from depthzoo.errors import DatasetError
from train.sources import nyu
from train.sources.base import SPLITS, Frame, Item, Source, argument

VAL_FRAMES = 95
ARRAYS = {"filled": "depths", "raw": "rawDepths"}


def official_split(fold: int = 0) -> dict[str, list[int]]:
    """Return the 0-based frame numbers of "train" and "val", together the official 795, and of "test" (654).

    Args:
        fold: 0 is the committed validation split of 95 frames. 1 to 4 hold out 99 to 121 others, also as whole runs;
            the folds do not overlap.
    """
    runs = json.loads(Path(__file__).with_name("nyu_split.json").read_text(encoding="utf-8"))
    if fold:
        first = runs["val"]
        rest = sorted(runs["train"], key=lambda run: hashlib.sha256(b"%d" % run[0]).digest())
        for _ in range(fold):
            held_out = list[list[int]]()
            while sum(end - start + 1 for start, end in held_out) < VAL_FRAMES:
                held_out.append(rest.pop(0))
        runs["val"] = sorted(held_out)
        runs["train"] = sorted([*first, *(run for run in runs["train"] if run not in held_out)])
    return {
        split: [frame for start, end in runs[split] for frame in range(start, end + 1)] for split in SPLITS
    }


@dataclass
class NyuLabelled(Source):
    """The official ``.mat`` file, or one with the first frames only."""

    name = "nyu-labelled"
    help = "nyu_depth_v2_labeled.mat, 795 train and 654 test frames"

    path: Path = argument("nyu_depth_v2_labeled.mat", type=Path, metavar="PATH.mat")
    depth: str = argument("in-painted or with holes (default: filled)", "filled", choices=tuple(ARRAYS))
    fold: int = argument("another validation split of the train frames", 0, type=int, choices=range(5))

    def about(self) -> dict[str, Any]:
        return nyu.about(self.depth)

    @cached_property
    def _file(self) -> h5py.File:
        # MATLAB's compressed chunks span dozens of frames: the cache has to hold a row of them.
        return h5py.File(self.path, "r", rdcc_nbytes=256 << 20, rdcc_nslots=100_003)

    def items(self) -> list[Item]:
        if not self.path.is_file():
            raise DatasetError(f"{self.path}: no such file; expected nyu_depth_v2_labeled.mat")
        array = ARRAYS[self.depth]
        try:
            with h5py.File(self.path, "r") as file:
                shapes = {name: file[name].shape for name in ("images", array) if name in file}
        except OSError:
            raise DatasetError(f"{self.path}: not an HDF5 (MATLAB v7.3) file, or truncated") from None
        for name in ("images", array):
            if name not in shapes:
                raise DatasetError(f"{self.path}: has no array {name!r}; expected nyu_depth_v2_labeled.mat")
        count = shapes["images"][0]
        if shapes["images"] != (count, 3, 640, 480) or shapes[array] != (count, 640, 480):
            raise DatasetError(
                f"{self.path}: images {shapes['images']} and {array} {shapes[array]}; "
                "expected (N, 3, 640, 480), (N, 640, 480)"
            )
        return [
            Item(split, f"nyu-{number:04d}", number)
            for split, numbers in official_split(self.fold).items()
            for number in numbers
            if number < count
        ]

    def load(self, item: Item) -> Frame:
        try:
            image = self._file["images"][item.where].transpose(2, 1, 0)
            metres = self._file[ARRAYS[self.depth]][item.where].T
        except OSError as error:
            raise DatasetError(f"{self.path}: frame {item.where}: {error}") from None
        image = np.ascontiguousarray(image)
        return Frame(image, metres, nyu.focal_px(image.shape[1]), inside=nyu.inside(image.shape))
