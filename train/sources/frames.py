"""What a source is, and what it yields."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from train.codec import MILLIMETRE
from train.shards import DEFAULT_RANGE

SPLITS = ("train", "val", "test")


class SourceError(ValueError):
    """A source that is missing or is not what was expected; one line."""


class FrameError(ValueError):
    """One frame that cannot be used: file, what is wrong, what was expected. The others may be fine."""


@dataclass(frozen=True)
class Frame:
    """One picture with its depth.

    Attributes:
        split: "train", "val" or "test".
        key: unique in its split, without dots and slashes.
        image: uint8 RGB (H, W, 3).
        depth: float (H, W), metres along the optical axis; 0 or not finite where invalid.
        focal_px: focal length in pixels of this picture.
        image_file: ("jpg" or "png", bytes) that decode to ``image``, where the source has them.
        depth_file: bytes of a 16-bit PNG in the source's ``depth_unit`` that decode to ``depth``, where it has them.
        inside: rows and columns within the blank border of the picture, which train frames go without.
    """

    split: str
    key: str
    image: np.ndarray
    depth: np.ndarray
    focal_px: float
    image_file: tuple[str, bytes] | None = None
    depth_file: bytes | None = None
    inside: tuple[slice, slice] | None = None


@dataclass(frozen=True)
class Item:
    """One frame that a source has listed and not read.

    Attributes:
        split: "train", "val" or "test".
        key: as in ``Frame``.
        where: what ``Source.load`` needs to find it; can be pickled.
        stamp: differs when the frame's files do, as far as a listing can tell (sizes, checksums).
        problem: why it cannot be used, if that is known already.
    """

    split: str
    key: str
    where: Any = None
    stamp: str = ""
    problem: str = ""


class Source(ABC):
    """One form in which frames circulate. Cheap to make and to pickle: it goes to every worker.

    Attributes:
        name: of the command.
        arguments: what the user chose, as JSON; other arguments make another data set.
        about: goes into ``dataset.json``: terms, the camera's name and the like.
        scale: metres per unit that the user stated; a refusal of the unit names a better one.
        depth_unit: metres per step of the depth that is stored.
        depth_range: least and largest valid depth, metres.
    """

    name: ClassVar[str]
    arguments: dict[str, Any]
    about: dict[str, Any]
    scale: float = 1.0
    depth_unit: float = MILLIMETRE
    depth_range: tuple[float, float] = DEFAULT_RANGE

    @abstractmethod
    def items(self) -> list[Item]:
        """All frames in a fixed order: train, val, test.

        Raises:
            SourceError: if the source is missing or is something else.
        """

    def open(self) -> AbstractContextManager[Any]:
        """What ``load`` reads from; opened once in each process."""
        return nullcontext()

    @abstractmethod
    def load(self, item: Item, handle: Any) -> Frame:
        """Reads and decodes a frame.

        Raises:
            FrameError: if this one cannot be used.
        """
