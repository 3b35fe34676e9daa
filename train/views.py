"""Augmented pictures in batches; every random draw is a function of (seed, epoch, picture, view)."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from train.order import permutation
from train.pictures import Picture, PictureError, Unreadable


@dataclass
class ViewBatch:
    """Pictures as the encoder takes them.

    Attributes:
        image: (views * N, 3, S, S) uint8, one view of the whole batch after the other.
        labels: (N,) int64, indices of the kinds.
        names: of the N pictures.
        unreadable: message by name, of pictures in whose place the next ones are here.
    """

    image: Tensor
    labels: Tensor
    names: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)


def seeded(transform: Callable[[Tensor], Tensor], image: Tensor, *key: int) -> Tensor:
    """``transform`` of an image with PyTorch's generator seeded by ``key``, and left as it was."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return transform(image)


def centre(size: int) -> Callable[[Tensor], Tensor]:
    """The middle of a picture, uint8 (3, h, w) to (3, size, size), for measuring."""
    middle: Callable[[Tensor], Tensor] = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    return middle


class Views(Dataset[ViewBatch]):
    """Pictures by position in an endless sequence of shuffled epochs, or in their own order.

    Args:
        pictures: all of them.
        labels: index of the kind of each.
        transform: of one uint8 picture (3, h, w) to the final size.
        views: how many of each.
        seed: of order and augmentation; None keeps the order and needs a transform that draws nothing.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        labels: Sequence[int],
        transform: Callable[[Tensor], Tensor],
        views: int = 1,
        seed: int | None = None,
    ) -> None:
        self.pictures, self.labels = pictures, labels
        self.transform, self.views, self.seed = transform, views, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __len__(self) -> int:
        return len(self.pictures)

    def locate(self, position: int) -> tuple[int, int]:
        """Epoch and index of the picture at a position."""
        epoch, offset = divmod(position, len(self.pictures))
        if self.seed is None:
            return epoch, offset
        if self._order[0] != epoch:
            self._order = (epoch, permutation(self.seed, epoch, len(self.pictures)))
        return epoch, int(self._order[1][offset])

    def __getitem__(self, position: int) -> ViewBatch:
        """One picture; in place of an unreadable one the next by index."""
        epoch, index = self.locate(position)
        unreadable: dict[str, str] = {}
        # One more than may be: the run then stops by what is found here.
        for _ in range(Unreadable(len(self.pictures)).limit + 1):
            picture = self.pictures[index]
            try:
                image = torch.from_numpy(picture.read()).permute(2, 0, 1)
            except PictureError as error:
                unreadable[str(picture)] = str(error)
                index = (index + 1) % len(self.pictures)
                continue
            views = [
                seeded(self.transform, image, self.seed or 0, epoch, index, i) for i in range(self.views)
            ]
            labels = torch.tensor([self.labels[index]])
            return ViewBatch(torch.stack(views).contiguous(), labels, [str(picture)], unreadable)
        return ViewBatch(torch.empty(0), torch.empty(0), [], unreadable)


def collate(samples: list[ViewBatch]) -> ViewBatch:
    """Joins single pictures, view by view."""
    unreadable = {name: text for sample in samples for name, text in sample.unreadable.items()}
    samples = [sample for sample in samples if sample.names]
    if not samples:
        return ViewBatch(torch.empty(0), torch.empty(0), [], unreadable)
    image = torch.stack([sample.image for sample in samples], dim=1).flatten(0, 1)
    names = [name for sample in samples for name in sample.names]
    return ViewBatch(image, torch.cat([sample.labels for sample in samples]), names, unreadable)


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the main one saves and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def batches(views: Views, start: int, stop: int, batch_size: int, workers: int) -> Iterator[ViewBatch]:
    """Batches of the positions from ``start`` to ``stop``, decoded by ``workers`` processes; 0 is this one."""
    loader: DataLoader[ViewBatch] = DataLoader(
        views,
        batch_size=batch_size,
        sampler=range(start, stop),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_ignore_interrupt,
        generator=torch.Generator(),  # else it draws from the global one
    )
    return iter(loader)


def hold_out(pictures: Sequence[Picture], share: float) -> tuple[list[int], list[int]]:
    """Indices to train on and to measure on, in order; the same for every seed of the same pictures."""
    order = permutation(0, 0, len(pictures))
    count = max(1, round(share * len(pictures)))
    return sorted(map(int, order[count:])), sorted(map(int, order[:count]))
