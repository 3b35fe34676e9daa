"""Evaluation of a network on a split: whole frames in, metrics and per-frame errors out."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from depthzoo.camera import depth_scale
from depthzoo.errors import DatasetError
from depthzoo.metrics import METRICS, PROTOCOLS, DepthMetrics, EvalProtocol
from depthzoo.prediction import resize_depth, resize_image, working_size
from train.shards import ShardDataset

Predict = Callable[[Tensor], Tensor]
BATCH = 4
DISTANCES = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 80.0)  # metres
# Working sizes (H, W) at which weights are measured. At the last one frames of NYU Depth V2 are fed as they are.
SIZES = ((192, 256), (240, 320), (480, 640))
SIZE_METRICS = ("abs_rel", "rmse", "d1")


@dataclass(frozen=True, eq=False)
class Frames:
    """A few predicted frames of one size."""

    indices: list[int]  # in the data set
    images: Tensor  # (N, 3, H, W) uint8 RGB
    target: Tensor  # (N, 1, H, W) float32 metres, 0 is invalid
    depth: Tensor  # the same, predicted


def default_protocol(dataset: ShardDataset) -> str:
    """Return "eigen" for frames of 480x640, which its crop is for, else "full"."""
    return "eigen" if dataset.info["splits"][dataset.split].get("size") == [480, 640] else "full"


def protocol_for(dataset: ShardDataset, name: str) -> EvalProtocol:
    """Return the protocol "eigen" or "full" with the depth range of a data set."""
    near, far = dataset.depth_range
    return replace(PROTOCOLS[name], min_depth=near, max_depth=far)


def torch_predict(model: Predict, device: torch.device, flip: bool = False) -> Predict:
    """Return a function from (N, 3, h, w) float in [0, 1] to (N, 1, h, w) float32 metres on the CPU.

    ``model`` takes its input on ``device``; ``flip`` averages with the prediction for the mirrored image.
    """

    def predict(image: Tensor) -> Tensor:
        image = image.to(device)
        depth = model(image)
        if flip:
            depth = (depth + model(image.flip(-1)).flip(-1)) / 2
        return depth.float().cpu()

    return predict


class PredictionFolder:
    """Predictions of another program: ``{key}.npy`` in metres or ``{key}.png`` in 16-bit millimetres for each frame.

    ``{key}.depth.npy`` and ``{key}.depth.png``, as ``depthzoo predict`` writes them, are also read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name

    def read(self, key: str, size: tuple[int, int]) -> Tensor:
        """Return the metres of a frame, resized to ``size``: float32 (1, 1, H, W).

        Raises:
            DatasetError: there is no such file, or it holds something else.
        """
        for suffix in (".npy", ".depth.npy", ".png", ".depth.png"):
            path = self.folder / (key + suffix)
            if not path.is_file():
                continue
            try:
                depth = np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))
                if path.suffix == ".png" and depth.dtype != np.uint8:
                    depth = depth / np.float32(1000)
            except (OSError, ValueError) as error:
                raise DatasetError(f"{path} cannot be read: {error}") from None
            if depth.ndim != 2 or depth.dtype.kind != "f":
                raise DatasetError(
                    f"{path}: {depth.dtype} {depth.shape}; expected (H, W), metres or 16-bit PNG"
                )
            return resize_depth(torch.from_numpy(depth).float()[None, None], size)
        raise DatasetError(f"{self.folder} has no prediction {key}.npy or {key}.png")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; afterwards restore the mode of every module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.inference_mode()
def predict_frames(
    predict: Predict | PredictionFolder,
    dataset: ShardDataset,
    size: tuple[int, int],
    indices: Sequence[int] | None = None,
    exact: bool = False,
) -> Iterator[Frames]:
    """Predict whole frames, a few at a time, in metres of the data set's camera.

    Args:
        predict: predicts depth of the canonical camera, see :func:`torch_predict`; or a folder with metres.
        dataset: the split.
        size: working size (H, W). An image of another aspect is resized to about as many pixels.
        indices: of the frames; if None, all.
        exact: resize every image to ``size`` itself, for a network of one fixed size.

    Raises:
        DatasetError: naming a frame that cannot be decoded.
        ValueError: naming a frame whose prediction is not finite.
    """
    waiting = list(range(len(dataset)) if indices is None else indices)
    while waiting:
        batch: list[int] = []
        images: list[Tensor] = []
        targets: list[Tensor] = []
        while waiting and len(batch) < BATCH:
            image, steps = dataset[waiting[0]]
            if images and images[0].shape[-2:] != image.shape[:2]:
                break  # frames of another size make the next batch
            batch.append(waiting.pop(0))
            images.append(torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0))
            # Divided: a thousand is exact in float32, a thousandth is not.
            targets.append(torch.from_numpy(steps.astype("float32"))[None, None] / (1 / dataset.depth_unit))
        height, width = images[0].shape[-2:]
        fed = size if exact else working_size(height, width, size)
        if isinstance(predict, PredictionFolder):
            depth = torch.cat([predict.read(dataset.keys[index], (height, width)) for index in batch])
        else:
            small = torch.cat([resize_image(image, fed) for image in images]).float() / 255
            scale = depth_scale(dataset.focal_px, max(height, width))
            depth = resize_depth(predict(small), (height, width)) * scale
        for index, finite in zip(batch, depth.isfinite().flatten(1).all(1), strict=True):
            if not finite:
                key = dataset.keys[index]
                raise ValueError(f"the prediction for {dataset.split} frame {key!r} is not finite")
        yield Frames(batch, torch.cat(images), torch.cat(targets), depth)


