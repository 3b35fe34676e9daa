"""Train samples streamed from shards behind a URL, read and decoded while the network works on those before.

Nothing is kept but the samples among which the next are drawn and, for BatchNorm statistics, the last ones, all as
they are stored. See ``train.stream_order`` for who gets which sample when.
"""

import contextlib
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from train.codec import DatasetError, decode
from train.loading import Batch, Decoder, sample_draws
from train.remote import Encoded, RemoteSet, fetch_split, is_remote
from train.shards import Shard, depth_facts
from train.stream_order import Order, Run

__all__ = ["ShardStream", "fetch_split", "is_remote"]

# Batches that are decoded ahead, and batches that are kept, encoded, for statistics of the last ones.
AHEAD_BATCHES, RECENT_BATCHES = 2, 32
CLOSE_SECONDS = 5.0


@dataclass
class Sample:
    """One place of the stream; ``pixels`` while it is decoded ahead, None in them for what cannot be."""

    epoch: int
    number: int
    encoded: Encoded
    pixels: "Future[tuple[Tensor, Tensor] | None] | None" = None

    def begin(self, pool: ThreadPoolExecutor, decoder: Decoder) -> None:
        """Has it decoded, where it is not."""
        if self.pixels is None:
            self.pixels = pool.submit(decoder, self.encoded.key, partial(load, self.encoded))


