"""From any picture to metres at the picture's own size."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from depthzoo import visualize
from depthzoo import weights as zoo_weights
from depthzoo.camera import CANONICAL_FOCAL, depth_scale
from depthzoo.files import atomic_write
from depthzoo.images import ImageSource, load_image, load_with_focal, reworded
from depthzoo.models import create_model

__all__ = [
    "Prediction",
    "Predictor",
    "load_image",
    "predictor",
    "resize_depth",
    "resize_image",
    "select_device",
    "working_size",
]

DEFAULT_SIZE = (480, 640)
DEFAULT_MODEL = "unet_resnet50"
Several: TypeAlias = list[Any] | tuple[Any, ...]
# Pixels, the canonical camera's, or None: EXIF's, and the canonical camera's where EXIF states none.
Focal: TypeAlias = float | Literal["canonical"] | None


@dataclass(frozen=True, eq=False)
class Prediction:
    """Depth of one picture.

    Attributes:
        depth: (H, W) float32, metres along the camera's axis.
        image: (H, W, 3) uint8 RGB, the picture as the model saw it: upright, before resizing.
        focal_px: focal length in pixels of the picture, which ``depth`` is for: the one that was given, that of
            EXIF, or that of the canonical camera (see :mod:`depthzoo.camera`). If None, the last.
    """

    depth: NDArray[np.float32]
    image: NDArray[np.uint8]
    focal_px: float | None = None

    def colored(
        self, colormap: str = visualize.DEFAULT_COLORMAP, near: float | None = None, far: float | None = None
    ) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB; see :func:`depthzoo.visualize.colorize`."""
        return visualize.colorize(self.depth, colormap, near, far)

    def panel(self, truth: NDArray[Any] | None = None, **options: Any) -> NDArray[np.uint8]:
        """Picture | depth (| truth | error) with legends, uint8 RGB; see :func:`depthzoo.visualize.panel`."""
        return visualize.panel(self.image, self.depth, truth, **options)

    def save_depth16(self, path: str | os.PathLike[str]) -> None:
        """Writes a 16-bit PNG of millimetres: 65.535 m and beyond are 65535; 0 is no depth (NaN, negative).

        Raises (as do all the writers): ValueError for another suffix, OSError where it cannot be written.
        A failed write leaves no file, and an older one of the same name whole.
        """
        with _whole_file(path, ".png") as file:
            millimetres = np.nan_to_num(self.depth, nan=0, posinf=np.inf) * np.float32(1000)
            Image.fromarray(np.rint(millimetres.clip(0, 65535)).astype(np.uint16)).save(file, "PNG")

    def save_npy(self, path: str | os.PathLike[str]) -> None:
        """Writes :attr:`depth`, float32 metres, as a NumPy file."""
        with _whole_file(path, ".npy") as file:
            np.save(file, self.depth)

    def save_color(self, path: str | os.PathLike[str], colormap: str = visualize.DEFAULT_COLORMAP) -> None:
        """Writes :meth:`colored` as PNG or JPEG, by the suffix."""
        _save_pixels(path, lambda: self.colored(colormap))

    def save_panel(
        self, path: str | os.PathLike[str], truth: NDArray[Any] | None = None, **options: Any
    ) -> None:
        """Writes :meth:`panel` as PNG or JPEG, by the suffix."""
        _save_pixels(path, lambda: self.panel(truth, **options))

    def save_ply(self, path: str | os.PathLike[str]) -> None:
        """Writes a coloured point cloud, one vertex a pixel; frame: x right, y down, z forward, metres.

        z is :attr:`depth`; x and y follow from it by :attr:`focal_px`.
        """
        focal = self.focal_px or CANONICAL_FOCAL * max(self.depth.shape)
        with _whole_file(path, ".ply") as file:
            visualize.write_ply(file, self.depth, self.image, focal)


def _save_pixels(path: str | os.PathLike[str], draw: Callable[[], NDArray[np.uint8]]) -> None:
    with _whole_file(path, ".png", ".jpg", ".jpeg") as file:
        kind = "PNG" if str(path).lower().endswith(".png") else "JPEG"
        Image.fromarray(draw()).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))


