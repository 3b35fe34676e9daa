"""What all forms of NYU Depth V2 have in common."""

import re

from depthzoo.camera import CANONICAL_FOCAL

CAMERA = "Kinect v1 of NYU Depth V2"  # undistorted; the canonical camera
TERMS = "NYU Depth V2: research use; cite Silberman et al., ECCV 2012"
# A white border of 6 to 8 pixels surrounds the undistorted frames; these rows and columns are inside it by 2.
INSIDE = (slice(8, 472), slice(9, 631))
# Sources without a validation split hold out whole scenes with about this share of the train frames.
VAL_SHARE = 0.02


def focal_px(width: int) -> float:
    """Focal length in pixels of a whole frame scaled to ``width``."""
    return CANONICAL_FOCAL * width


def inside(shape: tuple[int, ...]) -> tuple[slice, slice] | None:
    """Rows and columns within the white border of a full frame; None for frames of another size."""
    return INSIDE if shape[:2] == (480, 640) else None


def scene(folder: str) -> str:
    """The scene of a folder: ``basement_0001a``, ``basement_0001b`` and ``basement_0001a_out`` are one."""
    return re.sub(r"(?<=\d)[a-z]$", "", folder.removesuffix("_out"))


def key(path: str) -> str:
    """A sample key from a relative path without its suffix."""
    return path.strip("/").replace("\\", "/").replace("/", "-").replace(".", "_")
