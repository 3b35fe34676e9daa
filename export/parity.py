"""How far an exported file is from the PyTorch model it was made of."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from depthzoo.models import DepthModel
from depthzoo.predictor import resize_depth, resize_image
from depthzoo.predictor import working_size as fit
from export.graph import TRACED_SHAPE
from export.pictures import Pictures

Run = Callable[[np.ndarray], np.ndarray]

# What the differences may be with trained weights, in metres, by precision. INT8's own test is its accuracy.
TRAINED: dict[str, dict[str, float]] = {
    "fp32": {"max": 1e-4},
    "fp16": {"mean": 2e-3, "most": 2e-2, "max": 0.1},
    "int8": {"mean": 0.1, "most": 1.0},
}
# Two ways of resizing bytes may round to neighbouring grey levels.
TRAINED_UINT8 = TRAINED | {"fp32": {"mean": 1e-3, "max": 2e-2}}
# With random weights the depth is nearly flat, and a wrong graph would differ by millimetres only: there the
# bound is a share of the spread of the logits. The six models need at most a tenth of it (INT8: a fifth).
RANDOM: dict[str, dict[str, float]] = {
    "fp32": {"share_max": 2e-3},
    "fp16": {"share_mean": 2e-3, "share_max": 0.02},
    "int8": {"share_mean": 0.05},
}
RANDOM_UINT8 = RANDOM | {"fp32": {"share_mean": 2e-3, "share_max": 0.02}}
LABELS = {"most": "99.9%", "share_max": "logits max", "share_mean": "logits mean"}


@dataclass(frozen=True)
class Parity:
    """Differences between an exported file on onnxruntime's CPU provider and eager PyTorch in float32.

    Attributes:
        max, mean, most: metres: the largest and the mean difference over all pixels of all shapes, and what
            99.9% of them stay within.
        share_max, share_mean: the largest and the mean difference of the logits as a share of their spread.
        bound: what some of these may be.
        against: what the bound follows from.
        shapes: the inputs compared, none of which was traced.
        pictures: what was on them.
    """

    max: float
    mean: float
    most: float
    share_max: float
    share_mean: float
    bound: Mapping[str, float]
    against: str
    shapes: tuple[tuple[int, ...], ...]
    pictures: str

    @property
    def holds(self) -> bool:
        # A NaN is no agreement.
        return all(getattr(self, name) <= most for name, most in self.bound.items())

    def __str__(self) -> str:
        shown = ("max", "mean", *(name for name in self.bound if name not in ("max", "mean")))
        figures = ", ".join(self._figure(name, getattr(self, name)) for name in shown)
        bounds = ", ".join(self._figure(name, most) for name, most in self.bound.items())
        sizes = ", ".join("x".join(map(str, (shape[0], *sides(shape)))) for shape in self.shapes)
        return f"{figures} (bound: {bounds}; {self.against}), at {sizes}, on {self.pictures}"

    @staticmethod
    def _figure(name: str, value: float) -> str:
        text = f"{value:.1%} of the spread" if name.startswith("share") else f"{value:.1e} m"
        return f"{LABELS.get(name, name)} {text}"

    def facts(self) -> dict[str, Any]:
        """JSON-able, rounded to three digits."""
        names = ("max", "mean", "most") + (
            () if self.against == "trained weights" else ("share_max", "share_mean")
        )
        figures = {name: float(f"{getattr(self, name):.2e}") for name in names}
        about = {"against": self.against, "shapes": self.shapes, "pictures": self.pictures}
        return {**figures, "unit": "m", "bound": dict(self.bound), **about, "provider": "cpu"}

    def json(self) -> str:
        return json.dumps(self.facts())


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """(H, W) of (N, 3, H, W), or of the (N, H, W, 3) of bytes."""
    return (shape[1], shape[2]) if shape[-1] == 3 else (shape[2], shape[3])


def shapes_to_compare(size: tuple[int, int] | None, uint8: bool = False) -> tuple[tuple[int, ...], ...]:
    """Three inputs that differ from the traced one; of a fixed size only the batch can differ."""
    if uint8:
        return (1, 240, 320, 3), (2, 97, 131, 3), (3, 64, 33, 3)
    if size is None:
        return (1, 3, 192, 256), (2, 3, 96, 160), (3, 3, 32, 64)
    return tuple((count, 3, *size) for count in (1, 1, TRACED_SHAPE[0] + 1))


@dataclass(frozen=True)
class Reference:
    """What a file is compared with.

    Attributes:
        run: from what the file takes to (N, 1, H, W) metres.
        trained: it has trained weights.
        depth_range: metres, the ends of a head with a sigmoid; None for a linear head.
    """

    run: Run
    trained: bool
    depth_range: tuple[float, float] | None

    def logit(self, depth: np.ndarray) -> np.ndarray:
        """The head's logits, out of its depth.

        In float64 this is exact to the depth's own rounding: a random head is far from the ends of its range,
        where a float32 depth would hold the logit no longer.
        """
        if self.depth_range is None:
            return depth.astype(np.float64)
        low, high = self.depth_range
        share = ((depth.astype(np.float64) - low) / (high - low)).clip(1e-7, 1 - 1e-7)
        return np.log(share / (1 - share))


def eager(model: DepthModel, size: tuple[int, int], exact: bool = False) -> Reference:
    """Eager PyTorch, on the CPU, in float32 and eval mode.

    Args:
        model: of the zoo.
        size: (H, W) that pictures in bytes, uint8 (N, H, W, 3), are resized to: to about its pixels.
        exact: ... to ``size`` itself.
    """

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(images)
        if tensor.dtype != torch.uint8:
            return predict(tensor).numpy()
        planes = tensor.permute(0, 3, 1, 2).contiguous()
        fed = size if exact else fit(images.shape[1], images.shape[2], size)
        return resize_depth(predict(resize_image(planes, fed).float() / 255), planes.shape[-2:]).numpy()

    def predict(tensor: torch.Tensor) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that the weights are not for: rounding is compared
            depth = model(tensor)
        assert isinstance(depth, torch.Tensor)
        return depth

    bounded = (model.min_depth, model.max_depth) if model.head.activation == "sigmoid" else None
    return Reference(run, model.card is not None, bounded)


def compare(
    reference: Reference,
    runs: Sequence[Run],
    shapes: Sequence[tuple[int, ...]],
    pictures: Pictures,
    precision: str = "fp32",
) -> Parity:
    """Runs all on the same pictures and keeps the worst of each figure.

    Args:
        reference: what to compare with.
        runs: the exported file, in one way or in several.
        shapes: (N, 3, H, W) for float32 input, (N, H, W, 3) for uint8.
        pictures: what to show them.
        precision: "fp32", "fp16" or "int8": says what the differences may be.

    Raises:
        ValueError: the file gives another shape than the reference.
    """
    metres: list[list[np.ndarray]] = [[] for _ in runs]
    logits: list[list[np.ndarray]] = [[] for _ in runs]
    expected_logits = []
    uint8 = shapes[0][-1] == 3
    for number, shape in enumerate(shapes):
        images = pictures.batch(shape[0], sides(shape), seed=100 * number)
        if not uint8:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / 255
        expected = reference.run(images)
        expected_logits.append(reference.logit(expected).ravel())
        for index, run in enumerate(runs):
            got = run(images)
            if got.shape != expected.shape:
                raise ValueError(f"the file gives {got.shape} for {images.shape}, expected {expected.shape}")
            metres[index].append(np.abs(got - expected).ravel())
            logits[index].append(np.abs(reference.logit(got).ravel() - expected_logits[-1]))
    spread = max(float(np.ptp(np.concatenate(expected_logits))), 1e-6)
    worst = np.zeros(5)
    for far, apart in zip(map(np.concatenate, metres), map(np.concatenate, logits), strict=True):
        shares = apart.max() / spread, apart.mean() / spread
        worst = np.maximum(worst, (far.max(), far.mean(), np.percentile(far, 99.9), *shares))  # a NaN stays
    if reference.trained:
        bound, against = (TRAINED_UINT8 if uint8 else TRAINED)[precision], "trained weights"
    else:
        bound, against = (RANDOM_UINT8 if uint8 else RANDOM)[precision], "random weights"
    names = ("max", "mean", "most", "share_max", "share_mean")
    figures = dict(zip(names, map(float, worst), strict=True))
    return Parity(**figures, bound=bound, against=against, shapes=tuple(shapes), pictures=str(pictures))
