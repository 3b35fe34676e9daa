"""Counts the memory of a step's tensors, where no allocator can be asked."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, for as long as they live: what an allocator sees, less
    what kernels take inside. Tensors made before do not count.

    Attributes:
        live: bytes now.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(storage) for storage in storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            key = id(storage)
            if key in given or key in self._known:
                continue  # a view, or changed in place
            self._known.add(key)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _gone(self, key: int, nbytes: int) -> None:
        self.live -= nbytes
        self._known.discard(key)


def storages(values: Any) -> list[torch.UntypedStorage]:
    """Of all tensors in a nest of tuples, lists and dicts."""
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def counted_peak(step: Callable[[], object]) -> int:
    """Bytes of tensors that a step makes and holds at most at one time."""
    with LiveTensors() as tensors:
        step()
    return tensors.peak
