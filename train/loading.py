"""Train samples, in an order and with variations that depend on (seed, epoch, index) alone."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train.shards import DatasetError, ShardDataset

# Uniform numbers per sample, for train.augment.
DRAWS = 24
# Frames that are decoded before they are stored, so that all threads have work.
DECODED_AHEAD = 64
# Share of a GPU's free memory that a decoded set may take unasked.
DEVICE_SHARE = 0.5


@dataclass(frozen=True)
class Batch:
    """Stored frames with the random draws of their augmentation.

    Attributes:
        image: (N, 3, h, w) uint8.
        depth: (N, 1, h, w) int16, the bits of the stored uint16 steps; 0 invalid.
        draws: (N, DRAWS) float64 in [0, 1).
        focal_px: of the stored frames.
        keys: of the samples.
        depth_unit: metres per step of depth.
    """

    image: Tensor
    depth: Tensor
    draws: np.ndarray
    focal_px: float
    keys: list[str]
    depth_unit: float = 0.001


class Frames(Protocol):
    """Decoded frames by index."""

    keys: list[str]
    focal_px: float
    depth_unit: float

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(N, 3, h, w) uint8 and (N, 1, h, w) int16, the bits of uint16 steps of ``depth_unit``."""


def as_tensors(image: np.ndarray, depth: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 (h, w, 3) and uint16 (h, w) to (3, h, w) uint8 and (1, h, w) int16 of the same bits."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    # torch has few operations on uint16.
    return torch.from_numpy(planes), torch.from_numpy(depth.astype(np.int16)).unsqueeze(0)


class Decoder:
    """Decodes samples of one size, and bears with bad ones up to a share of the set. Threads may share it.

    Args:
        where: the data set, for errors.
        count: of its samples.
        max_bad: share of them that may be unreadable; they are named on stderr.
    """

    def __init__(self, where: str, count: int, max_bad: float) -> None:
        self.where, self.count, self.allowed = where, count, int(max_bad * count)
        self._bad: set[str] = set()
        self._size: tuple[int, ...] | None = None

    def __call__(
        self, key: str, load: Callable[[], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[Tensor, Tensor] | None:
        """What ``load`` gives as tensors, or None if it raises a DatasetError.

        Raises:
            DatasetError: for one bad sample too many, or a frame of another size.
        """
        try:
            image, depth = load()
        except DatasetError as error:
            if key not in self._bad:
                self._bad.add(key)
                tqdm.write(f"left out: {error}", file=sys.stderr)
            if len(self._bad) > self.allowed:
                raise DatasetError(
                    f"{len(self._bad)} bad samples of {self.count}, {self.allowed} allowed (max_bad); {error}"
                ) from None
            return None
        if self._size is None:
            self._size = depth.shape
        if depth.shape != self._size:
            raise DatasetError(
                f"{self.where}: sample {key!r} is {depth.shape[0]}x{depth.shape[1]}, others "
                f"{self._size[0]}x{self._size[1]}; prepare the data with --size"
            )
        return as_tensors(image, depth)


class DecodedSet:
    """A split decoded into memory, the machine's or the device's.

    Args:
        dataset: whose frames have one size.
        max_bad: share of samples that may be unreadable; they are named and left out.
        device: where the frames lie.
        progress: a bar on a terminal.
        workers: threads that decode.

    Raises:
        DatasetError: for more bad samples, or frames that differ in size.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        max_bad: float = 0.0,
        device: torch.device | None = None,
        progress: bool = True,
        workers: int = 4,
    ) -> None:
        self.focal_px, self.depth_unit = dataset.focal_px, dataset.depth_unit
        self.keys: list[str] = []
        images: Tensor | None = None
        bar = tqdm(
            total=len(dataset),
            desc=f"decoding {dataset.split}",
            unit="frame",
            disable=None if progress else True,
        )
        decoder = Decoder(str(dataset.folder), len(dataset), max_bad)
        with bar, ThreadPoolExecutor(max(1, workers)) as pool:
            # In parts: the frames wait decoded until it is their turn.
            for start in range(0, len(dataset), DECODED_AHEAD):
                part = range(start, min(start + DECODED_AHEAD, len(dataset)))
                pairs = pool.map(lambda i: decoder(dataset.keys[i], partial(dataset.__getitem__, i)), part)
                for index, pair in zip(part, pairs, strict=True):
                    bar.update()
                    if pair is None:
                        continue
                    if images is None:
                        _, height, width = pair[0].shape
                        images = torch.empty(len(dataset), 3, height, width, dtype=torch.uint8, device=device)
                        depths = torch.empty(len(dataset), 1, height, width, dtype=torch.int16, device=device)
                    images[len(self.keys)], depths[len(self.keys)] = pair
                    self.keys.append(dataset.keys[index])
        if images is None:
            raise DatasetError(f"{dataset.folder}: split {dataset.split!r} has no readable sample")
        self.images, self.depths = images[: len(self.keys)], depths[: len(self.keys)]

    def log_medians(self) -> np.ndarray:
        """ln of the median valid depth of each frame, in metres: (n,) float64, NaN without any."""
        medians = np.full(len(self.keys), np.nan)
        for index, depth in enumerate(self.depths):
            steps = (depth.flatten()[::7].int() & 0xFFFF).cpu().numpy()
            if (valid := steps[steps > 0]).size:
                medians[index] = np.log(np.median(valid) * self.depth_unit)
        return medians

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        where = torch.tensor(indices, device=self.images.device)
        # A tenth of the time of images[where].
        return self.images.index_select(0, where), self.depths.index_select(0, where)


class LazySet:
    """A split decoded as it is needed, by several threads.

    Args:
        dataset: whose frames have one size.
        max_bad: share of samples that may be unreadable; the next good one stands in.
        workers: threads.
    """

    def __init__(self, dataset: ShardDataset, max_bad: float = 0.0, workers: int = 4) -> None:
        self.keys, self.focal_px, self.depth_unit = dataset.keys, dataset.focal_px, dataset.depth_unit
        self._dataset = dataset
        self._decoder = Decoder(str(dataset.folder), len(dataset), max_bad)
        self._pool = ThreadPoolExecutor(max(1, workers))

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        while (pair := self._decoder(self.keys[index], partial(self._dataset.__getitem__, index))) is None:
            index = (index + 1) % len(self.keys)
        return pair

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, depths = zip(*self._pool.map(self._read, indices), strict=True)
        return torch.stack(images), torch.stack(depths)


def open_frames(
    dataset: ShardDataset,
    cache: str,
    device: torch.device,
    workers: int = 4,
    max_bad: float = 0.0,
    progress: bool = True,
) -> Frames:
    """Frames of a split, kept where ``cache`` says: "device", "ram", "none", or "auto", which is "device" if half
    of a GPU's free memory holds them, else "ram".

    Raises:
        DatasetError: see :class:`DecodedSet`; also if the device is asked for and too small.
    """
    if cache == "none":
        return LazySet(dataset, max_bad, workers)
    on_device = False
    if device.type == "cuda" and cache != "ram":
        height, width = dataset.info["splits"][dataset.split].get("size") or dataset[0][1].shape
        need, free = len(dataset) * height * width * 5, torch.cuda.mem_get_info(device)[0]
        on_device = need < DEVICE_SHARE * free
        if cache == "device" and need >= free:
            raise DatasetError(
                f"{dataset.folder}: {need / 2**30:.1f} GiB decoded, {free / 2**30:.1f} GiB free on {device}; "
                "use --cache ram"
            )
        on_device = on_device or cache == "device"
    return DecodedSet(dataset, max_bad, device if on_device else None, progress, workers)


def generator(seed: int, stream: int, count: int) -> np.random.Generator:
    """Random numbers that are a function of three integers."""
    # An explicit dtype: NumPy would make floats of a list of mixed sizes and lose the low digits.
    return np.random.Generator(np.random.Philox(key=np.array([seed << 1 | stream, count], dtype=np.uint64)))


def draw_integer(seed: int, step: int, count: int) -> int:
    """An integer below ``count`` for a step of a run, the same in every process."""
    return int(generator(seed, 0, step | 1 << 40).integers(count))


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch: int64 (count,)."""
    return generator(seed, 0, epoch).permutation(count)


def weighted_order(seed: int, epoch: int, weights: np.ndarray) -> np.ndarray:
    """The order of an epoch of as many samples as there are weights, each as often as its weight says.

    Systematic resampling: a sample of weight w among n of sum 1 occurs floor(n w) or ceil(n w) times.

    Returns:
        int64 (n,): the sample's index, plus n for each time that it has occurred before, so that a repetition draws
        another augmentation.
    """
    random, count = generator(seed, 0, epoch), len(weights)
    ends = np.cumsum(weights) * (count / weights.sum())
    chosen = np.searchsorted(ends, random.random() + np.arange(count)).clip(max=count - 1)
    # Equal indices are neighbours; the first of each run has occurrence 0.
    return random.permutation(chosen + count * (np.arange(count) - np.searchsorted(chosen, chosen)))


def rarity(medians: np.ndarray, power: float, bandwidth: float = 0.1) -> np.ndarray:
    """How often each frame should be drawn so that near and far ones count as much as those in between.

    Args:
        medians: (n,) ln of the median depth of each frame; NaN where a frame has none.
        power: 0 draws all frames alike, 1 by the inverse density of ``medians``.
        bandwidth: of the Gaussian kernel that estimates the density.

    Returns:
        (n,) weights between 1/5 and 5 times that of the median frame.
    """
    known = medians[np.isfinite(medians)]
    if not known.size:
        return np.ones(len(medians))
    bins = np.linspace(known.min(), known.max(), 256)
    kernel = np.exp(-((bins[:, None] - known[None]) ** 2) / (2 * bandwidth**2))
    weights = np.interp(medians, bins, kernel.mean(1)) ** -power
    middle = np.nanmedian(weights)
    return np.nan_to_num(weights / middle, nan=1.0).clip(0.2, 5.0)


def sample_draws(seed: int, epoch: int, index: int) -> np.ndarray:
    """The uniform draws of one sample in one epoch: float64 (DRAWS,), whatever batch or worker it is in."""
    return generator(seed, 1, epoch << 32 | index).random(DRAWS)


class SampleStream:
    """Batches by position: ``batch(position, count)`` are the samples position, ..., position+count-1 of an endless
    sequence of shuffled epochs. It has no state that matters, so that a resume is exact.

    Args:
        data: the frames.
        seed: of the order and the draws.
        ahead: a batch so many positions later is fetched in the background; 0 is none.
        weights: (n,) how often each frame is drawn, relative to the others; None draws each once an epoch.
    """

    def __init__(self, data: Frames, seed: int, ahead: int = 0, weights: np.ndarray | None = None) -> None:
        self.data, self.seed, self.ahead, self.weights = data, seed, ahead, weights
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))
        self._next: tuple[tuple[int, int], Future[tuple[Tensor, Tensor]]] | None = None
        self._pool = ThreadPoolExecutor(1)

    def locate(self, position: int) -> tuple[int, int]:
        """Epoch and sample index at a position; see :func:`weighted_order` for a sample that is repeated."""
        epoch, offset = divmod(position, len(self.data.keys))
        if self._order[0] != epoch:
            if self.weights is None:
                self._order = (epoch, permutation(self.seed, epoch, len(self.data.keys)))
            else:
                self._order = (epoch, weighted_order(self.seed, epoch, self.weights))
        return epoch, int(self._order[1][offset])

    def batch(self, position: int, count: int) -> Batch:
        """See above.

        Raises:
            DatasetError: for what cannot be read.
        """
        where = [self.locate(position + i) for i in range(count)]
        if self._next is not None and self._next[0] == (position, count):
            images, depths = self._next[1].result()
        else:
            images, depths = self.data.fetch([index % len(self.data.keys) for _, index in where])
        if self.ahead:
            later = [self.locate(position + self.ahead + i)[1] % len(self.data.keys) for i in range(count)]
            self._next = ((position + self.ahead, count), self._pool.submit(self.data.fetch, later))
        return Batch(
            images,
            depths,
            np.stack([sample_draws(self.seed, epoch, index) for epoch, index in where]),
            self.data.focal_px,
            [self.data.keys[index % len(self.data.keys)] for _, index in where],
            self.data.depth_unit,
        )
