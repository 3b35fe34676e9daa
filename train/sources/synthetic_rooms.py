"""Synthetic rooms from ``depthzoo.data.rooms``: any number of them, exact depth."""

from collections.abc import Iterator

from depthzoo.data.rooms import render
from train.sources.frames import Frame

TERMS = "synthetic, made by this project, MIT"


def read(count: int, size: tuple[int, int], seed: int = 0) -> Iterator[Frame]:
    """``count`` rooms of ``size`` (H, W): the first 1/20 are "val", the next 1/20 "test", the rest "train".

    Each split has at least one room.
    """
    held_out = max(1, count // 20)
    for number in range(count):
        split = "val" if number < held_out else "test" if number < 2 * held_out else "train"
        room = render(seed + number, size)
        yield Frame(split, f"room-{seed + number:07d}", room.image, room.depth, room.camera.focal_px)
