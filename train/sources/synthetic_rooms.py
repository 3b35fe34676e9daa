"""Synthetic rooms from ``train.rooms``: any number of them, exact depth.

A data set holds one focal length per split, and varied rooms are seen through many. What is stored is therefore
canonical depth (``depthzoo.camera``) and the canonical focal length: for training, a picture like any other.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from depthzoo.camera import CANONICAL_FOCAL, depth_scale
from train.rooms import VERSION, render
from train.sources.frames import Frame, Item, Source, SourceError

TERMS = "synthetic, made by this project, MIT"
CAMERA = "synthetic, focal length of the Kinect v1 of NYU Depth V2"
VARIED_CAMERA = (
    "synthetic, focal lengths of 0.75 to 1.6 times the Kinect v1's, depth stored for the Kinect v1's"
)
FARTHEST = 10.0  # canonical metres


class Rooms(Source):
    """``count`` rooms of ``size`` (H, W), from ``seed`` on: the first 1/20 are "val", the next 1/20 "test", the
    rest "train". Each split has at least one room.

    ``varied`` rooms have close-ups, halls and other lenses (``train.rooms.render``). Canonical depth beyond
    10 m is invalid.
    """

    name = "rooms"

    def __init__(self, count: int, size: tuple[int, int], seed: int = 0, varied: bool = False) -> None:
        self.count, self.size, self.seed, self.varied = count, size, seed, varied
        self.arguments = {"count": count, "seed": seed, "varied": varied, "renderer": VERSION}
        self.about = {"terms": TERMS, "camera": VARIED_CAMERA if varied else CAMERA}

    def items(self) -> list[Item]:
        if self.count < 3:
            raise SourceError(f"--count {self.count}: at least 3 rooms are needed, one for each split")
        held_out = max(1, self.count // 20)
        ends = {"val": (0, held_out), "test": (held_out, 2 * held_out), "train": (2 * held_out, self.count)}
        return [
            Item(split, f"room-{self.seed + number:07d}", self.seed + number)
            for split in ("train", "val", "test")
            for number in range(*ends[split])
        ]

    def load(self, item: Item, handle: Any = None) -> Frame:
        room = render(item.where, self.size, self.varied)
        width = self.size[1]
        depth = room.depth / np.float32(depth_scale(room.camera.focal_px, width))
        depth[depth > FARTHEST] = 0
        return Frame(item.split, item.key, room.image, depth, CANONICAL_FOCAL * width)


def read(count: int, size: tuple[int, int], seed: int = 0, varied: bool = False) -> Iterator[Frame]:
    """The frames of ``Rooms``, one after the other."""
    rooms = Rooms(count, size, seed, varied)
    return (rooms.load(item) for item in rooms.items())
