"""Synthetic rooms from ``train.rooms``: any number, with exact depth.

A data set has one focal length per split, but varied rooms are seen through many lenses. Depth is therefore stored for
the canonical camera (``depthzoo.camera``), with the canonical focal length.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from depthzoo.camera import CANONICAL_FOCAL, depth_scale
from depthzoo.errors import DatasetError
from train.arguments import parse_size
from train.rooms import VERSION, render
from train.sources.base import Frame, Item, Source, argument

FARTHEST = 10.0  # canonical metres


@dataclass
class Rooms(Source):
    """The rooms of consecutive seeds: the first 1/20 are "val", the next 1/20 "test", the rest "train"."""

    name = "rooms"
    help = "synthetic rooms, rendered here"

    count: int = argument("number of rooms", 1000, type=int, metavar="N")
    seed: int = argument("seed of the first room", 0, type=int, metavar="N")
    size: tuple[int, int] = argument(
        "height and width (default: 240x320)", (240, 320), type=parse_size, metavar="HxW"
    )
    varied: bool = argument("close-ups, halls, other lenses, blur, noise and wrong exposure", True)

    def about(self) -> dict[str, Any]:
        camera = "synthetic, focal length of the Kinect v1 of NYU Depth V2"
        if self.varied:
            camera = "synthetic, focal lengths of 0.75 to 1.6 times the Kinect v1's, depth stored for the Kinect v1's"
        return {"terms": "synthetic, made by this project, MIT", "camera": camera}

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"renderer": VERSION}

    def items(self) -> list[Item]:
        if self.count < 3:
            raise DatasetError(f"--count {self.count}: at least 3 rooms are needed, one for each split")
        held_out = max(1, self.count // 20)
        splits = ["val"] * held_out + ["test"] * held_out + ["train"] * (self.count - 2 * held_out)
        return [Item(split, f"room-{seed:07d}", seed) for seed, split in enumerate(splits, self.seed)]

    def load(self, item: Item) -> Frame:
        room = render(item.where, self.size, self.varied)
        width = self.size[1]
        depth = room.depth / np.float32(depth_scale(room.camera.focal_px, width))
        depth[depth > FARTHEST] = 0
        return Frame(room.image, depth, CANONICAL_FOCAL * width)
