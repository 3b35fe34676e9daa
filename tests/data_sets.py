"""Small data sets for tests."""

from pathlib import Path
from typing import Any

import numpy as np

from depthzoo.camera import CANONICAL_FOCAL
from train.codec import encode_depth, encode_image
from train.shards import ShardWriter, write_dataset


def write_random_frames(
    out: Path, size: tuple[int, int], counts: dict[str, int], name: str = "random", **about: Any
) -> Path:
    """Write a data set of random images, with a box before a ramp of depth, of the canonical camera."""
    random, number, splits = np.random.default_rng(0), 0, {}
    height, width = size
    for split, count in counts.items():
        with ShardWriter(out, split) as writer:
            for _ in range(count):
                image = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
                depth = np.linspace(2, random.uniform(3, 6), width) + random.uniform(0, 0.2, size)
                depth[height // 4 : height // 2, width // 4 : width // 2] -= 1.5  # a box with depth edges
                encoded = encode_image(image.repeat(8, 0).repeat(8, 1), 95)
                writer.write(f"{name}-{number:07d}", *encoded, encode_depth(depth))
                number += 1
        splits[split] = {**writer.entry, "size": list(size), "focal_px": CANONICAL_FOCAL * width}
    write_dataset(out, splits, **{"source": name, "terms": "MIT", **about})
    return out
