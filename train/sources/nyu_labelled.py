"""The 1449 labelled frames: ``nyu_depth_v2_labeled.mat``, an HDF5 file with MATLAB's axes.

``images`` is (N, 3, W, H) uint8, ``depths`` (in-painted) and ``rawDepths`` (with holes) are (N, W, H) metres.
Source: Silberman et al., "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from train.sources.frames import Frame, SourceError

FOCAL_PX = 518.86
TERMS = "NYU Depth V2: research use; cite Silberman et al., ECCV 2012"
# A white border of 6 to 8 pixels surrounds the frames; these rows and columns are inside it by 2.
INSIDE = (slice(8, 472), slice(9, 631))


def official_split() -> dict[str, list[int]]:
    """0-based frame numbers of "train" (700), "val" (95, whole scenes of the train list) and "test" (654)."""
    runs = json.loads(Path(__file__).with_name("nyu_split.json").read_text(encoding="utf-8"))
    return {
        split: [frame for first, last in runs[split] for frame in range(first, last + 1)]
        for split in ("train", "val", "test")
    }


def read(path: Path, depth: str = "depths") -> Iterator[Frame]:
    """All frames in the order of train, val, test; train frames without the white border.

    Args:
        path: of the ``.mat`` file.
        depth: "depths" (filled) or "rawDepths" (raw, holes are 0).

    Raises:
        SourceError: if the file is missing, is no HDF5, or has other arrays or shapes.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file; expected nyu_depth_v2_labeled.mat")
    try:
        file = h5py.File(path, "r")
    except OSError:
        raise SourceError(f"{path}: not an HDF5 (MATLAB v7.3) file, or cut short") from None
    with file:
        for name in ("images", depth):
            if name not in file:
                raise SourceError(f"{path}: has no array {name!r}; expected nyu_depth_v2_labeled.mat")
        images, depths = file["images"], file[depth]
        count = images.shape[0]
        if images.shape != (count, 3, 640, 480) or depths.shape != (count, 640, 480):
            raise SourceError(
                f"{path}: images {images.shape} and {depth} {depths.shape}; expected (N, 3, 640, 480), (N, 640, 480)"
            )
        for split, numbers in official_split().items():
            inside = INSIDE if split == "train" else (slice(None), slice(None))
            for number in numbers:
                if number >= count:  # a file with the first frames only serves tests and trials
                    continue
                image = images[number].transpose(2, 1, 0)[inside]
                metres = depths[number].T[inside]
                yield Frame(split, f"nyu-{number:04d}", np.ascontiguousarray(image), metres, FOCAL_PX)
