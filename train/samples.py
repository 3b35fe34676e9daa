"""Frames to look at: picture | truth | prediction | error, with what they cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from depthzoo.metrics import METRICS, DepthMetrics
from depthzoo.visualize import (
    DEFAULT_COLORMAP,
    ERROR_COLORMAP,
    Pixels,
    colorize,
    colormap_lut,
    percentile_range,
)
from train.inference import Predict, predict_frames, rules
from train.shards import ShardDataset

PAD, TITLE, LEGEND = 6, 22, 26  # pixels of a strip's parts
UNCOUNTED = 0.35  # brightness that the error map leaves to the picture where the protocol does not look


@dataclass(frozen=True, eq=False)
class ValidationSample:
    """One frame, its truth and what was predicted.

    Attributes:
        key: of the sample.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) float32 metres, 0 where unknown.
        prediction: (H, W) float32 metres.
        figures: by the names of ``METRICS``.
        role: why it is shown, such as "worst".
        counted: (H, W) bool, the pixels that the figures are of; None is all that have truth.
    """

    key: str
    image: Pixels
    truth: NDArray[np.float32]
    prediction: NDArray[np.float32]
    figures: dict[str, float]
    role: str = ""
    counted: NDArray[np.bool_] | None = None

    def title(self) -> str:
        """ "worst: 0123, AbsRel 0.512, RMSE 1.204 m, d1 0.310"."""
        role = f"{self.role}: " if self.role else ""
        figures = self.figures
        return (
            f"{role}{self.key}, AbsRel {figures.get('abs_rel', math.nan):.3f}, "
            f"RMSE {figures.get('rmse', math.nan):.3f} m, d1 {figures.get('d1', math.nan):.3f}"
        )


@dataclass(frozen=True, eq=False)
class Tile:
    """One of a sample's four pictures; ``legend`` is (colour map, first and last metres) or None."""

    caption: str
    pixels: Pixels
    legend: tuple[str, float, float] | None = None


def ranked(rows: Tensor) -> list[int]:
    """Indices from the lowest AbsRel to the highest, without the frames that have no valid pixel.

    Args:
        rows: (N, 9) figures of each frame, as ``evaluate`` gives them.
    """
    errors = rows[:, METRICS.index("abs_rel")]
    return [int(index) for index in torch.argsort(errors, stable=True) if not errors[index].isnan()]


def make_samples(
    predict: Predict,
    dataset: ShardDataset,
    indices: Sequence[int],
    size: tuple[int, int],
    protocol: str = "eigen",
    roles: Sequence[str] | None = None,
    exact: bool = False,
) -> list[ValidationSample]:
    """Predicts some frames again, to be shown.

    Args:
        predict, dataset, size, exact: see ``train.inference.predict_frames``.
        indices: of the frames.
        protocol: "eigen" or "full".
        roles: of the frames, as many as there are indices.
    """
    samples: list[ValidationSample] = []
    counting = rules(dataset, protocol)
    names = [""] * len(indices) if roles is None else roles
    for frames in predict_frames(predict, dataset, size, indices, exact):
        rows = DepthMetrics(counting).update(frames.depth, frames.truth)
        counted = counting.valid(frames.truth)
        for i, index in enumerate(frames.indices):
            samples.append(
                ValidationSample(
                    dataset.keys[index],
                    frames.images[i].permute(1, 2, 0).numpy(),
                    frames.truth[i, 0].numpy(),
                    frames.depth[i, 0].clamp(counting.min_depth, counting.max_depth).numpy(),
                    dict(zip(METRICS, rows[i].tolist(), strict=True)),
                    names[len(samples)],
                    counted[i, 0].numpy(),
                )
            )
    return samples


def tiles(sample: ValidationSample, width: int = 320) -> list[Tile]:
    """Picture, truth, prediction and error, ``width`` pixels wide each.

    Truth and prediction share their colours. The error is coloured where it counts; elsewhere the picture
    shows through, dark.
    """
    height = max(1, round(width * sample.truth.shape[0] / sample.truth.shape[1]))
    known = sample.truth > 0
    counted = known if sample.counted is None else sample.counted
    near, far = percentile_range(sample.truth, sample.prediction)
    far = max(far, near + 1e-3)
    error = np.where(counted, np.abs(sample.prediction - sample.truth), 0)
    high = max(float(np.percentile(error[counted], 99)), 1e-2) if counted.any() else 1e-2
    errors = colorize(np.where(counted, np.maximum(error, 1e-9), 0), ERROR_COLORMAP, 0, high)
    picture = np.asarray(Image.fromarray(sample.image).resize((width, height), Image.Resampling.LANCZOS))
    shown = _nearest(errors, height, width)
    outside = ~_nearest(counted, height, width)
    shown[outside] = (picture[outside] * UNCOUNTED).astype(np.uint8)
    depths = [
        _nearest(colorize(d, near=near, far=far), height, width) for d in (sample.truth, sample.prediction)
    ]
    legend = (DEFAULT_COLORMAP, near, far)
    return [
        Tile("picture", picture),
        Tile("truth", depths[0], legend),
        Tile("prediction", depths[1], legend),
        Tile("|error|", shown, (ERROR_COLORMAP, 0.0, high)),
    ]


def _nearest(values: NDArray, height: int, width: int) -> NDArray:  # type: ignore[type-arg]
    rows, columns = (
        ((np.arange(n) + 0.5) * old / n).astype(np.int64)
        for n, old in zip((height, width), values.shape, strict=False)
    )
    return values[np.ix_(rows, columns)].copy()


def strip(sample: ValidationSample, width: int = 320) -> Pixels:
    """The four tiles in a row, with a title and legends in metres: uint8 RGB (H', W', 3).

    W' is ``4 * width + 5 * PAD``.
    """
    parts = tiles(sample, width)
    height = parts[0].pixels.shape[0]
    canvas = Image.new("RGB", (4 * width + 5 * PAD, TITLE + height + LEGEND + PAD), "white")
    draw = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(size=14), ImageFont.load_default(size=12)
    draw.text((PAD, 3), sample.title(), "black", font)
    for place, tile in enumerate(parts):
        left, below = PAD + place * (width + PAD), TITLE + height + 4
        canvas.paste(Image.fromarray(tile.pixels), (left, TITLE))
        if tile.legend is None:
            draw.text((left + width // 2, below + 7), tile.caption, "black", small, "ma")
            continue
        colormap, low, high = tile.legend
        ramp = colormap_lut(colormap)[np.linspace(0, 255, width).round().astype(np.int64)]
        canvas.paste(Image.fromarray(np.repeat(ramp[None], 6, axis=0)), (left, below))
        for text, x, anchor in (
            (f"{low:.2f} m", 0, "la"),
            (tile.caption, width // 2, "ma"),
            (f"{high:.2f} m", width, "ra"),
        ):
            draw.text((left + x, below + 7), text, "black", small, anchor)
    return np.asarray(canvas)


def write_strips(samples: Sequence[ValidationSample], path: Path, width: int = 320) -> None:
    """Writes samples one below the other as a PNG.

    Raises:
        ValueError: no samples.
        OSError: it cannot be written.
    """
    if not samples:
        raise ValueError("no frame with valid truth to show")
    strips = [strip(sample, width) for sample in samples]
    Image.fromarray(np.concatenate(strips)).save(path, "PNG")
