"""Losses on depth in metres.

Every loss takes ``prediction`` and ``target``, (N, 1, H, W) in metres, and a bool ``mask`` of the same shape, true
where the target is valid, and returns a float32 scalar, also under autocast: the mean over the valid pixels of each
image, then over the images that have any, of all processes. Without a valid pixel it is 0, with a gradient of zeros.
Values of the target outside the mask are not read, so they may be NaN.

In the formulas p is the prediction, d the target and e = d - p. In distributed training all processes must call a loss
together.
"""

import fnmatch
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from depthzoo.errors import suggest

MIN_LOG_DEPTH = 1e-3  # metres; lower bound of a logarithm's argument
MIN_SQRT = 1e-6  # lower bound of a square root's argument


class DepthLoss(nn.Module):
    """Base of the losses: checks, float32, masking and averaging. A subclass implements :meth:`per_image`."""

    def per_image(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each image (N,), and whether it has a valid pixel (N,); all inputs are finite."""
        raise NotImplementedError

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the loss, a float32 scalar.

        Raises:
            ValueError: unless all three have one shape (N, 1, H, W) and the mask is bool.
        """
        shape = prediction.shape
        if not shape == target.shape == mask.shape or len(shape) != 4 or shape[1] != 1:
            raise ValueError(
                f"{type(self).__name__}: prediction, target and mask must have one shape (N, 1, H, W), got "
                f"{tuple(prediction.shape)}, {tuple(target.shape)}, {tuple(mask.shape)}"
            )
        if mask.dtype != torch.bool:
            raise ValueError(f"{type(self).__name__}: mask must be bool, got {mask.dtype}")
        # Autocast does not know the meta device.
        with torch.autocast("cpu" if prediction.is_meta else prediction.device.type, enabled=False):
            # Ones outside the mask, so that NaN there reaches neither the loss nor a gradient.
            p = torch.where(mask, prediction.float(), 1.0)
            d = torch.where(mask, target.float(), 1.0)
            return self.reduce(p, d, mask)

    def reduce(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of :meth:`per_image` over the images of the global batch that have a valid pixel."""
        values, has_valid = self.per_image(prediction, target, mask)
        num_valid = has_valid.sum().float()
        if _is_distributed():
            # DDP averages the gradients of the processes, which then are those of the global mean.
            dist.all_reduce(num_valid)
            num_valid = num_valid / dist.get_world_size()
        return torch.where(has_valid, values, 0).sum() / torch.where(num_valid > 0, num_valid, 1)


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


def masked_mean(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the valid pixels of each image (N,), 0 where there are none, and whether there are (N,)."""
    count = mask.flatten(1).sum(1)
    total = torch.where(mask, values, 0).flatten(1).sum(1)
    return total / count.clamp(min=1), count > 0


def sobel(x: Tensor) -> Tensor:
    """Horizontal and vertical Sobel derivatives with the plain 1-2-1 kernel, not divided by 8.

    Shape: (N, 1, H, W) to (N, 2, H-2, W-2); the outermost pixels have no full window.
    """
    # Differences of slices: on a GPU a convolution rounds metres to TF32, 2 mm at 4 m.
    columns, rows = x[..., 2:] - x[..., :-2], x[..., 2:, :] - x[..., :-2, :]
    horizontal = columns[..., :-2, :] + 2 * columns[..., 1:-1, :] + columns[..., 2:, :]
    vertical = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    return torch.cat([horizontal, vertical], dim=1)


def full_window(mask: Tensor) -> Tensor:
    """Where the whole 3x3 window is valid: (N, 1, H, W) to (N, 1, H-2, W-2), bool."""
    return F.max_pool2d((~mask).float(), 3, stride=1) == 0


@register_loss("mse")
class MSELoss(DepthLoss):
    """Mean squared error, square metres: mean e^2."""

    def per_image(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return masked_mean((target - prediction).square(), mask)


@register_loss("l1")
class L1Loss(DepthLoss):
    """Mean absolute error, metres: mean |e|."""

    def per_image(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return masked_mean((target - prediction).abs(), mask)


@register_loss("berhu")
class BerHuLoss(DepthLoss):
    """Reverse Huber loss: |e| where |e| <= c, else (e^2 + c^2) / (2c).

    c is ``fraction`` times the largest |e| of the global batch, detached. Source: Laina et al., "Deeper Depth
    Prediction with Fully Convolutional Residual Networks", 3DV 2016.

    Args:
        fraction: of the largest absolute error, 0 to 1.
    """

    def __init__(self, fraction: float = 0.2) -> None:
        super().__init__()
        self.fraction = fraction

    def per_image(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        error = torch.where(mask, (target - prediction).abs(), 0)
        largest = error.detach().amax() if error.numel() else error.new_zeros(())
        if _is_distributed():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        c = (self.fraction * largest).clamp(min=MIN_SQRT)
        return masked_mean(torch.where(error <= c, error, (error.square() + c * c) / (2 * c)), mask)


@register_loss("gradient")
class GradientLoss(DepthLoss):
    """Mean |Sx e| + |Sy e| over the pixels whose 3x3 window is valid; S is the Sobel kernel, not divided by 8.

    Source: Hu et al., "Revisiting Single Image Depth Estimation", WACV 2019.

    Args:
        log: the form of Hu et al., ln(|Sx e| + 0.5) + ln(|Sy e| + 0.5), which can be negative.
    """

    def __init__(self, log: bool = False) -> None:
        super().__init__()
        self.log = log

    def per_image(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        slope = sobel(target - prediction).abs()
        if self.log:
            slope = (slope + 0.5).log()
        return masked_mean(slope.sum(1, keepdim=True), full_window(mask))


@register_loss("normal")
class NormalLoss(DepthLoss):
    """Mean 1 - cos(n_d, n_p) of the surface normals n = (-Sx, -Sy, 1), over the pixels whose 3x3 window is valid.

    Source: Hu et al., "Revisiting Single Image Depth Estimation", WACV 2019.
    """

    def per_image(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
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
        batch: if False, take the means over each image, and lambda forgives most of an error in its scale. If True,
            over all valid pixels of the global batch, as Lee et al. do, and such an error counts in full.
    """

    def __init__(self, lambda_: float = 0.85, batch: bool = False) -> None:
        super().__init__()
        self.lambda_, self.batch = lambda_, batch

    def per_image(self, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        g = self._log_ratio(prediction, target)
        mean, has_valid = masked_mean(g, mask)
        variance, _ = masked_mean((g - mean.view(-1, 1, 1, 1)).square(), mask)
        return self._combine(mean, variance), has_valid

    def reduce(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        if not self.batch:
            return super().reduce(prediction, target, mask)
        g = self._log_ratio(prediction, target)
        count = _global_sum(mask.sum().float()).clamp(min=1)
        mean = _global_sum(torch.where(mask, g, 0).sum()) / count
        # Detached: the sum of squares is least at the global mean, which therefore adds no gradient.
        variance = _global_sum(torch.where(mask, g - mean.detach(), 0).square().sum()) / count
        return self._combine(mean, variance)

    def _log_ratio(self, prediction: Tensor, target: Tensor) -> Tensor:
        return prediction.clamp(min=MIN_LOG_DEPTH).log() - target.clamp(min=MIN_LOG_DEPTH).log()

    def _combine(self, mean: Tensor, variance: Tensor) -> Tensor:
        # mean g^2 - lambda mean^2 as a sum of two squares, which float32 cannot make negative.
        return (variance + (1 - self.lambda_) * mean.square()).clamp(min=MIN_SQRT).sqrt()


@register_loss("combined")
class CombinedLoss(DepthLoss):
    """Weighted sum of other losses; by default MSE + gradient + normal, each with weight 1.

    Args:
        terms: weights by the names of registered losses.
        options: options of the terms, by their names.

    Raises:
        ValueError: for an unknown name, no terms, or options of a loss that is not a term.
    """

    def __init__(
        self, terms: dict[str, float] | None = None, options: dict[str, dict[str, float]] | None = None
    ) -> None:
        super().__init__()
        self.weights = dict(terms) if terms is not None else {"mse": 1.0, "gradient": 1.0, "normal": 1.0}
        if not self.weights:
            raise ValueError("combined: terms must name at least one loss")
        options = options or {}
        if stray := sorted(set(options) - set(self.weights)):
            raise ValueError(
                f"combined: options for {', '.join(stray)}, but the terms are {', '.join(self.weights)}"
            )
        self.terms = nn.ModuleDict(
            {name: create_loss(name, **options.get(name, {})) for name in self.weights}
        )

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        terms = [weight * self.terms[name](prediction, target, mask) for name, weight in self.weights.items()]
        return torch.stack(terms).sum()


class MultiScaleLoss(nn.Module):
    """Weighted sum of a loss over the heads of a network.

    Each prediction is upsampled to the target's size, which keeps invalid pixels invalid. Source: Godard et al.,
    "Digging into Self-Supervised Monocular Depth Prediction", ICCV 2019.

    Args:
        loss: evaluated at each scale.
        weights: of the heads, finest first; heads beyond the last weight are ignored.
    """

    def __init__(self, loss: nn.Module, weights: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)) -> None:
        super().__init__()
        self.loss, self.weights = loss, weights

    def forward(self, predictions: list[Tensor], target: Tensor, mask: Tensor) -> Tensor:
        """Return the sum, a scalar, for predictions (N, 1, h, w) in metres, finest first."""
        losses = []
        for weight, prediction in zip(self.weights, predictions, strict=False):
            prediction = prediction.float()
            if prediction.shape[-2:] != target.shape[-2:]:
                size = target.shape[-2:]
                prediction = F.interpolate(prediction, size=size, mode="bilinear", align_corners=False)
            losses.append(weight * self.loss(prediction, target, mask))
        return torch.stack(losses).sum()


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _global_sum(value: Tensor) -> Tensor:
    """The sum over all processes; its gradient is that of the sum after DDP has averaged the processes' gradients."""
    if not _is_distributed():
        return value
    total, processes = value.detach().clone(), dist.get_world_size()
    dist.all_reduce(total)
    return total + processes * (value - value.detach())
