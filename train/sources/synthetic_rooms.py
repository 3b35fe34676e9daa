"""Synthetic rooms from ``depthzoo.data.rooms``: any number of them, exact depth."""

from collections.abc import Iterator
from typing import Any

from depthzoo.data.rooms import render
from train.sources.frames import Frame, Item, Source, SourceError

TERMS = "synthetic, made by this project, MIT"


class Rooms(Source):
    """``count`` rooms of ``size`` (H, W), from ``seed`` on: the first 1/20 are "val", the next 1/20 "test", the
    rest "train". Each split has at least one room.
    """

    name = "rooms"

    def __init__(self, count: int, size: tuple[int, int], seed: int = 0) -> None:
        self.count, self.size, self.seed = count, size, seed
        self.arguments = {"count": count, "seed": seed}
        self.about = {"terms": TERMS}

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
        room = render(item.where, self.size)
        return Frame(item.split, item.key, room.image, room.depth, room.camera.focal_px)


def read(count: int, size: tuple[int, int], seed: int = 0) -> Iterator[Frame]:
    """The frames of ``Rooms``, one after the other."""
    rooms = Rooms(count, size, seed)
    return (rooms.load(item) for item in rooms.items())
