"""What a source yields."""

from dataclasses import dataclass

import numpy as np


class SourceError(ValueError):
    """A source that is missing or is not what was expected; one line."""


@dataclass(frozen=True)
class Frame:
    """One picture with its depth.

    Attributes:
        split: "train", "val" or "test".
        key: unique in its split, without dots and slashes.
        image: uint8 RGB (H, W, 3).
        depth: float (H, W), metres along the optical axis; 0 or not finite where invalid.
        focal_px: focal length in pixels of this picture.
    """

    split: str
    key: str
    image: np.ndarray
    depth: np.ndarray
    focal_px: float
