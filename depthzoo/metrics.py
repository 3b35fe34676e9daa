"""Metrics of depth estimation, averaged per image and pooled, and the evaluation protocol of NYU Depth V2."""

from dataclasses import dataclass

import torch
from torch import Tensor

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "d1", "d2", "d3", "silog")
# Rows and columns of Eigen et al. 2014 on 480x640 frames: [45:471, 41:601].
EIGEN_CROP = (45, 471, 41, 601)


@dataclass(frozen=True)
class EvalProtocol:
    """Which pixels are evaluated.

    Attributes:
        crop: (top, bottom, left, right) in a 480x640 frame, or None for the whole frame.
        min_depth, max_depth: metres; pixels whose target lies between them are evaluated, the prediction is clipped to
            them.
    """

    crop: tuple[int, int, int, int] | None = EIGEN_CROP
    min_depth: float = 1e-3
    max_depth: float = 10.0

    def valid(self, target: Tensor) -> Tensor:
        """Return the bool mask of the evaluated pixels of ``target`` (..., H, W), in metres.

        Raises:
            ValueError: if there is a crop and the frames are not 480x640.
        """
        mask = (target > self.min_depth) & (target < self.max_depth)
        if self.crop is not None:
            if tuple(target.shape[-2:]) != (480, 640):
                raise ValueError(
                    f"the crop {self.crop} is for 480x640 targets, got {target.shape[-2]}x{target.shape[-1]}"
                )
            top, bottom, left, right = self.crop
            inside = torch.zeros_like(mask)
            inside[..., top:bottom, left:right] = True
            mask &= inside
        return mask


PROTOCOLS = {"eigen": EvalProtocol(), "full": EvalProtocol(crop=None)}


class DepthMetrics:
    """Metrics over a test set.

    AbsRel = mean |p-d|/d; SqRel = mean (p-d)^2/d; RMSE = sqrt(mean (p-d)^2); RMSElog the same of natural
    logarithms; log10 = mean |log10 p - log10 d|; d1, d2, d3 = fraction with max(p/d, d/p) < 1.25, 1.25^2, 1.25^3;
    SILog = 100 sqrt(mean g^2 - (mean g)^2), g = ln p - ln d. Source: Eigen et al., NIPS 2014.

    "per_image" is the mean of each image's metrics; "pooled" takes all pixels of all images at once, which gives an
    RMSE 10 to 15% higher. Sums are float64.

    Args:
        protocol: which pixels are evaluated; by default those of Eigen et al.
    """

    def __init__(self, protocol: EvalProtocol | None = None) -> None:
        self.protocol = protocol or EvalProtocol()
        self._means: list[Tensor] = []
        self._counts: list[Tensor] = []

    def update(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Add images.

        Args:
            prediction, target: (N, H, W) or (N, 1, H, W), metres.

        Returns:
            (N, 9) float64, the metrics of each image in the order of ``METRICS``; NaN without a valid pixel.

        Raises:
            ValueError: for other or different shapes, or a prediction that is not finite.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape"
            )
        if not (target.ndim == 3 or (target.ndim == 4 and target.shape[1] == 1)):
            raise ValueError(f"depth must be (N, H, W) or (N, 1, H, W), got {tuple(target.shape)}")
        if not torch.isfinite(prediction).all():
            raise ValueError("the prediction is not finite")
        mask = self.protocol.valid(target).flatten(1)
        p = prediction.flatten(1).double().clamp(self.protocol.min_depth, self.protocol.max_depth)
        d = torch.where(mask, target.flatten(1).double(), 1.0)
        p = torch.where(mask, p, 1.0)
        error, ratio = p - d, torch.maximum(p / d, d / p)
        g = p.log() - d.log()
        columns = [
            error.abs() / d,
            error.square() / d,
            error.square(),
            g.square(),
            g.abs() / torch.log(torch.tensor(10.0, dtype=torch.float64)),
            *((ratio < 1.25**power).double() for power in (1, 2, 3)),
            g,
        ]
        count = mask.sum(1)
        sums = torch.stack([torch.where(mask, column, 0).sum(1) for column in columns], dim=1)
        means = sums / count.unsqueeze(1)
        self._means.append(means.cpu())
        self._counts.append(count.cpu())
        return _metrics(means)

    def compute(self) -> dict[str, dict[str, float]]:
        """Return ``{"per_image": {...}, "pooled": {...}}``, each with the nine metrics of ``METRICS``.

        Raises:
            ValueError: if there was no valid pixel.
        """
        counts = torch.cat(self._counts) if self._counts else torch.zeros(0)
        if not counts.sum():
            raise ValueError("no valid pixel to compute metrics from")
        means = torch.cat(self._means)[counts > 0]
        counts = counts[counts > 0].double()
        pooled = (means * counts.unsqueeze(1)).sum(0) / counts.sum()
        return {
            "per_image": _named(_metrics(means).mean(0)),
            "pooled": _named(_metrics(pooled.unsqueeze(0))[0]),
        }


def _metrics(means: Tensor) -> Tensor:
    """Metrics (N, 9) from the means of the nine columns."""
    metrics = means.clone()
    metrics[:, 2] = means[:, 2].sqrt()
    metrics[:, 3] = means[:, 3].sqrt()
    metrics[:, 8] = 100 * (means[:, 3] - means[:, 8].square()).clamp(min=0).sqrt()
    return metrics


def _named(metrics: Tensor) -> dict[str, float]:
    return {name: float(value) for name, value in zip(METRICS, metrics, strict=True)}
