"""From an image to depth in metres at the image's own size, and the files that hold it."""

import io
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
from depthzoo.camera import CANONICAL_FOCAL, depth_scale, focal_length
from depthzoo.errors import reworded
from depthzoo.files import atomic_write
from depthzoo.images import ImageSource, Pixels, load_with_focal
from depthzoo.models import load

DEFAULT_SIZE = (480, 640)
DEFAULT_MODEL = "unet_mobilenet_v3"
# Pixels, that of the canonical camera, or None: EXIF's, and the canonical one where EXIF states none.
Focal: TypeAlias = float | Literal["canonical"] | None
FocalSource: TypeAlias = Literal["given", "EXIF", "canonical"]
GLB_POINTS = 512  # along the longer side by default


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Depth of one image. The ``save`` methods create the folder, and write a whole file or none.

    Attributes:
        depth: (H, W) float32, metres along the camera's axis.
        image: (H, W, 3) uint8 RGB, the image upright and before resizing.
        focal_px: focal length in pixels that ``depth`` is for; by default that of the canonical camera (see
            :mod:`depthzoo.camera`).
        focal_source: where it comes from: "given", "EXIF" or "canonical".
    """

    depth: NDArray[np.float32]
    image: Pixels
    focal_px: float = 0  # the canonical camera's, set in __post_init__
    focal_source: FocalSource = "given"

    def __post_init__(self) -> None:
        if not self.focal_px:
            object.__setattr__(self, "focal_px", CANONICAL_FOCAL * max(self.depth.shape))
            object.__setattr__(self, "focal_source", "canonical")

    @property
    def tensor(self) -> Tensor:
        """:attr:`depth` as a tensor (1, H, W), float32 on the CPU, which shares its memory."""
        return torch.from_numpy(self.depth)[None]

    @property
    def near(self) -> float:
        """The smallest depth in metres; NaN if no depth is finite and positive."""
        return self._over_valid(np.min)

    @property
    def median(self) -> float:
        """The median depth in metres; NaN if no depth is finite and positive."""
        return self._over_valid(np.median)

    @property
    def far(self) -> float:
        """The largest depth in metres; NaN if no depth is finite and positive."""
        return self._over_valid(np.max)

    def _over_valid(self, function: Callable[..., Any]) -> float:
        values = self.depth[visualize.valid_mask(self.depth)]
        return float(function(values)) if values.size else math.nan

    def __repr__(self) -> str:
        height, width = self.depth.shape
        return (
            f"Prediction({width}x{height}, near {self.near:.2f} m, median {self.median:.2f} m, far {self.far:.2f} m, "
            f"focal length {self.focal_px:.0f} px ({self.focal_source}))"
        )

    def _repr_png_(self) -> bytes:
        """Shown by notebooks: :meth:`panel`."""
        buffer = io.BytesIO()
        Image.fromarray(self.panel()).save(buffer, "PNG")
        return buffer.getvalue()

    def to_pil(
        self,
        colormap: str = visualize.DEFAULT_COLORMAP,
        near: float | None = None,
        far: float | None = None,
        *,
        legend: bool = False,
    ) -> Image.Image:
        """Return the depth as an RGB image in color; see :func:`depthzoo.visualize.colorize`."""
        return Image.fromarray(visualize.colorize(self.depth, colormap, near, far, legend=legend))

    def panel(self, target: NDArray[Any] | None = None, **options: Any) -> Pixels:
        """Return image | depth (| target | error), uint8 RGB; see :func:`depthzoo.visualize.panel`."""
        return visualize.panel(self.image, self.depth, target, **options)

    def points(
        self, stride: int = 1, max_edge: float | None = visualize.MAX_EDGE, up: visualize.Up = "-y"
    ) -> tuple[NDArray[np.float32], Pixels]:
        """Return the point cloud: (N, 3) float32 metres, and the color of each point, (N, 3) uint8 RGB.

        The points are in the order of the pixels. Those without a depth, and those at depth edges, are left out.

        Args:
            stride: take every ``stride``-th pixel of every ``stride``-th row.
            max_edge: leave out pixels next to which the depth changes by more than this many metres per metre
                sideways. None keeps them.
            up: "-y" for x right, y down, z forward, as in OpenCV; "y" for x right, y up, z backward, as in most
                viewers.

        Raises:
            ValueError: for a stride below 1, a max_edge that is not positive, or another ``up``.
        """
        xyz, keep = visualize.point_grid(self.depth, self.focal_px, stride, max_edge, up)
        return xyz[keep], self.image[::stride, ::stride][keep]

    def save_depth16(self, path: str | os.PathLike[str]) -> None:
        """Write a 16-bit PNG of millimetres, at most 65535; 0 is no depth (NaN or negative).

        For programs: viewers show rooms nearly black, since 65535 is white.

        Raises:
            ValueError: (as all ``save`` methods) if ``path`` has another suffix.
            OSError: if the file cannot be written.
        """
        millimetres = np.nan_to_num(self.depth, nan=0, posinf=np.inf) * np.float32(1000)
        with _create(path, ".png") as file:
            Image.fromarray(np.rint(millimetres.clip(0, 65535)).astype(np.uint16)).save(file, "PNG")

    def save_npy(self, path: str | os.PathLike[str]) -> None:
        """Write :attr:`depth`, float32 metres, as a NumPy file."""
        with _create(path, ".npy") as file:
            np.save(file, self.depth)

    def save_color(
        self,
        path: str | os.PathLike[str],
        colormap: str = visualize.DEFAULT_COLORMAP,
        near: float | None = None,
        far: float | None = None,
        *,
        legend: bool = False,
    ) -> None:
        """Write :meth:`to_pil` as PNG or JPEG, by the suffix."""
        _save_image(path, self.to_pil(colormap, near, far, legend=legend))

    def save_panel(
        self, path: str | os.PathLike[str], target: NDArray[Any] | None = None, **options: Any
    ) -> None:
        """Write :meth:`panel` as PNG or JPEG, by the suffix."""
        _save_image(path, Image.fromarray(self.panel(target, **options)))

    def save_ply(
        self,
        path: str | os.PathLike[str],
        stride: int = 1,
        max_edge: float | None = visualize.MAX_EDGE,
        up: visualize.Up = "-y",
    ) -> None:
        """Write the :meth:`points` as a binary PLY file, 15 bytes each."""
        points, colors = self.points(stride, max_edge, up)
        axes = "x right, y down, z forward" if up == "-y" else "x right, y up, z backward"
        camera = (
            f"focal length {self.focal_px:.4f} px, image {self.depth.shape[1]} x {self.depth.shape[0]} px"
        )
        with _create(path, ".ply") as file:
            visualize.write_ply(file, points, colors, [f"metres; {axes}", camera])

    def save_glb(
        self,
        path: str | os.PathLike[str],
        stride: int | None = None,
        max_edge: float | None = visualize.MAX_EDGE,
    ) -> None:
        """Write the surface through the :meth:`points` as binary glTF, y up, with the image as its texture.

        Browsers, phones and 3-D programs open it.

        Args:
            path: ends in ".glb".
            stride: as for :meth:`points`; by default such that the longer side has at most 512.
            max_edge: as for :meth:`points`.

        Raises:
            ImportError: if trimesh is not installed.
            ValueError: if the depth map has no surface, or as :meth:`points`.
        """
        if stride is None:
            stride = math.ceil(max(self.depth.shape) / GLB_POINTS)
        points, keep = visualize.point_grid(self.depth, self.focal_px, stride, max_edge, "y")
        with _create(path, ".glb") as file:
            file.write(visualize.to_glb(points, keep, self.image, stride))


def _save_image(path: str | os.PathLike[str], image: Image.Image) -> None:
    with _create(path, ".png", ".jpg", ".jpeg") as file:
        if str(path).lower().endswith(".png"):
            image.save(file, "PNG")
        else:
            image.save(file, "JPEG", quality=95)


@contextmanager
def _create(path: str | os.PathLike[str], *suffixes: str) -> Iterator[IO[bytes]]:
    """Yield a file that is renamed to ``path`` once it is written."""
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the name must end in {' or '.join(suffixes)}")
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            yield file
    except OSError as error:
        raise reworded(error, f"{path}: {error.strerror or error}") from None


class Predictor:
    """A model with the preprocessing around it.

    Args:
        model: a name, a .safetensors file or a run folder, as :func:`depthzoo.load` takes them; or a module that takes
            (N, 3, H, W) float RGB in [0, 1] and returns (N, 1, H, W) metres. It is moved to the device, set to
            evaluation mode and, on a CPU, converted to channels_last, which is faster and changes no value.
        device: "cpu", "cuda", "cuda:1" or "mps"; by default CUDA if there is a GPU, else the CPU.
        size: (H, W) whose number of pixels each image is resized to, in its own aspect (see :func:`working_size`); by
            default that of the weights, or (480, 640).
        batch_size: images of one working size that are predicted together; by default 1 on the CPU, else 8.
        flip: average with the prediction for the mirrored image: a little more accurate, half as fast.

    Raises:
        ValueError: for an unknown or missing device, a bad size or batch size, or a model that cannot be loaded.
    """

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str],
        device: str | torch.device | None = None,
        size: tuple[int, int] | None = None,
        *,
        batch_size: int | None = None,
        flip: bool = False,
    ) -> None:
        self.device = select_device(device)
        model = model if isinstance(model, nn.Module) else load(model)
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
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @overload
    def __call__(
        self,
        source: list[Any] | tuple[Any, ...],
        focal_px: Focal | Sequence[Focal] = None,
        *,
        fov: float | None = None,
    ) -> list[Prediction]: ...
    @overload
    def __call__(
        self, source: ImageSource, focal_px: Focal | Sequence[Focal] = None, *, fov: float | None = None
    ) -> Prediction: ...
    def __call__(
        self,
        source: ImageSource | list[Any] | tuple[Any, ...],
        focal_px: Focal | Sequence[Focal] = None,
        *,
        fov: float | None = None,
    ) -> Prediction | list[Prediction]:
        """Predict the depth of one image or of several.

        Args:
            source: an image as :func:`depthzoo.load_image` takes it; or several, of any sizes, in a list, a tuple, or a
                tensor (N, 3, H, W).
            focal_px: focal length in pixels, by which depth is scaled to metres (see :mod:`depthzoo.camera`), or
                "canonical" for that of the weights' camera. If None, what EXIF states in files and PIL images, else the
                canonical one. For several images one for all, or a list.
            fov: horizontal field of view in degrees, instead of ``focal_px``.

        Returns:
            A :class:`Prediction` for one image, a list of them for several (also if N is 1).

        Raises:
            ValueError: if focal_px is not positive, or not one for each image, or fov is not between 1 and 179, or both
                are given; or if the model returns anything but a tensor (N, 1, h, w).
            What :func:`depthzoo.load_image` raises; for several images with the index of the image.
        """
        if fov is not None and focal_px is not None:
            raise ValueError("focal_px and fov are both given, expected one of them")
        several = isinstance(source, (list, tuple)) or (isinstance(source, Tensor) and source.ndim == 4)
        items: Sequence[Any] = list(source) if several else [source]  # type: ignore[arg-type]
        given = focal_px if isinstance(focal_px, (list, tuple)) else [focal_px] * len(items)
        if len(given) != len(items):
            raise ValueError(f"focal_px: {len(given)} focal lengths for {len(items)} images")
        images, focals = [], []
        for index, (item, focal) in enumerate(zip(items, given, strict=True)):
            try:
                image, exif = load_with_focal(item)
                focal = focal if fov is None else focal_length(image.shape[1], fov)
                focals.append(resolve_focal(focal, exif, image.shape[:2]))
                images.append(image)
            except (OSError, TypeError, ValueError) as error:
                if not several:
                    raise
                raise reworded(error, f"image {index}: {error}") from None
        predictions = self._predict(images, focals)
        return predictions if several else predictions[0]

    def _predict(self, images: list[Pixels], focals: list[tuple[float, FocalSource]]) -> list[Prediction]:
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            groups[working_size(image.shape[0], image.shape[1], self.size)].append(index)
        predictions: dict[int, Prediction] = {}
        for size, members in groups.items():
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                depths = self._depth([images[i] for i in batch], size)
                for i, depth in zip(batch, depths, strict=True):
                    # One at a time: a batch at the images' own sizes may not fit in memory.
                    own = resize_depth(depth[None], images[i].shape[:2])[0, 0].numpy()
                    scale = np.float32(depth_scale(focals[i][0], max(own.shape)))
                    predictions[i] = Prediction(own * scale, images[i], *focals[i])
        return [predictions[i] for i in range(len(images))]

    @torch.inference_mode()
    def _depth(self, images: list[Pixels], size: tuple[int, int]) -> Tensor:
        """(N, 1, h, w) float32 on the CPU, at the working size."""
        # Resized as uint8 on the CPU, so that a large image never becomes a float tensor.
        small = [resize_image(torch.from_numpy(image).permute(2, 0, 1)[None], size) for image in images]
        batch = torch.cat(small).to(self.device).float() / 255
        depth = self._forward(batch)
        if self.flip:
            depth = (depth + self._forward(batch.flip(-1)).flip(-1)) / 2
        return depth.float().cpu()

    def _forward(self, batch: Tensor) -> Tensor:
        depth = self.model(batch)
        shape = tuple(depth.shape) if isinstance(depth, Tensor) else type(depth).__name__
        if len(shape) != 4 or shape[:2] != (len(batch), 1):
            raise ValueError(
                f"the model returned {shape}, expected a tensor ({len(batch)}, 1, height, width)"
            )
        return depth  # type: ignore[no-any-return]


def predictor(
    name: str | None = None,
    weights: str | os.PathLike[str] | None = "DEFAULT",
    device: str | torch.device | None = None,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    flip: bool = False,
    **options: Any,
) -> Predictor:
    """A trained model with the preprocessing around it: give it an image, get metres.

    >>> predict = torch.hub.load("org/depthzoo", "predictor", trust_repo=True)
    >>> predict("photo.jpg").depth       # (H, W) float32, metres

    Args:
        name: of a model (see ``depthzoo.list_models()``), a .safetensors file or a run folder; if None, ``weights`` if
            they are a file or a folder, else unet_mobilenet_v3. Not called ``model``, which is a parameter of
            torch.hub.load.
        weights: "DEFAULT", a tag ("nyu"), a path to a .safetensors file or a run folder, or None (random).
        device, size, batch_size, flip: see :class:`Predictor`.
        **options: of the model's builder.

    Raises:
        ValueError: for an unknown model or unknown weights (the closest are suggested), or as :class:`Predictor`.
    """
    device = select_device(device)
    source: str | os.PathLike[str] = DEFAULT_MODEL if name is None else name
    if name is None and weights is not None and zoo_weights.is_path(DEFAULT_MODEL, weights):
        source = weights
    elif weights != "DEFAULT":
        options["weights"] = weights
    return Predictor(load(source, **options), device, size, batch_size=batch_size, flip=flip)


def select_device(device: str | torch.device | None = None) -> torch.device:
    """Return the given device, or by default CUDA if there is a GPU, else the CPU.

    Raises:
        ValueError: for an unknown device, or one that this machine does not have.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: there are 'cpu', 'cuda', 'cuda:N' and 'mps'") from None
    if chosen.type == "cuda":
        available = torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()
    elif chosen.type == "mps":
        available = torch.backends.mps.is_available()
    else:
        available = chosen.type == "cpu"
    if not available:
        raise ValueError(f"device {str(device)!r} is not available: PyTorch finds none on this machine")
    return chosen


