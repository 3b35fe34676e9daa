"""The former name of ``train.sources.rooms``."""

from train.sources.rooms import Rooms


def read(count: int, size: tuple[int, int], seed: int = 0, varied: bool = False) -> Rooms:
    """Return the source for ``train.prepare.write``."""
    return Rooms(count, seed, size, varied)
