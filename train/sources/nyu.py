"""What all forms of NYU Depth V2 share: camera, terms, white border, scenes."""

import re
from typing import Any

from depthzoo.camera import CANONICAL_FOCAL

VAL_FRACTION = 0.02  # of the train frames, for sources without a validation split
# Undistorted frames have a white border of 6 to 8 pixels; these rows and columns leave out 2 pixels more.
INSIDE = (slice(8, 472), slice(9, 631))


def about(truth: str) -> dict[str, Any]:
    """Return the facts for ``dataset.json``; ``truth`` is "filled" or "raw"."""
    return {
        "truth": truth,
        "terms": "NYU Depth V2: research use; cite Silberman et al., ECCV 2012",
        "camera": "Kinect v1 of NYU Depth V2",  # undistorted; the canonical camera
    }


def focal_px(width: int) -> float:
    """Return the focal length in pixels of a whole frame that is ``width`` pixels wide."""
    return CANONICAL_FOCAL * width


def inside(shape: tuple[int, ...]) -> tuple[slice, slice] | None:
    """Return the rows and columns inside the white border of a full frame, None for other sizes."""
    return INSIDE if shape[:2] == (480, 640) else None


def scene(folder: str) -> str:
    """Return the scene of a folder: ``basement_0001a``, ``basement_0001b`` and ``basement_0001a_out`` are one."""
    return re.sub(r"(?<=\d)[a-z]$", "", folder.removesuffix("_out"))
