"""Held-out frames for sources that come without a validation split: whole scenes, never random frames.

Neighbouring frames of a video are nearly the same picture, so a random choice would measure memory.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from train.sources.frames import SourceError


def hold_out(scenes: Sequence[str], shares: Mapping[str, float]) -> list[str]:
    """The split of every frame: "train" or a name in ``shares``.

    Scenes are taken in the order of the SHA-256 of their names, so that the choice depends on nothing else,
    whole ones until a split has its share of the frames; at least one stays in train. With too few scenes the
    last frames of the listing become the held-out ones, in contiguous runs: of a video, a later part.

    Args:
        scenes: of each frame, in the order of the listing.
        shares: of the frames, by split; each gets at least one frame.

    Raises:
        SourceError: if there are fewer frames than splits.
    """
    counts = Counter(scenes)
    if len(scenes) <= len(shares):
        raise SourceError(f"{len(scenes)} frames cannot be split into train, {', '.join(shares)}")
    if len(counts) <= len(shares):
        result = ["train"] * len(scenes)
        end = len(scenes)
        for split, share in reversed(list(shares.items())):
            start = end - max(1, int(share * len(scenes)))
            result[start:end] = [split] * (end - start)
            end = start
        return result
    order = sorted(counts, key=lambda name: hashlib.sha256(name.encode()).digest())
    split_of: dict[str, str] = {}
    for number, (split, share) in enumerate(shares.items()):
        frames, still = 0, len(shares) - number  # each later split, and train, needs a scene too
        while (frames < share * len(scenes) and len(order) > still) or frames == 0:
            name = order.pop(0)
            split_of[name] = split
            frames += counts[name]
    return [split_of.get(name, "train") for name in scenes]
