"""Compare an exported file with the PyTorch model it was made from."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from depthzoo.models import DepthModel
from depthzoo.prediction import resize_depth, resize_image, working_size
from export.graph import TRACED_SHAPE

FIGURES = ("max", "mean", "p999", "max_rel", "mean_rel")
Run = Callable[[np.ndarray], np.ndarray]

# Bounds for trained weights, in metres. INT8 is judged by its accuracy (benchmarks.accuracy); these catch failures.
TRAINED: dict[str, dict[str, float]] = {
    "fp32": {"max": 1e-4},
    "fp16": {"mean": 2e-3, "p999": 2e-2, "max": 0.1},
    "int8": {"mean": 0.1, "p999": 1.0},
}
# With random weights depth is nearly flat: a wrong graph would differ by millimetres only. Bounds are fractions of
# the range of the depth. The six models need at most a tenth of them (INT8: a fifth).
RANDOM: dict[str, dict[str, float]] = {
    "fp32": {"max_rel": 2e-3},
    "fp16": {"mean_rel": 2e-3, "max_rel": 0.02},
    "int8": {"mean_rel": 0.05},
}
# uint8 input: two ways to resize may round to neighboring grey levels.
UINT8_FP32 = {True: {"mean": 1e-3, "max": 2e-2}, False: {"mean_rel": 2e-3, "max_rel": 0.02}}


@dataclass(frozen=True)
class Parity:
    """Differences between an exported file in onnxruntime and eager PyTorch in float32.

    Attributes:
        max, mean, p999: largest, mean and 99.9th percentile difference over all pixels, metres.
        max_rel, mean_rel: the same as fractions of the range of the reference depth.
        bound: the largest allowed value of some of these.
        shapes: the inputs compared. None of them was traced.
    """

    max: float
    mean: float
    p999: float
    max_rel: float
    mean_rel: float
    bound: Mapping[str, float]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def holds(self) -> bool:
        """Whether every bounded figure is within its bound. NaN is not."""
        return all(getattr(self, name) <= limit for name, limit in self.bound.items())

    def __str__(self) -> str:
        figures = ", ".join(
            f"{name} {getattr(self, name):.1e} (at most {limit:.0e})" for name, limit in self.bound.items()
        )
        unit = "m" if self.bound.keys() <= {"max", "mean", "p999"} else "of the range of the depth"
        return f"{figures}, {unit}"

    def metadata(self) -> dict[str, Any]:
        """Return the figures for the metadata of the file, rounded to three digits."""
        figures = {name: float(f"{getattr(self, name):.2e}") for name in FIGURES}
        return {**figures, "unit": "m", "bound": dict(self.bound), "shapes": self.shapes}


def compared_shapes(size: tuple[int, int] | None, uint8: bool = False) -> tuple[tuple[int, ...], ...]:
    """Return three input shapes that differ from the traced one; with a fixed size only in the batch."""
    if uint8:
        return (1, 240, 320, 3), (2, 97, 131, 3), (3, 64, 33, 3)
    if size is None:
        return (1, 3, 192, 256), (2, 3, 96, 160), (3, 3, 32, 64)
    return tuple((count, 3, *size) for count in (1, TRACED_SHAPE[0] + 1))


def eager(model: DepthModel, size: tuple[int, int], exact: bool = False) -> Run:
    """Return a function that runs ``model`` in eager PyTorch on the input of an exported file.

    Args:
        model: on the CPU, in float32 and eval mode.
        size: working size (H, W) that uint8 (N, H, W, 3) input is resized to.
        exact: resize to ``size`` itself; else keep the aspect ratio and about its area.
    """

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(images)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes that the weights were not trained at
            if tensor.dtype != torch.uint8:
                return np.asarray(model(tensor).numpy())
            planes = tensor.permute(0, 3, 1, 2).contiguous()
            fed = size if exact else working_size(images.shape[1], images.shape[2], size)
            depth = model(resize_image(planes, fed).float() / 255)
        return np.asarray(resize_depth(depth, planes.shape[-2:]).numpy())

    return run


def compare(
    reference: Run,
    exported: Sequence[Run],
    shapes: Sequence[tuple[int, ...]],
    pictures: Sequence[np.ndarray],
    precision: str = "fp32",
    trained: bool = True,
) -> Parity:
    """Run the reference and the exported file on the same pictures.

    Args:
        reference: from :func:`eager`.
        exported: the file, run in one or several ways; the worst of each figure counts.
        shapes: (N, 3, H, W) for float32 input, (N, H, W, 3) for uint8.
        pictures: uint8 (H, W, 3), resized to ``shapes``, in turn.
        precision: "fp32", "fp16" or "int8": selects the bounds.
        trained: whether the model has trained weights: selects the bounds.

    Raises:
        ValueError: the file returns another shape than the reference.
    """
    uint8 = shapes[0][-1] == 3
    differences: list[list[np.ndarray]] = [[] for _ in exported]
    expected_depths = []
    for shape in shapes:
        height, width = shape[1:3] if uint8 else shape[2:]
        resized = [
            Image.fromarray(pictures[i % len(pictures)]).resize((width, height)) for i in range(shape[0])
        ]
        images = np.stack([np.asarray(picture) for picture in resized])
        if not uint8:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / 255
        expected = reference(images)
        expected_depths.append(expected.ravel())
        for run, found in zip(exported, differences, strict=True):
            depth = run(images)
            if depth.shape != expected.shape:
                raise ValueError(
                    f"the file returns {depth.shape} for {images.shape}, expected {expected.shape}"
                )
            found.append(np.abs(depth - expected).ravel())
    span = max(float(np.ptp(np.concatenate(expected_depths))), 1e-6)
    worst = np.zeros(len(FIGURES))
    for each in map(np.concatenate, differences):
        figures = (each.max(), each.mean(), np.percentile(each, 99.9), each.max() / span, each.mean() / span)
        worst = np.maximum(worst, figures)  # keeps NaN
    bound = (TRAINED if trained else RANDOM)[precision]
    if uint8 and precision == "fp32":
        bound = UINT8_FP32[trained]
    named = dict(zip(FIGURES, map(float, worst), strict=True))
    return Parity(**named, bound=bound, shapes=tuple(shapes))
