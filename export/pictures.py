"""Pictures to compare an export on and to calibrate it with: frames of prepared shards, or synthetic rooms."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from depthzoo.predictor import resize_image, working_size
from train.rooms import render
from train.shards import DatasetError, ShardDataset, read_dataset

ROOM = (192, 256)  # synthetic rooms are rendered small, since only their variety matters


class Pictures:
    """A source of pictures that gives the same ones every time.

    Args:
        data: a folder made by ``train.prepare``; None for synthetic rooms.
        splits: which to take, the first that the data have.

    Attributes:
        source: what they are, JSON-able: ``{"pictures": "real", "data": ..., "split": ...}``, or
            ``{"pictures": "synthetic"}``.

    Raises:
        DatasetError: a data set that is missing, broken, or has none of the splits.
    """

    def __init__(self, data: Path | None = None, splits: Sequence[str] = ("val", "train", "test")) -> None:
        self.frames: ShardDataset | None = None
        self.source = {"pictures": "synthetic", "data": "train.rooms"}
        if data is not None:
            has = read_dataset(data)["splits"]
            split = next((name for name in splits if name in has), None)
            if split is None:
                raise DatasetError(f"{data} has no split {' or '.join(splits)}; it has: {', '.join(has)}")
            self.frames = ShardDataset(data, split)
            self.source = {
                "pictures": "real",
                "data": str(self.frames.info.get("source", "unnamed")),
                "split": split,
            }

    def __str__(self) -> str:
        if self.frames is None:
            return "synthetic rooms"
        return f"frames of {self.source['data']}, {self.source['split']}"

    def picture(self, place: float, seed: int) -> np.ndarray:
        """uint8 RGB (H, W, 3): the frame at a share ``place`` of the split, 0 to 1, or the room of a seed."""
        if self.frames is None:
            return render(seed, size=ROOM).image
        return self.frames[min(len(self.frames) - 1, int(place * len(self.frames)))][0]

    def batch(self, count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
        """Different pictures squeezed to ``size`` (H, W), from all over the source: uint8 (count, H, W, 3)."""
        height, width = size
        places = [(0.618034 * (seed + index)) % 1 for index in range(count)]  # the golden ratio spreads them
        pictures = [self.picture(place, seed + index) for index, place in enumerate(places)]
        return np.stack([np.asarray(Image.fromarray(p).resize((width, height))) for p in pictures])

    def calibration(self, count: int, size: tuple[int, int], exact: bool = False) -> "list[np.ndarray]":
        """Evenly spaced pictures as the network meets them: float32 (1, 3, h, w) in [0, 1].

        Args:
            count: how many; no more than the source has.
            size: working size (H, W); a picture of another aspect gets about its area.
            exact: squeeze every picture to ``size`` itself.
        """
        count = count if self.frames is None else min(count, len(self.frames))
        batches = []
        for index in range(count):
            picture = self.picture(index / count, index)
            image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
            fed = size if exact else working_size(picture.shape[0], picture.shape[1], size)
            batches.append((resize_image(image, fed).float() / 255).numpy())
        return batches
