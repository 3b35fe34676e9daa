"""Frames encoded by worker processes, in order."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from itertools import islice
from multiprocessing import connection
from types import TracebackType
from typing import Any

from train.encoding import Encoded, crop_frame, cut_by, encode, median
from train.sources.frames import Frame, FrameError, Item, Source

# Frames a task: few, so that Ctrl-C is quick and memory small.
BATCH = 4

_source: Source
_handle: Any
_size: tuple[int, int] | None


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _start(source: Source, size: tuple[int, int] | None) -> None:
    """In a new worker."""
    global _source, _handle, _size
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the others
    threading.Thread(target=_die_with_parent, daemon=True).start()  # a killed parent ends nobody
    if "torch" in sys.modules:  # its thread pool does not survive a fork, and the cores are all taken
        sys.modules["torch"].set_num_threads(1)
    _source, _size = source, size
    _handle = source.open().__enter__()  # until the process ends


def _read(source: Source, handle: Any, item: Item) -> Frame:
    if item.problem:
        raise FrameError(item.problem)
    try:
        return source.load(item, handle)
    except OSError as error:
        raise FrameError(str(error)) from None


def _encode(
    source: Source, handle: Any, size: tuple[int, int] | None, items: Sequence[Item]
) -> list[Encoded | str]:
    """A sample, or what is wrong with it."""
    results: list[Encoded | str] = []
    for item in items:
        try:
            frame = _read(source, handle, item)
            results.append(encode(frame, size, source.depth_unit, source.depth_range))
        except FrameError as error:
            results.append(str(error))
    return results


def _look(
    source: Source, handle: Any, size: tuple[int, int] | None, items: Sequence[Item]
) -> list[tuple[float | None, str]]:
    results: list[tuple[float | None, str]] = []
    for item in items:
        try:
            frame = crop_frame(_read(source, handle, item))
            results.append((median(frame.depth), cut_by(frame.image.shape, size) if size else ""))
        except FrameError:  # counted when its turn comes
            results.append((None, ""))
    return results


def _work(task: Callable[..., list[Any]], items: Sequence[Item]) -> list[Any]:
    return task(_source, _handle, _size, items)


class Crew:
    """Reads and encodes frames of a source; a context manager.

    Args:
        source: of the frames.
        size: (H, W) of train frames, or None.
        workers: processes; with 1 all happens in this one. The results do not depend on it.

    Raises:
        OSError: while iterating, if a worker died.
    """

    def __init__(self, source: Source, size: tuple[int, int] | None, workers: int) -> None:
        self.source, self.size, self.workers = source, size, workers
        self._stack = ExitStack()
        self._handle: Any = None
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Crew":
        if self.workers > 1:
            # Forked workers start at once; where forking is unsafe each one imports everything anew.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            self._pool = ProcessPoolExecutor(
                self.workers, context, initializer=_start, initargs=(self.source, self.size)
            )
            self._stack.callback(self._pool.shutdown, cancel_futures=True)
        else:
            self._handle = self._stack.enter_context(self.source.open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def encoded(self, items: Sequence[Item]) -> Iterator[Encoded | str]:
        """For each item its sample, or what is wrong with it."""
        return self._each(_encode, items)

    def looks(self, items: Sequence[Item]) -> Iterator[tuple[float | None, str]]:
        """For each item its median depth in metres, None without any, and why ``size`` cuts too much off it, or ""."""
        return self._each(_look, items)

    def _each(self, task: Callable[..., list[Any]], items: Sequence[Item]) -> Iterator[Any]:
        batches = (items[start : start + BATCH] for start in range(0, len(items), BATCH))
        if self._pool is None:
            for batch in batches:
                for item in batch:
                    yield from task(self.source, self._handle, self.size, [item])
            return
        try:
            pool, window = self._pool, 4 * self.workers  # what is encoded waits in memory
            ahead: deque[Future[list[Any]]] = deque(
                pool.submit(_work, task, batch) for batch in islice(batches, window)
            )
            while ahead:
                yield from ahead.popleft().result()
                ahead.extend(pool.submit(_work, task, batch) for batch in islice(batches, 1))
        except BrokenProcessPool:
            raise OSError(
                "a worker process died (out of memory?); the same command with fewer --workers goes on"
            ) from None
