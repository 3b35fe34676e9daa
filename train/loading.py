"""Train samples: decoded once, in an order and with variations that depend on (seed, epoch, index) alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from depthzoo.data.shards import DatasetError, ShardDataset

# Uniform numbers per sample, for train.augment.
DRAWS = 16
# int16 millimetres: the farthest depth that a decoded set holds.
MAX_MILLIMETRES = 32767


@dataclass(frozen=True)
class Batch:
    """Stored frames with the random draws of their augmentation.

    Attributes:
        image: (N, 3, h, w) uint8.
        depth: (N, 1, h, w) int16 millimetres, 0 invalid.
        draws: (N, DRAWS) float64 in [0, 1).
        focal_px: of the stored frames.
        keys: of the samples.
    """

    image: Tensor
    depth: Tensor
    draws: np.ndarray
    focal_px: float
    keys: list[str]


class DecodedSet:
    """A split decoded into memory.

    Args:
        dataset: whose frames have one size.

    Raises:
        DatasetError: if the frames differ in size; ``train.prepare --size`` makes them equal.
    """

    def __init__(self, dataset: ShardDataset) -> None:
        height, width = dataset[0][0].shape[:2]
        self.keys, self.focal_px = dataset.keys, dataset.focal_px
        self.images = torch.empty(len(dataset), 3, height, width, dtype=torch.uint8)
        self.depths = torch.empty(len(dataset), 1, height, width, dtype=torch.int16)
        for index in tqdm(range(len(dataset)), desc=f"decoding {dataset.split}", unit="frame", disable=None):
            image, depth = dataset[index]
            if depth.shape != (height, width):
                raise DatasetError(
                    f"{dataset.folder}: sample {dataset.keys[index]!r} is {depth.shape[0]}x{depth.shape[1]}, others "
                    f"{height}x{width}; prepare the data with --size"
                )
            self.images[index] = torch.from_numpy(image.copy()).permute(2, 0, 1)
            self.depths[index, 0] = torch.from_numpy(np.minimum(depth, MAX_MILLIMETRES).astype(np.int16))

    def __len__(self) -> int:
        return len(self.keys)


def _generator(seed: int, stream: int, count: int) -> np.random.Generator:
    # An explicit dtype: NumPy would make floats of a list of mixed sizes and lose the low digits.
    return np.random.Generator(np.random.Philox(key=np.array([seed << 1 | stream, count], dtype=np.uint64)))


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch: int64 (count,)."""
    return _generator(seed, 0, epoch).permutation(count)


def sample_draws(seed: int, epoch: int, index: int) -> np.ndarray:
    """The uniform draws of one sample in one epoch: float64 (DRAWS,), whatever batch or worker it is in."""
    return _generator(seed, 1, epoch << 32 | index).random(DRAWS)


class SampleStream:
    """Batches by position: ``stream.batch(position, count)`` are the samples position, ..., position+count-1 of
    an endless sequence of shuffled epochs. No state, so a resume is exact.
    """

    def __init__(self, data: DecodedSet, seed: int) -> None:
        self.data, self.seed = data, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def locate(self, position: int) -> tuple[int, int]:
        """Epoch and sample index at a position."""
        epoch, offset = divmod(position, len(self.data))
        if self._order[0] != epoch:
            self._order = (epoch, permutation(self.seed, epoch, len(self.data)))
        return epoch, int(self._order[1][offset])

    def batch(self, position: int, count: int) -> Batch:
        where = [self.locate(position + i) for i in range(count)]
        indices = torch.tensor([index for _, index in where])
        return Batch(
            self.data.images[indices],
            self.data.depths[indices],
            np.stack([sample_draws(self.seed, epoch, index) for epoch, index in where]),
            self.data.focal_px,
            [self.data.keys[index] for _, index in where],
        )
