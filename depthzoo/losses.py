"""Losses on metres.

Every loss takes ``prediction`` and ``target``, both (N, 1, H, W) in metres, and a bool ``mask`` of the same
shape, true where the target is valid; it works in float32 under autocast and returns a scalar: the mean over
a picture's valid pixels, then over the pictures that have any. With none it is 0, with a gradient of zeros.
Values of the target outside the mask are never read, so they may be NaN.
"""

import fnmatch
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from depthzoo.errors import suggest

MIN_LOG_DEPTH = 1e-3
MIN_SQRT = 1e-6


def masked_mean(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the valid pixels of each picture.

    Returns:
        The means (N,), 0 where a picture has no valid pixel, and which pictures have one (N,), bool.
    """
    count = mask.flatten(1).sum(1)
    total = torch.where(mask, values, 0).flatten(1).sum(1)
    return total / count.clamp(min=1), count > 0


def global_sum(value: Tensor) -> Tensor:
    """The sum over all ranks; its gradient is that of the sum once DDP has averaged the gradients of the ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total, ranks = value.detach().clone(), dist.get_world_size()
    dist.all_reduce(total)
    return total + ranks * (value - value.detach())


def sobel(x: Tensor) -> Tensor:
    """Horizontal and vertical Sobel derivatives with the plain 1-2-1 kernel, not divided by 8.

    Shapes: (N, 1, H, W) to (N, 2, H-2, W-2); the outermost pixels have no full window.
    """
    # Differences of shifted slices, for a convolution on a GPU rounds metres to TF32: 2 mm at 4 m.
    columns, rows = x[..., 2:] - x[..., :-2], x[..., 2:, :] - x[..., :-2, :]
    horizontal = columns[..., :-2, :] + 2 * columns[..., 1:-1, :] + columns[..., 2:, :]
    vertical = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    return torch.cat([horizontal, vertical], dim=1)


def full_window(mask: Tensor) -> Tensor:
    """Where the whole 3x3 window is valid: (N, 1, H, W) to (N, 1, H-2, W-2), bool."""
    return F.max_pool2d((~mask).float(), 3, stride=1) == 0


def _resized(x: Tensor, target: Tensor) -> Tensor:
    """``x`` at the size of ``target``, bilinear."""
    if x.shape[-2:] == target.shape[-2:]:
        return x
    return F.interpolate(x, size=target.shape[-2:], mode="bilinear", align_corners=False)


class DepthLoss(nn.Module):
    """Base: checks, float32, masking, and the mean over pictures; a loss fills in :meth:`per_picture`."""

    def per_picture(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each picture (N,), and which pictures count (N,); the inputs are finite everywhere."""
        raise NotImplementedError

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The loss, a float32 scalar.

        Raises:
            ValueError: unless all three are (N, 1, H, W) of one shape and the mask is bool.
        """
        shape = prediction.shape
        if not shape == target.shape == mask.shape or len(shape) != 4 or shape[1] != 1:
            raise ValueError(
                f"{type(self).__name__}: prediction, target and mask must have one shape (N, 1, H, W), got "
                f"{tuple(prediction.shape)}, {tuple(target.shape)}, {tuple(mask.shape)}"
            )
        if mask.dtype != torch.bool:
            raise ValueError(f"{type(self).__name__}: mask must be bool, got {mask.dtype}")
        with torch.autocast(prediction.device.type, enabled=False):
            # Ones outside the mask: whatever is there, NaN included, meets no arithmetic and no gradient.
            p = torch.where(mask, prediction.float(), 1.0)
            d = torch.where(mask, target.float(), 1.0)
            return self.reduce(p, d, mask)

    def reduce(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The mean of :meth:`per_picture` over the pictures of the global batch that count, a scalar."""
        values, counts = self.per_picture(prediction, target, mask)
        count = counts.sum().float()
        if dist.is_available() and dist.is_initialized():
            # The mean over ranks, which DDP takes of the gradients, is then that of the global batch.
            dist.all_reduce(count)
            count = count / dist.get_world_size()
        return torch.where(counts, values, 0).sum() / torch.where(count > 0, count, 1)


LOSSES: dict[str, type[DepthLoss]] = {}
Loss = TypeVar("Loss", bound=type[DepthLoss])


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """Register a loss class under ``name``. Used as a decorator: ``@register_loss("mse")``.

    Raises:
        ValueError: if the name is taken.
    """

    def register(loss: Loss) -> Loss:
        if name in LOSSES:
            raise ValueError(f"loss {name!r} is already registered, by {LOSSES[name].__module__}")
        LOSSES[name] = loss
        return loss

    return register


def list_losses(pattern: str | None = None) -> list[str]:
    """Return the names of the registered losses in alphabetical order; ``pattern`` is shell-style."""
    return sorted(name for name in LOSSES if pattern is None or fnmatch.fnmatchcase(name, pattern))


def create_loss(name: str, **options: Any) -> DepthLoss:
    """Build a loss by name, with the options of its class.

    Raises:
        ValueError: for an unknown name; the message suggests the closest ones.
        TypeError: for an unknown option.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}: {suggest(name, LOSSES)}")
    return LOSSES[name](**options)


@register_loss("mse")
class MSELoss(DepthLoss):
    """Mean squared error, square metres: mean e^2."""

    def per_picture(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return masked_mean((target - prediction).square(), mask)


@register_loss("l1")
class L1Loss(DepthLoss):
    """Mean absolute error, metres: mean |e|."""

    def per_picture(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return masked_mean((target - prediction).abs(), mask)


@register_loss("berhu")
class BerHuLoss(DepthLoss):
    """Reverse Huber: |e| up to c, beyond it (e^2 + c^2) / (2c); c is ``share`` of the largest |e| of the batch.

    c is detached and, in distributed training, of the global batch. Source: Laina et al., "Deeper Depth
    Prediction with Fully Convolutional Residual Networks", 3DV 2016.

    Args:
        share: of the largest absolute error, 0 to 1.
    """

    def __init__(self, share: float = 0.2) -> None:
        super().__init__()
        self.share = share

    def per_picture(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        error = torch.where(mask, (target - prediction).abs(), 0)
        largest = error.detach().amax() if error.numel() else error.new_zeros(())
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        c = (self.share * largest).clamp(min=MIN_SQRT)
        return masked_mean(torch.where(error <= c, error, (error.square() + c * c) / (2 * c)), mask)


@register_loss("gradient")
class GradientLoss(DepthLoss):
    """Mean |Sx e| + |Sy e| where the whole 3x3 window is valid; S is the plain Sobel kernel, not divided by 8.

    Source: Hu et al., "Revisiting Single Image Depth Estimation", WACV 2019.

    Args:
        log: their form, ln(|Sx e| + 0.5) + ln(|Sy e| + 0.5), which can be negative.
    """

    def __init__(self, log: bool = False) -> None:
        super().__init__()
        self.log = log

    def per_picture(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        slope = sobel(target - prediction).abs()
        if self.log:
            slope = (slope + 0.5).log()
        return masked_mean(slope.sum(1, keepdim=True), full_window(mask))


@register_loss("normal")
class NormalLoss(DepthLoss):
    """Mean 1 - cos(n_d, n_p) of the surface normals n = (-Sx, -Sy, 1), where the whole 3x3 window is valid.

    Source: Hu et al., "Revisiting Single Image Depth Estimation", WACV 2019.
    """

    def per_picture(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        p, d = sobel(prediction), sobel(target)
        dot = (p * d).sum(1, keepdim=True) + 1
        lengths = ((p * p).sum(1, keepdim=True) + 1).sqrt() * ((d * d).sum(1, keepdim=True) + 1).sqrt()
        return masked_mean(1 - dot / lengths, full_window(mask))


@register_loss("silog")
class SILogLoss(DepthLoss):
    """Scale-invariant logarithmic error: sqrt(mean g^2 - lambda (mean g)^2), g = ln p - ln d.

    Source: Eigen et al., "Depth Map Prediction from a Single Image using a Multi-Scale Deep Network",
    NIPS 2014; the square root and lambda 0.85 as in Lee et al., "From Big to Small", 2019.

    Args:
        lambda_: 0 (plain logarithmic error) to 1 (blind to scale).
        batch: take the means over all valid pixels of the global batch, as Lee et al. do: an error in the scale of
            one image then counts in full. If False, over each image, and lambda forgives most of that error.
    """

    def __init__(self, lambda_: float = 0.85, batch: bool = False) -> None:
        super().__init__()
        self.lambda_, self.batch = lambda_, batch

    def per_picture(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        g = prediction.clamp(min=MIN_LOG_DEPTH).log() - target.clamp(min=MIN_LOG_DEPTH).log()
        mean, counts = masked_mean(g, mask)
        # mean g^2 - lambda mean^2 as a sum of two squares, so that float32 cannot make it negative.
        variance, _ = masked_mean((g - mean.view(-1, 1, 1, 1)).square(), mask)
        return (variance + (1 - self.lambda_) * mean.square()).clamp(min=MIN_SQRT).sqrt(), counts

    def reduce(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        if not self.batch:
            return super().reduce(prediction, target, mask)
        g = prediction.clamp(min=MIN_LOG_DEPTH).log() - target.clamp(min=MIN_LOG_DEPTH).log()
        count = global_sum(mask.sum().float()).clamp(min=1)
        mean = global_sum(torch.where(mask, g, 0).sum()) / count
        # The sum of squares is least at the mean, so no gradient goes through it; that of one rank alone would.
        variance = global_sum(torch.where(mask, g - mean.detach(), 0).square().sum()) / count
        return (variance + (1 - self.lambda_) * mean.square()).clamp(min=MIN_SQRT).sqrt()


@register_loss("combined")
class CombinedLoss(DepthLoss):
    """Weighted sum of other losses; by default MSE + gradient + normal, each with weight 1.

    Args:
        terms: weight by the name of a registered loss.
        options: arguments of the terms that take any, by name.

    Raises:
        ValueError: for an unknown name, no terms at all, or options of a loss that is no term.
    """

    def __init__(
        self, terms: dict[str, float] | None = None, options: dict[str, dict[str, float]] | None = None
    ) -> None:
        super().__init__()
        self.weights = dict(terms) if terms is not None else {"mse": 1.0, "gradient": 1.0, "normal": 1.0}
        if not self.weights:
            raise ValueError("combined: terms must name at least one loss")
        if stray := sorted(set(options or {}) - set(self.weights)):
            raise ValueError(
                f"combined: options for {', '.join(stray)}, but the terms are {', '.join(self.weights)}"
            )
        self.terms = nn.ModuleDict(
            {name: create_loss(name, **(options or {}).get(name, {})) for name in self.weights}
        )

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        losses = [
            weight * self.terms[name](prediction, target, mask) for name, weight in self.weights.items()
        ]
        return torch.stack(losses).sum()


class MultiScaleLoss(nn.Module):
    """Any loss over the heads of a network: each prediction is upsampled to the truth and weighted.

    Upsampling the coarse prediction, rather than shrinking the truth, keeps invalid pixels invalid: Godard et
    al., "Digging into Self-Supervised Monocular Depth Prediction", ICCV 2019.

    Args:
        loss: what is computed at each scale.
        weights: of the heads, finest first; heads beyond the last weight are left out.
    """

    def __init__(self, loss: nn.Module, weights: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)) -> None:
        super().__init__()
        self.loss = loss
        self.weights = weights

    def forward(self, predictions: list[Tensor], target: Tensor, mask: Tensor) -> Tensor:
        """Weighted sum, a scalar; ``predictions`` are (N, 1, h, w) in metres, finest first."""
        losses = [
            weight * self.loss(_resized(prediction.float(), target), target, mask)
            for weight, prediction in zip(self.weights, predictions, strict=False)
        ]
        return torch.stack(losses).sum()