@contextmanager
def _whole_file(path: str | os.PathLike[str], *suffixes: str) -> Iterator[IO[bytes]]:
    """A file that takes its name only once it is written whole."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder")
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            yield file
    except OSError as error:
        raise reworded(error, f"{path}: {error.strerror or error}") from None


class Predictor:
    """Runs a model on pictures.

    Args:
        model: takes (N, 3, H, W) float RGB in [0, 1] and gives (N, 1, H, W) metres; it is moved to the device,
            set to evaluation, and on a CPU laid out as channels_last, which changes no value and saves time.
        device: "cpu", "cuda", "cuda:1", "mps"; by default CUDA where there is one, else the CPU.
        size: (H, W) that the model works at; by default the weights' own, or (480, 640). A picture is
            scaled to that many pixels, keeping its aspect: see :func:`working_size`.
        batch_size: pictures of one working size that go through together; by default 1 on the CPU, else 8.
        flip: average with the mirrored picture's depth: a little more exact, twice the work.

    Raises:
        ValueError: a device that is unknown or not there, a bad size or batch size.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device | None = None,
        size: tuple[int, int] | None = None,
        *,
        batch_size: int | None = None,
        flip: bool = False,
    ) -> None:
        self.device = select_device(device)
        card = getattr(model, "card", None) or {}
        height, width = size or card.get("size") or DEFAULT_SIZE
        self.size = (int(height), int(width))
        if min(self.size) < 32:
            raise ValueError(f"size must be at least 32x32, got {height}x{width}")
        self.batch_size = (1 if self.device.type == "cpu" else 8) if batch_size is None else batch_size
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.flip = flip
        self.model = model.to(self.device).eval()
        if self.device.type == "cpu":
            # oneDNN's faster layout: a third to a half off for depthwise convolutions, a seventh off for a ResNet.
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @overload
    def __call__(
        self, source: str | os.PathLike[str] | Image.Image | NDArray[Any], focal_px: Focal = None
    ) -> Prediction: ...
    @overload
    def __call__(
        self, source: Tensor, focal_px: Focal | Sequence[Focal] = None
    ) -> Prediction | list[Prediction]: ...
    @overload
    def __call__(self, source: Several, focal_px: Focal | Sequence[Focal] = None) -> list[Prediction]: ...
    def __call__(
        self, source: ImageSource | Several, focal_px: Focal | Sequence[Focal] = None
    ) -> Prediction | list[Prediction]:
        """Depth of one picture or of several.

        Args:
            source: whatever :func:`load_image` takes; or several in a list, a tuple, or a tensor
                (N, 3, H, W), whose pictures may differ in size.
            focal_px: focal length in pixels of the picture, by which depth is scaled to metres (see
                :mod:`depthzoo.camera`); "canonical" for that of the weights' camera. If None, what EXIF states,
                in files and PIL images, and the canonical one where it states none. For several pictures one
                for all, or a list of one for each.

        Returns:
            A :class:`Prediction` for one picture, a list of them for several (also where N is 1).

        Raises:
            ValueError: focal_px is not positive, or not one for each picture.
            What :func:`load_image` raises; for the pictures of a list with their index.
        """
        several = isinstance(source, (list, tuple)) or (isinstance(source, Tensor) and source.ndim == 4)
        items: Sequence[Any] = list(source) if several else [source]  # type: ignore[arg-type]
        given = focal_px if isinstance(focal_px, (list, tuple)) else [focal_px] * len(items)
        if len(given) != len(items):
            raise ValueError(f"focal_px: {len(given)} focal lengths for {len(items)} pictures")
        images, focals = [], []
        for index, (item, focal) in enumerate(zip(items, given, strict=True)):
            try:
                image, exif = load_with_focal(item)
                focals.append(_pixels(exif if focal is None else focal, image))
                images.append(image)
            except (OSError, TypeError, ValueError) as error:
                if not several:
                    raise
                raise reworded(error, f"picture {index}: {error}") from None
        predictions = self._predict(images, focals)
        return predictions if several else predictions[0]

    predict = __call__

    def _predict(self, images: list[NDArray[np.uint8]], focals: list[float]) -> list[Prediction]:
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            groups[working_size(image.shape[0], image.shape[1], self.size)].append(index)
        predictions: dict[int, Prediction] = {}
        for size, members in groups.items():
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                depths = self._depth([images[i] for i in batch], size)
                for i, depth in zip(batch, depths, strict=True):
                    # One at a time: at the pictures' own sizes a batch may be too much.
                    own = resize_depth(depth[None], images[i].shape[:2])[0, 0].numpy()
                    scale = np.float32(depth_scale(focals[i], max(own.shape)))
                    predictions[i] = Prediction(own * scale, images[i], focals[i])
        return [predictions[i] for i in range(len(images))]

    @torch.inference_mode()
    def _depth(self, images: list[NDArray[np.uint8]], size: tuple[int, int]) -> Tensor:
        """(N, 1, h, w) float32 on the CPU, at the working size."""
        # Resized as bytes and on the CPU: a large picture never becomes a float tensor.
        small = [resize_image(torch.from_numpy(image).permute(2, 0, 1)[None], size) for image in images]
        batch = torch.cat(small).to(self.device).float() / 255
        depth: Tensor = self.model(batch)
        if self.flip:
            depth = (depth + self.model(batch.flip(-1)).flip(-1)) / 2
        return depth.float().cpu()


