"""What a source is, and how several sources hold out whole scenes."""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from depthzoo.errors import DatasetError
from train.codec import MILLIMETRE
from train.shards import DEFAULT_RANGE

SPLITS = ("train", "val", "test")


class Item(NamedTuple):
    """A frame that a source has listed but not read.

    Attributes:
        split: "train", "val" or "test".
        key: unique in its split, without dots and slashes.
        where: what ``Source.load`` needs to find it.
    """

    split: str
    key: str
    where: Any


@dataclass(frozen=True)
class Frame:
    """An image with its depth.

    Attributes:
        image: uint8 RGB (H, W, 3).
        depth: float (H, W), metres along the optical axis; 0 or not finite where invalid.
        focal_px: focal length of this image in pixels.
        image_file: ("jpg" or "png", bytes) that decode to ``image``, if the source has them.
        depth_file: a 16-bit PNG in the source's ``depth_unit`` that decodes to ``depth``, if the source has it.
        inside: rows and columns inside the image's blank border, if it has one.
    """

    image: np.ndarray
    depth: np.ndarray
    focal_px: float
    image_file: tuple[str, bytes] | None = None
    depth_file: bytes | None = None
    inside: tuple[slice, slice] | None = None


def argument(help: str, default: Any = dataclasses.MISSING, **options: Any) -> Any:
    """Declare a field of a source, which is also an argument of its command.

    Args:
        help: description for the command line.
        default: if it is given, or ``required=True``, the argument is a flag, otherwise positional.
        **options: what ``argparse.ArgumentParser.add_argument`` takes.
    """
    return dataclasses.field(default=default, metadata={"help": help, **options})


@dataclass
class Source(ABC):
    """A form in which training data circulate: a dataclass whose fields are the arguments of its command.

    Sources are pickled to reach worker processes. ``load`` opens what it reads from when it is first called.

    Attributes:
        name: name of the command.
        help: description of the command.
        scale: metres per unit that the user stated, for errors.
        depth_unit: metres per step of the stored depth.
        depth_range: least and largest valid depth in metres.
        in_workers: ``load`` can run in worker processes.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    scale = 1.0
    depth_unit = MILLIMETRE
    depth_range = DEFAULT_RANGE
    in_workers = True

    @abstractmethod
    def items(self) -> list[Item]:
        """List all frames in a fixed order.

        Raises:
            DatasetError: if the source is missing or something else.
        """

    @abstractmethod
    def load(self, item: Item) -> Frame:
        """Read and decode a frame.

        Raises:
            DatasetError: naming a frame that cannot be used; the others may be fine.
            OSError: if it cannot be read.
        """

    def about(self) -> dict[str, Any]:
        """Return facts for ``dataset.json``, such as "terms" and "camera"."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return the arguments that decide the result, as JSON. Paths are left out."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if not isinstance(value, Path)}


def hold_out(items: Sequence[Item], scenes: Sequence[str], **fractions: float) -> list[Item]:
    """Move whole scenes to other splits, because neighbouring frames of a video are nearly the same image.

    Scenes are taken in the order of the SHA-256 of their names until a split has its fraction of the frames; at least
    one stays. With too few scenes, the last frames of the listing are held out, as contiguous runs.

    Args:
        items: the frames.
        scenes: scene of each frame.
        **fractions: fraction of the frames by split, as in ``val=0.02``; each split gets at least one frame.

    Raises:
        DatasetError: if there are too few frames.
    """
    counts = Counter(scenes)
    if len(items) <= len(fractions):
        raise DatasetError(f"{len(items)} frames cannot be split into train, {', '.join(fractions)}")
    if len(counts) <= len(fractions):
        result = list(items)
        end = len(items)
        for split, fraction in reversed(fractions.items()):
            start = end - max(1, int(fraction * len(items)))
            result[start:end] = [item._replace(split=split) for item in items[start:end]]
            end = start
        return result
    order = sorted(counts, key=lambda scene: hashlib.sha256(scene.encode()).digest())
    split_of: dict[str, str] = {}
    for number, (split, fraction) in enumerate(fractions.items()):
        frames, left = 0, len(fractions) - number  # scenes that later splits and train need
        while frames == 0 or (frames < fraction * len(items) and len(order) > left):
            scene = order.pop(0)
            split_of[scene] = split
            frames += counts[scene]
    return [
        item._replace(split=split_of.get(scene, item.split))
        for item, scene in zip(items, scenes, strict=True)
    ]


def sample_key(path: str) -> str:
    """Return the sample key for a relative path without suffix."""
    return path.strip("/").replace("\\", "/").replace("/", "-").replace(".", "_")