def resolve_focal(focal: Focal, exif: float | None, shape: Sequence[int]) -> tuple[float, FocalSource]:
    """Return the focal length of an image in pixels, and where it comes from.

    Args:
        focal: as given by the user: pixels, "canonical", or None.
        exif: what EXIF states, in pixels, or None; used if ``focal`` is None.
        shape: (H, W) of the image.

    Raises:
        ValueError: if ``focal`` is not positive and finite.
    """
    if focal == "canonical" or (focal is None and exif is None):
        return CANONICAL_FOCAL * max(shape), "canonical"
    if focal is None and exif is not None:
        return exif, "EXIF"
    if not isinstance(focal, (int, float, np.number)) or not 0 < focal < float("inf"):
        raise ValueError(f"focal_px must be a positive number of pixels, 'canonical' or None, not {focal!r}")
    return float(focal), "given"


def working_size(height: int, width: int, size: tuple[int, int], multiple: int = 32) -> tuple[int, int]:
    """Return the size (H, W) at which an image is predicted: about as many pixels as ``size``, in its own aspect.

    Each side is a multiple of ``multiple``. An aspect that those pixels do not allow is squeezed.
    """
    area = size[0] * size[1]
    longest = max(multiple, area // multiple // multiple * multiple)
    scale = math.sqrt(area / (height * width))

    def fit(side: int) -> int:
        return min(longest, max(multiple, round(side * scale / multiple) * multiple))

    return fit(height), fit(width)


def resize_image(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (N, 3, H, W), uint8 (on the CPU) or float, to ``size`` (h, w): bilinear, antialiased, same dtype."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


def resize_depth(depth: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (N, 1, h, w) float to ``size`` (H, W): bilinear."""
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    return F.interpolate(depth, size=tuple(size), mode="bilinear", align_corners=False)