def predictor(
    name: str | None = None,
    weights: Any = "DEFAULT",
    device: str | torch.device | None = None,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    flip: bool = False,
    **options: Any,
) -> Predictor:
    """A trained model with everything around it: give it a picture, get metres.

    >>> predict = torch.hub.load("org/depthzoo", "predictor", trust_repo=True)
    >>> predict("photo.jpg").depth       # (H, W) float32, metres

    Args:
        name: of ``depthzoo.list_models()``; not called ``model``, which torch.hub.load takes for itself. If None,
            the model that the weights file is for, and without one unet_resnet50.
        weights: "DEFAULT", a tag ("nyu"), a path to a .safetensors file or a run's folder, or None (random).
        device, size, batch_size, flip: see :class:`Predictor`.
        **options: the model builder's own.

    Raises:
        ValueError: unknown model or weights, with the closest names; and what :class:`Predictor` raises.
    """
    device = select_device(device)
    if name is None:
        own = zoo_weights.is_path(DEFAULT_MODEL, weights)
        name = zoo_weights.model_of(weights) if own else DEFAULT_MODEL
    return Predictor(
        create_model(name, weights=weights, **options), device, size, batch_size=batch_size, flip=flip
    )


def select_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for; by default CUDA where there is one, else the CPU.

    Raises:
        ValueError: it is unknown, or not on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: there are 'cpu', 'cuda', 'cuda:N' and 'mps'") from None
    missing = {
        "cuda": not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count(),
        "mps": not torch.backends.mps.is_available(),
    }
    if missing.get(chosen.type, chosen.type != "cpu"):
        raise ValueError(f"device {str(device)!r} is not there: PyTorch sees no such device on this machine")
    return chosen


def _pixels(focal: Focal, image: NDArray[np.uint8]) -> float:
    if focal is None or focal == "canonical":
        return CANONICAL_FOCAL * max(image.shape[:2])
    if not isinstance(focal, (int, float, np.number)) or not 0 < focal < float("inf"):
        raise ValueError(f"focal_px must be a positive number of pixels, 'canonical' or None, not {focal!r}")
    return float(focal)


def working_size(height: int, width: int, size: tuple[int, int], multiple: int = 32) -> tuple[int, int]:
    """The size a picture is fed at: about as many pixels as ``size`` (H, W), in the picture's own aspect.

    Each side is rounded to a multiple, and is at least one of it; an aspect beyond what those pixels
    allow (``H * W / multiple**2``, which is 300 for 480x640) is squeezed.
    """
    area = size[0] * size[1]
    longest = max(multiple, area // multiple // multiple * multiple)
    scale = math.sqrt(area / (height * width))

    def fit(side: int) -> int:
        return min(longest, max(multiple, round(side * scale / multiple) * multiple))

    return fit(height), fit(width)


def resize_image(image: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, antialiased; (N, 3, H, W) uint8 (on the CPU) or float to ``size`` (h, w), same type."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


def resize_depth(depth: Tensor, size: Sequence[int]) -> Tensor:
    """Plain bilinear; (N, 1, h, w) float to ``size`` (H, W)."""
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    return F.interpolate(depth, size=tuple(size), mode="bilinear", align_corners=False)
