"""nyu_depth_v2_labeled.mat as one reads it without this project: the other side of the benchmark of loading."""

from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset


class MatFile(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The labelled frames, straight from the file: uint8 (3, H, W) and float32 millimetres (1, H, W).

    Args:
        path: of the file.
        size: (H, W) to which frames are resized, or None.

    Raises:
        ValueError: it is not the file.
    """

    def __init__(self, path: Path, size: tuple[int, int] | None) -> None:
        self.path, self.size = path, size
        self._file: h5py.File | None = None
        try:
            with h5py.File(path, "r") as file:
                if "images" not in file or "depths" not in file:
                    raise ValueError(
                        f"{path} has no arrays images and depths; expected nyu_depth_v2_labeled.mat"
                    )
                self.count = len(file["images"])
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file; expected nyu_depth_v2_labeled.mat") from None
        except OSError:
            raise ValueError(f"{path}: not an HDF5 (MATLAB v7.3) file, or cut short") from None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._file is None:  # once in each process
            self._file = h5py.File(self.path, "r")
        # MATLAB's axes: (3, W, H) and (W, H).
        image, depth = self._file["images"][index], self._file["depths"][index]
        if self.size is None:
            return torch.from_numpy(image).transpose(1, 2), torch.from_numpy(depth).t().unsqueeze(0) * 1000
        height, width = self.size
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(2, 1, 0)))
        small = np.array(picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0))
        metres = Image.fromarray(np.ascontiguousarray(depth.T))
        nearest = np.array(metres.resize((width, height), Image.Resampling.NEAREST))
        return torch.from_numpy(small).permute(2, 0, 1), torch.from_numpy(nearest).unsqueeze(0) * 1000
