"""The plain loop that this project began with, to measure the trainer against.

As the seed's experiments had it, and most first training scripts have it: pictures and depth maps as files at the
training size, decoded anew each time by a DataLoader in the loop's own process, no augmentation; the network with an
unbounded output, in float32 and NCHW; mean squared error over all pixels; Adam at a constant rate; the loss printed,
so fetched, at every step. Its batches were 2 (U-Net) and 4 (wide U-Net on ResNet-50). cuDNN's own choices stay as
PyTorch sets them: no search for the quickest algorithm, TF32 allowed in convolutions.
"""

from collections.abc import Iterator, Sized
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms.functional import to_tensor

from depthzoo.models import create_model
from train.shards import ShardDataset

RATE = 1e-4  # of Adam; that of the seed is not on record
ENDLESS = 1 << 40

Pair = tuple[Tensor, Tensor]


class PictureFiles(Dataset[Pair]):
    """NAME.jpg and NAME.png (16-bit millimetres) of a folder: (3, H, W) in [0, 1] and (1, H, W) metres."""

    def __init__(self, folder: Path) -> None:
        self.pictures = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Pair:
        path = self.pictures[index]
        with Image.open(path) as picture, Image.open(path.with_suffix(".png")) as depth:
            return to_tensor(picture), torch.from_numpy(np.asarray(depth, np.float32)[None] / 1000)


class InMemory(Dataset[Pair]):
    """The samples of another data set, decoded once."""

    def __init__(self, dataset: Dataset[Pair]) -> None:
        self.pairs = [dataset[index] for index in range(len(cast(Sized, dataset)))]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]


def write_files(frames: ShardDataset, folder: Path, size: tuple[int, int]) -> None:
    """Writes frames as :class:`PictureFiles` reads them, resized to (H, W), depth by nearest."""
    folder.mkdir(parents=True)
    for index in range(len(frames)):
        image, millimetres = frames[index]
        picture = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        depth = Image.fromarray(millimetres).resize(size[::-1], Image.Resampling.NEAREST)
        picture.save(folder / f"{index:05d}.jpg", quality=95)
        depth.save(folder / f"{index:05d}.png")


class SeedLoop:
    """The loop, a step at a time.

    Args:
        name: of the model; its weights are random.
        dataset: of the pairs.
        batch: pictures in a step.
        device: of the network.
    """

    def __init__(self, name: str, dataset: Dataset[Pair], batch: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = create_model(name, weights=None, head="linear").to(device).train()
        self.loss = nn.MSELoss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)
        # Epoch after epoch, without the pause between them.
        sampler = RandomSampler(dataset, num_samples=ENDLESS)  # type: ignore[arg-type]
        self.batches: Iterator[list[Tensor]] = iter(DataLoader(dataset, batch, sampler=sampler))

    def step(self) -> float:
        """One step of the optimiser; the loss."""
        image, depth = (part.to(self.device) for part in next(self.batches))
        self.optimizer.zero_grad()
        loss = self.loss(self.model(image), depth)
        loss.backward()
        self.optimizer.step()
        return float(loss.item())