def evaluate(
    predict: Predict | PredictionFolder,
    dataset: ShardDataset,
    size: tuple[int, int],
    protocol: str = "eigen",
    exact: bool = False,
    by_distance: "ErrorByDistance | None" = None,
    median_scaling: bool = False,
) -> tuple[dict[str, dict[str, float]], Tensor]:
    """Measure predictions on a split; the prediction is resized to the target.

    Args:
        predict, dataset, size, exact: see :func:`predict_frames`.
        protocol: "eigen" or "full"; the depth range is that of the data set.
        by_distance: updated with every frame.
        median_scaling: multiply each prediction by the ratio of the medians, for networks without a scale.

    Returns:
        The result of ``DepthMetrics.compute``, and the metrics of each frame (N, 9), NaN for a frame without a valid
        target.

    Raises:
        ValueError: naming a frame that cannot be decoded or whose prediction is not finite; frames that are not
            480x640 with the Eigen protocol.
    """
    metrics, rows = DepthMetrics(protocol_for(dataset, protocol)), []
    # disable=None shows the bar only on a terminal.
    name = f"evaluating {dataset.split}"
    with tqdm(total=len(dataset), desc=name, unit="frame", disable=None, leave=False) as bar:
        for frames in predict_frames(predict, dataset, size, exact=exact):
            if median_scaling:
                scale_by_medians(frames, metrics.protocol)
            rows.append(metrics.update(frames.depth, frames.target))
            if by_distance is not None:
                by_distance.update(frames.depth, frames.target)
            bar.update(len(frames.indices))
    return metrics.compute(), torch.cat(rows)


@torch.inference_mode()
def scale_by_medians(frames: Frames, protocol: EvalProtocol) -> None:
    """Multiply each prediction by median target / median prediction, of the pixels that count."""
    for depth, target in zip(frames.depth, frames.target, strict=True):
        mask = protocol.valid(target)
        if mask.any():
            depth *= target[mask].median() / depth[mask].median()


def evaluate_sizes(predict: Predict, dataset: ShardDataset, protocol: str) -> dict[str, dict[str, float]]:
    """Return a card's "sizes": the per-image ``SIZE_METRICS`` at each of ``SIZES``, by "HxW"."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a size that the weights are not for
        for size in SIZES:
            results, _ = evaluate(predict, dataset, size, protocol)
            found[f"{size[0]}x{size[1]}"] = {name: results["per_image"][name] for name in SIZE_METRICS}
    return found


def ranked(rows: Tensor) -> list[int]:
    """Return the indices of frames in the order of AbsRel, lowest first, without frames that have no valid pixel."""
    errors = rows[:, METRICS.index("abs_rel")]
    return [int(index) for index in torch.argsort(errors, stable=True) if not errors[index].isnan()]


class ErrorByDistance:
    """Relative errors in bands of true distance, over all pixels that a protocol counts."""

    def __init__(self, protocol: EvalProtocol) -> None:
        far = protocol.max_depth
        self.protocol, self.edges = protocol, (*(edge for edge in DISTANCES if edge < far), far)
        # Rows: pixels, |p - d| / d, (p - d) / d.
        self._sums = torch.zeros(3, len(self.edges) - 1, dtype=torch.float64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add frames, both (N, 1, H, W) in metres."""
        mask = self.protocol.valid(target)
        true = target[mask].double()
        clipped = prediction[mask].double().clamp(self.protocol.min_depth, self.protocol.max_depth)
        error = (clipped - true) / true
        band = torch.bucketize(true, torch.tensor(self.edges[1:-1], dtype=torch.float64), right=True)
        for row, values in zip(self._sums, (torch.ones_like(error), error.abs(), error), strict=True):
            row.index_add_(0, band, values)

    def compute(self) -> list[dict[str, Any]]:
        """Return a row for each band that has pixels.

        "metres" is the band [from, to), "share" its fraction of the pixels, and "bias" the mean of (p - d) / d,
        positive where predictions are too far.
        """
        count, absolute, signed = self._sums
        return [
            {
                "metres": [self.edges[i], self.edges[i + 1]],
                "share": round(float(count[i] / count.sum()), 4),
                "abs_rel": round(float(absolute[i] / count[i]), 4),
                "bias": round(float(signed[i] / count[i]), 4),
            }
            for i in range(len(count))
            if count[i]
        ]
