"""Validation frames to look at: image | prediction | target | error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from depthzoo.metrics import METRICS, DepthMetrics
from depthzoo.visualize import DEFAULT_COLORMAP, ERROR_COLORMAP, colorize, panel, percentile_range
from train.evaluation import Predict, PredictionFolder, predict_frames, protocol_for
from train.shards import ShardDataset

Pixels = NDArray[np.uint8]
TITLE = 22  # pixels of a strip's title
UNCOUNTED = 0.35  # brightness of the image where the error is not counted


@dataclass(frozen=True, eq=False)
class Sample:
    """One frame, its target and its prediction."""

    key: str
    image: Pixels  # (H, W, 3) RGB
    target: NDArray[np.float32]  # (H, W) metres, 0 where unknown
    prediction: NDArray[np.float32]  # (H, W) metres
    metrics: dict[str, float]  # by the names of METRICS
    counted: NDArray[np.bool_]  # (H, W), the pixels that the metrics are of
    role: str = ""  # why the frame is shown, such as "worst"

    def title(self) -> str:
        """Return "worst: 0123, AbsRel 0.512, RMSE 1.204 m, d1 0.310"."""
        role = f"{self.role}: " if self.role else ""
        abs_rel, rmse, d1 = (self.metrics.get(key, math.nan) for key in ("abs_rel", "rmse", "d1"))
        return f"{role}{self.key}, AbsRel {abs_rel:.3f}, RMSE {rmse:.3f} m, d1 {d1:.3f}"


@dataclass(frozen=True, eq=False)
class Tile:
    """One of the four images of a sample; ``legend`` is (color map, first and last metres) or None."""

    caption: str
    pixels: Pixels
    legend: tuple[str, float, float] | None = None


def make_samples(
    predict: Predict | PredictionFolder,
    dataset: ShardDataset,
    indices: Sequence[int],
    size: tuple[int, int],
    protocol: str = "eigen",
    roles: Sequence[str] | None = None,
    exact: bool = False,
) -> list[Sample]:
    """Predict some frames to show them; see ``train.evaluation.predict_frames``."""
    samples: list[Sample] = []
    counting = protocol_for(dataset, protocol)
    names = [""] * len(indices) if roles is None else roles
    for frames in predict_frames(predict, dataset, size, indices, exact):
        rows = DepthMetrics(counting).update(frames.depth, frames.target)
        counted = counting.valid(frames.target)
        for i, index in enumerate(frames.indices):
            samples.append(
                Sample(
                    dataset.keys[index],
                    frames.images[i].permute(1, 2, 0).numpy(),
                    frames.target[i, 0].numpy(),
                    frames.depth[i, 0].clamp(counting.min_depth, counting.max_depth).numpy(),
                    dict(zip(METRICS, rows[i].tolist(), strict=True)),
                    counted[i, 0].numpy(),
                    names[len(samples)],
                )
            )
    return samples


def tiles(sample: Sample, width: int = 320) -> list[Tile]:
    """Return image, prediction, target and error, each ``width`` pixels wide.

    Prediction and target share their colors. The error is colored where it is counted; elsewhere the image shows,
    darkened.
    """
    height = max(1, round(width * sample.target.shape[0] / sample.target.shape[1]))
    near, far = percentile_range(sample.target, sample.prediction)
    far = max(far, near + 1e-3)
    error = np.where(sample.counted, np.abs(sample.prediction - sample.target), 0)
    high = max(float(np.percentile(error[sample.counted], 99)), 1e-2) if sample.counted.any() else 1e-2
    image = np.asarray(Image.fromarray(sample.image).resize((width, height), Image.Resampling.LANCZOS))
    colors = _nearest(colorize(np.maximum(error, 1e-9), ERROR_COLORMAP, 0, high), height, width)
    outside = ~_nearest(sample.counted, height, width)
    colors[outside] = (image[outside] * UNCOUNTED).astype(np.uint8)
    depths = [
        _nearest(colorize(d, near=near, far=far), height, width) for d in (sample.prediction, sample.target)
    ]
    legend = (DEFAULT_COLORMAP, near, far)
    return [
        Tile("image", image),
        Tile("prediction", depths[0], legend),
        Tile("target", depths[1], legend),
        Tile("|error|", colors, (ERROR_COLORMAP, 0.0, high)),
    ]


def _nearest(values: NDArray, height: int, width: int) -> NDArray:  # type: ignore[type-arg]
    rows, columns = (
        ((np.arange(n) + 0.5) * old / n).astype(np.int64)
        for n, old in zip((height, width), values.shape, strict=False)
    )
    return values[np.ix_(rows, columns)].copy()


def strip(sample: Sample, width: int = 320) -> Pixels:
    """Return the library's panel of a frame under a title: uint8 RGB (H', W', 3)."""
    # The pixels that are not counted have no target, so that the error is that of the metrics.
    target = np.where(sample.counted, sample.target, 0)
    body = panel(sample.image, sample.prediction, target, tile=width)
    canvas = Image.new("RGB", (body.shape[1], TITLE + body.shape[0]), "white")
    ImageDraw.Draw(canvas).text((6, 3), sample.title(), "black", ImageFont.load_default(size=14))
    canvas.paste(Image.fromarray(body), (0, TITLE))
    return np.asarray(canvas)


def write_strips(samples: Sequence[Sample], path: Path, width: int = 320) -> None:
    """Write the strips of samples, one below the other, as a PNG.

    Raises:
        ValueError: no samples.
        OSError: it cannot be written.
    """
    if not samples:
        raise ValueError("no frame with a valid target to show")
    strips = [strip(sample, width) for sample in samples]
    widest = max(pixels.shape[1] for pixels in strips)
    padded = [np.pad(s, ((0, 0), (0, widest - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    Image.fromarray(np.concatenate(padded)).save(path, "PNG")
