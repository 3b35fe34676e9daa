"""The field's error measures, with both ways of averaging, and the evaluation protocol of NYU Depth V2."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "d1", "d2", "d3", "silog")
# Rows and columns of Eigen et al. 2014 on 480x640 frames: [45:471, 41:601].
EIGEN_CROP = (45, 471, 41, 601)


@dataclass(frozen=True)
class EvalProtocol:
    """Which pixels count.

    Attributes:
        crop: rows and columns (top, bottom, left, right) of a 480x640 frame, or None for the whole frame.
        min_depth, max_depth: metres; the truth counts inside (min, max), the prediction is clipped to it.
    """

    crop: tuple[int, int, int, int] | None = EIGEN_CROP
    min_depth: float = 1e-3
    max_depth: float = 10.0

    def valid(self, target: Tensor) -> Tensor:
        """Bool mask of the pixels of ``target`` (..., H, W), metres, that count.

        Raises:
            ValueError: if there is a crop and the frames are not 480x640.
        """
        mask = (target > self.min_depth) & (target < self.max_depth)
        if self.crop is not None:
            if tuple(target.shape[-2:]) != (480, 640):
                raise ValueError(
                    f"the crop {self.crop} is for 480x640 truth, got {target.shape[-2]}x{target.shape[-1]}"
                )
            top, bottom, left, right = self.crop
            inside = torch.zeros_like(mask)
            inside[..., top:bottom, left:right] = True
            mask &= inside
        return mask


PROTOCOLS = {"eigen": EvalProtocol(), "full": EvalProtocol(crop=None)}


class DepthMetrics:
    """Adds up errors over a test set.

    AbsRel = mean |p-d|/d; SqRel = mean (p-d)^2/d; RMSE = sqrt(mean (p-d)^2); RMSElog the same of natural
    logarithms; log10 = mean |log10 p - log10 d|; d1, d2, d3 = share with max(p/d, d/p) < 1.25, 1.25^2, 1.25^3;
    SILog = 100 sqrt(mean g^2 - (mean g)^2), g = ln p - ln d. Source: Eigen et al., NIPS 2014.

    ``per_image`` averages each picture's figure; ``pooled`` takes all pixels of all pictures at once, which
    gives an RMSE that is 10 to 15 % higher. Sums are float64.

    Args:
        protocol: which pixels count.
    """

    def __init__(self, protocol: EvalProtocol | None = None) -> None:
        self.protocol = protocol or EvalProtocol()
        self._means: list[Tensor] = []
        self._counts: list[Tensor] = []

    def update(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Adds pictures.

        Args:
            prediction, target: (N, H, W) or (N, 1, H, W), metres.

        Returns:
            (N, 9) float64, the figures of each picture in the order of ``METRICS``; NaN without a valid pixel.

        Raises:
            ValueError: for shapes that differ or are others, or a prediction that is not finite.
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
        return _figures(means)

    def compute(self) -> dict[str, dict[str, float]]:
        """``{"per_image": {...}, "pooled": {...}}``, each with the nine figures of ``METRICS``.

        Raises:
            ValueError: if no valid pixel was ever added.
        """
        counts = torch.cat(self._counts) if self._counts else torch.zeros(0)
        if not counts.sum():
            raise ValueError("no valid pixel to compute metrics from")
        means = torch.cat(self._means)[counts > 0]
        counts = counts[counts > 0].double()
        pooled = (means * counts.unsqueeze(1)).sum(0) / counts.sum()
        return {
            "per_image": _named(_figures(means).mean(0)),
            "pooled": _named(_figures(pooled.unsqueeze(0))[0]),
        }


def _figures(means: Tensor) -> Tensor:
    """Means of the nine columns to the nine figures: roots where a figure has one."""
    figures = means.clone()
    figures[:, 2] = means[:, 2].sqrt()
    figures[:, 3] = means[:, 3].sqrt()
    figures[:, 8] = 100 * (means[:, 3] - means[:, 8].square()).clamp(min=0).sqrt()
    return figures


def _named(figures: Sequence[Tensor] | Tensor) -> dict[str, float]:
    return {name: float(value) for name, value in zip(METRICS, figures, strict=True)}