def load(encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a sample.

    Raises:
        DatasetError: it cannot be decoded, or half of it is missing.
    """
    if encoded.image is None or encoded.depth is None:
        missing = "jpg or png" if encoded.image is None else "depth.png"
        raise DatasetError(f"{encoded.url}: sample {encoded.key!r} has no {missing}")
    return decode(encoded.image, encoded.depth, encoded.url, encoded.key)


def samples_from(
    remote: RemoteSet, shards: list[Shard], order: Order, ordinal: int, closing: threading.Event
) -> Iterator[Sample]:
    """The process's samples from an ordinal on, without end; what came before it in the epoch is skipped.

    Raises:
        DatasetError: for a shard that cannot be read.
    """
    epoch, place = order.locate(ordinal)
    while True:
        numbers = order.numbers(epoch)[place:]
        wanted, held = set(numbers), dict[int, Encoded]()
        reading = _read(remote, shards, order, order.runs(epoch), wanted, closing)
        for number in numbers:
            while number not in held:
                read, encoded = next(reading, (-1, None))
                if encoded is None:
                    return  # closing
                held[read] = encoded
            yield Sample(epoch, number, held.pop(number))
        epoch, place = epoch + 1, 0


def _read(
    remote: RemoteSet,
    shards: list[Shard],
    order: Order,
    runs: list[Run],
    wanted: set[int],
    closing: threading.Event,
) -> Iterator[tuple[int, Encoded]]:
    for run in runs:
        start = int(order.starts[run.shard])
        mine = [n for n in range(run.first, run.last) if start + n in wanted]
        if not mine:
            continue
        for number, encoded in remote.samples(shards[run.shard], mine[0], mine[-1] + 1, closing):
            if start + number in wanted:
                yield start + number, encoded


class Feeder:
    """Reads samples and begins to decode them, in the background, up to a number ahead.

    Args:
        samples: to be read.
        pool: of threads that decode.
        decoder: of the samples.
        ahead: how many may wait.
        closing: ends ``samples``.
    """

    def __init__(
        self,
        samples: Iterator[Sample],
        pool: ThreadPoolExecutor,
        decoder: Decoder,
        ahead: int,
        closing: threading.Event,
    ) -> None:
        self._closing = closing
        self._queue: queue.Queue[Sample | BaseException] = queue.Queue(ahead)
        self._thread = threading.Thread(target=self._feed, args=(samples, pool, decoder), daemon=True)
        self._thread.start()

    def _feed(self, samples: Iterator[Sample], pool: ThreadPoolExecutor, decoder: Decoder) -> None:
        try:
            for sample in samples:
                sample.begin(pool, decoder)
                self._queue.put(sample)
                if self._closing.is_set():
                    break
        except BaseException as error:
            self._queue.put(error)

    def get(self) -> Sample:
        """The next sample; raises what reading raised."""
        sample = self._queue.get()
        if isinstance(sample, BaseException):
            raise sample
        return sample

    def close(self) -> None:
        """Ends the thread and what fetches for it."""
        self._closing.set()
        end = time.monotonic() + CLOSE_SECONDS
        while self._thread.is_alive() and time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                self._queue.get_nowait()  # it may wait for room
            self._thread.join(0.01)


class ShardStream:
    """The counterpart of ``train.loading.SampleStream`` for a data set behind a URL.

    Batches are asked for in order, by their positions in the sequence of all processes: process r of a world of n
    asks for ``batch(step * n * count + r * count, count)``. The last batches can be had again at once; any other
    position starts reading anew, from the beginning of what is needed of its epoch. A sample has the draws that it
    has from a local copy in the same epoch.

    Args:
        url: of the data set; see ``train.remote``.
        split: "train".
        seed: of the order and the draws.
        rank, world: this process, of how many.
        shuffle: samples among which those that come next are drawn; they are held as they are stored.
        workers: threads that decode.
        max_bad: share of samples that may be unreadable; they are named, and the next good one stands in.

    Attributes:
        info: the content of ``dataset.json``.
        digest: sha256 of ``dataset.json``.
        focal_px: of the stored frames' camera, pixels.

    Raises:
        DatasetError: for a data set that cannot be read; webdataset is not installed.
        ValueError: more processes than samples.
    """

    def __init__(
        self,
        url: str,
        split: str,
        seed: int,
        rank: int = 0,
        world: int = 1,
        shuffle: int = 1024,
        workers: int = 4,
        max_bad: float = 0.0,
    ) -> None:
        self._remote = RemoteSet(url)
        self.info, self.digest = self._remote.info, self._remote.digest
        self.focal_px, self._shards = self._remote.shards(split)
        self.seed, self.rank, self.world = seed, rank, world
        self._order = Order([shard.count for shard in self._shards], seed, rank, world, max(1, shuffle))
        if world > len(self):
            raise ValueError(f"{world} processes for the {len(self)} samples of {url}")
        self._decoder = Decoder(url, len(self), max_bad)
        self._pool = ThreadPoolExecutor(max(1, workers))
        self._feeder: Feeder | None = None
        # Ordinal of the first sample of the window.
        self._first, self._window = 0, deque[Sample]()

    def __len__(self) -> int:
        """Samples of the split, over all processes."""
        return self._order.total

    def __enter__(self) -> "ShardStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends reading; the next batch begins again."""
        if self._feeder is not None:
            self._ending()
        self._feeder = None
        self._window.clear()

    def _start(self, ordinal: int, count: int) -> Feeder:
        self.close()
        closing = threading.Event()
        samples = samples_from(self._remote, self._shards, self._order, ordinal, closing)
        feeder = Feeder(samples, self._pool, self._decoder, AHEAD_BATCHES * count, closing)
        # At exit, and where nobody has the stream any more.
        self._ending = weakref.finalize(self, feeder.close)
        self._feeder, self._first = feeder, ordinal
        return feeder

    def _sample(self, ordinal: int, count: int) -> Sample:
        feeder = self._feeder
        if feeder is None or not self._first <= ordinal <= self._first + len(self._window):
            feeder = self._start(ordinal, count)
        while ordinal >= self._first + len(self._window):
            try:
                self._window.append(feeder.get())
            except Exception:
                self.close()
                raise
        return self._window[ordinal - self._first]

    def _shown(self, ordinal: int, count: int) -> tuple[str, Tensor, Tensor]:
        """Key and pixels of a sample, or of the next that can be decoded."""
        while True:
            sample = self._sample(ordinal, count)
            sample.begin(self._pool, self._decoder)
            assert sample.pixels is not None
            pair = sample.pixels.result()
            if pair is not None:
                return sample.encoded.key, *pair
            ordinal += 1

    def batch(self, position: int, count: int) -> Batch:
        """See above.

        Raises:
            DatasetError: for what cannot be read.
            ValueError: a position that is not this process's.
        """
        first, rest = divmod(position - self.rank * count, self.world)
        if first < 0 or rest:
            raise ValueError(f"position {position} is not one of process {self.rank} of {self.world}")
        samples = [self._sample(first + i, count) for i in range(count)]
        for sample in samples:
            sample.begin(self._pool, self._decoder)
        keys, images, depths = zip(*(self._shown(first + i, count) for i in range(count)), strict=True)
        draws = np.stack([sample_draws(self.seed, sample.epoch, sample.number) for sample in samples])
        for sample in samples:
            sample.pixels = None
        while self._first < first + count - RECENT_BATCHES * count:
            self._window.popleft()
            self._first += 1
        unit, _ = depth_facts(self.info)
        return Batch(torch.stack(images), torch.stack(depths), draws, self.focal_px, list(keys), unit)
