"""Random order and random draws of training samples: functions of (seed, epoch, sample index) alone.

Nothing depends on the number of processes, on threads or on earlier draws, so a resumed run continues exactly.
"""

from typing import Any, NamedTuple

import numpy as np


class Draws(NamedTuple):
    """The uniform random numbers that augment a sample, one field for each decision of ``train.augment``."""

    zoom: Any
    rotate: Any
    flip: Any
    shift_x: Any
    shift_y: Any
    saturation: Any
    grey: Any
    contrast: Any
    brightness: Any
    gamma: Any
    channel_swap: Any
    channel_order: Any
    blur: Any
    blur_sigma: Any
    noise: Any
    noise_seed: Any
    jpeg: Any
    jpeg_quality: Any


def generator(seed: int, stream: int, count: int) -> np.random.Generator:
    """Return a random number generator that is a function of three integers."""
    # An explicit dtype: NumPy turns a list of mixed sizes into floats and loses the low digits.
    return np.random.Generator(np.random.Philox(key=np.array([seed << 1 | stream, count], dtype=np.uint64)))


def draw_integer(seed: int, step: int, count: int) -> int:
    """Return a random integer below ``count`` for a training step, equal in every process."""
    return int(generator(seed, 0, step | 1 << 40).integers(count))


def sample_draws(seed: int, epoch: int, index: int) -> np.ndarray:
    """Return the random numbers in [0, 1) of one sample in one epoch: float64 (len(Draws._fields),)."""
    return generator(seed, 1, epoch << 32 | index).random(len(Draws._fields))


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of the samples in an epoch: int64 (count,)."""
    return generator(seed, 0, epoch).permutation(count)


def weighted_order(seed: int, epoch: int, weights: np.ndarray) -> np.ndarray:
    """Return the order of an epoch in which a sample of weight w among n of sum 1 occurs floor(n w) or ceil(n w) times.

    The result, int64 (n,), holds the sample's index, plus n for each earlier occurrence, so that a repetition is
    augmented differently.
    """
    random, count = generator(seed, 0, epoch), len(weights)
    ends = np.cumsum(weights) * (count / weights.sum())
    chosen = np.searchsorted(ends, random.random() + np.arange(count)).clip(max=count - 1)
    # Equal indices are neighbors; the first of each run is occurrence 0.
    occurrence = np.arange(count) - np.searchsorted(chosen, chosen)
    return random.permutation(chosen + count * occurrence)


def rarity(medians: np.ndarray, power: float, bandwidth: float = 0.1) -> np.ndarray:
    """Return sampling weights that favor frames of a rare median depth: the inverse density to a power.

    ``medians`` (n,) are logarithms, NaN for a frame without valid depth; the density is estimated with a Gaussian
    kernel. The weights are between 1/5 and 5 times that of the median frame.
    """
    known = medians[np.isfinite(medians)]
    if not known.size:
        return np.ones(len(medians))
    bins = np.linspace(known.min(), known.max(), 256)
    kernel = np.exp(-((bins[:, None] - known[None]) ** 2) / (2 * bandwidth**2))
    weights = np.interp(medians, bins, kernel.mean(1)) ** -power
    return np.nan_to_num(weights / np.nanmedian(weights), nan=1.0).clip(0.2, 5.0)
