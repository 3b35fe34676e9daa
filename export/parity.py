"""How far an exported file is from the PyTorch model it was made of."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from depthzoo.data.rooms import render
from depthzoo.models import DepthModel

if TYPE_CHECKING:
    from export.run_onnx import OnnxDepth

# Largest difference in metres for trained weights, by precision.
TRAINED_BOUND = {"fp32": 1e-4}
# With random weights the depth is nearly flat, so a wrong graph would differ by millimetres only; there the
# bound is this share of the depth's own spread (but no less than what float32 rounds at ten metres).
RANDOM_SHARE = {"fp32": 0.01}
ROUNDING = 1e-5


@dataclass(frozen=True)
class Parity:
    """Differences in metres between an exported file on onnxruntime's CPU provider and eager PyTorch.

    Attributes:
        max, mean: the largest and the mean absolute difference over all pixels of all shapes.
        bound: what ``max`` may be.
        against: what the bound follows from.
        shapes: the (N, 3, H, W) inputs compared, none of which was traced.
    """

    max: float
    mean: float
    bound: float
    against: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def holds(self) -> bool:
        # A NaN is no agreement.
        return self.max <= self.bound

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, (n, h, w))) for n, _, h, w in self.shapes)
        figures = f"max {self.max:.1e} m, mean {self.mean:.1e} m (bound {self.bound:.1e} m: {self.against})"
        return f"{figures}, at {shapes}"

    def json(self) -> str:
        figures = {key: float(f"{getattr(self, key):.2e}") for key in ("max", "mean", "bound")}
        return json.dumps({**asdict(self), **figures, "unit": "m", "provider": "cpu"})


def shapes_to_compare(size: tuple[int, int] | None, traced_batch: int) -> list[tuple[int, int, int, int]]:
    """Three inputs that differ from the traced one; of a fixed size only the batch can differ."""
    if size is None:
        return [(1, 3, 192, 256), (2, 3, 96, 160), (3, 3, 32, 64)]
    return [(n, 3, *size) for n in (1, 1, traced_batch + 1)]


def pictures(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Synthetic rooms as a batch (N, 3, H, W) in [0, 1]; rendered small, since only their variety matters."""
    count, _, height, width = shape
    rooms = [Image.fromarray(render(seed + index, size=(192, 256)).image) for index in range(count)]
    stack = np.stack([np.asarray(room.resize((width, height))) for room in rooms])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous().float() / 255


def compare(
    model: DepthModel,
    session: "OnnxDepth",
    shapes: Sequence[tuple[int, int, int, int]],
    precision: str = "fp32",
) -> Parity:
    """Runs both on the same synthetic pictures; ``model`` is on the CPU and in eval mode."""
    differences, depths = [], []
    for index, shape in enumerate(shapes):
        images = pictures(shape, seed=100 * index)
        with torch.inference_mode():
            expected = model(images)
        assert isinstance(expected, torch.Tensor)
        got = session.run(images.numpy())
        if got.shape != tuple(expected.shape):
            raise ValueError(
                f"the ONNX file gives {got.shape} for {tuple(shape)}, PyTorch {tuple(expected.shape)}"
            )
        differences.append(np.abs(got - expected.numpy()).ravel())
        depths.append(expected.numpy().ravel())
    difference, depth = np.concatenate(differences), np.concatenate(depths)
    if model.card is None:
        bound = max(RANDOM_SHARE[precision] * float(np.ptp(depth)), ROUNDING)
        against = f"{RANDOM_SHARE[precision]:.0%} of the depth's spread, random weights"
    else:
        bound, against = TRAINED_BOUND[precision], "trained weights"
    return Parity(float(difference.max()), float(difference.mean()), bound, against, tuple(shapes))
