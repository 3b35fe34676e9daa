"""Layers that the architectures share: convolution blocks, upsampling, the decoder of the U-Nets, and the head."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Head: TypeAlias = Literal["sigmoid", "linear"]
Block: TypeAlias = Callable[[int, int], nn.Module]  # (in_channels, out_channels) to a module

# exp(mean(ln d)) over the valid pixels of the 795 NYU Depth V2 train frames, in metres.
NYU_LOG_MEAN_DEPTH = 2.54


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 3, bias: bool = False) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    """1x1 convolution, BatchNorm, ReLU."""
    return conv_bn_relu(in_channels, out_channels, kernel=1)


def double_conv(in_channels: int, out_channels: int, bias: bool = False) -> nn.Sequential:
    """Two 3x3 convolutions, each with BatchNorm and ReLU: the block of the U-Net."""
    return nn.Sequential(
        *conv_bn_relu(in_channels, out_channels, bias=bias),
        *conv_bn_relu(out_channels, out_channels, bias=bias),
    )


def separable_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Depthwise 3x3 convolution and pointwise convolution, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        *pointwise(in_channels, out_channels),
    )


def conv_transpose(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """Transposed convolution that doubles the size; kernel 2, stride 2."""
    return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)


def match_size(x: Tensor, skip: Tensor) -> Tensor:
    """Resize ``x`` to the height and width of ``skip``, bilinear, unless they agree."""
    # The guard keeps Shape nodes out of an export: at multiples of 32 all sizes agree.
    if x.shape[-2:] != skip.shape[-2:]:
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
    return x


class Upsample2x(nn.Module):
    """Bilinear upsampling by two."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Decoder(nn.Module):
    """Decoder of a U-Net: at each level upsample, concatenate the skip, convolve.

    Args:
        channels: of the encoder's features, finest first.
        widths: output channels of the levels, coarsest first; one for each skip.
        conv: makes the convolution of a level, of the upsampled features and the skip.
        up: makes the upsampling of a level, to the level's width; by default bilinear, which keeps the channels.
        lateral: makes the convolution of a skip, to the level's width; by default the skip is taken as it is.
        narrow: channels to which a 1x1 convolution first reduces the coarsest feature; by default there is none.

    Shape: a list of features, finest first, to (N, ``widths[-1]``, H, W) of the finest feature's size.
    """

    def __init__(
        self,
        channels: Sequence[int],
        widths: Sequence[int],
        *,
        conv: Block,
        up: Block | None = None,
        lateral: Block | None = None,
        narrow: int | None = None,
    ) -> None:
        super().__init__()
        *skips, below = channels
        self.narrow: nn.Module = nn.Identity()
        if narrow is not None:
            self.narrow, below = pointwise(below, narrow), narrow
        self.up, self.skip, self.conv = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for width, skip in zip(widths, reversed(skips), strict=True):
            self.up.append(up(below, width) if up else Upsample2x())
            self.skip.append(lateral(skip, width) if lateral else nn.Identity())
            self.conv.append(conv((width if up else below) + (width if lateral else skip), width))
            below = width

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        x = self.narrow(x)
        for up, lateral, conv, skip in zip(self.up, self.skip, self.conv, reversed(skips), strict=True):
            skip = lateral(skip)
            x = conv(torch.cat([match_size(up(x), skip), skip], dim=1))
        return x


class DepthHead(nn.Module):
    """The last convolution and the range of depth, in float32 even under autocast.

    Args:
        in_channels: channels of the features.
        kernel: size of the convolution.
        activation: "sigmoid" gives ``min_depth + (max_depth - min_depth) * sigmoid(x)``; "linear" gives x, which may
            leave the range and become negative.
        min_depth, max_depth: range in metres.
        mean_depth: prediction of a fresh head, in metres; by default the log-mean depth of NYU Depth V2.
        out_channels: channels of the prediction.

    Shape: features (N, in_channels, H, W) to logits, and logits to depth, (N, out_channels, H, W).

    Raises:
        ValueError: for another activation, less than one channel, or unless 0 < min_depth < mean_depth < max_depth.
    """

    def __init__(
        self,
        in_channels: int,
        kernel: int = 1,
        activation: Head = "sigmoid",
        min_depth: float = 0.001,
        max_depth: float = 10.0,
        mean_depth: float = NYU_LOG_MEAN_DEPTH,
        out_channels: int = 1,
    ) -> None:
        super().__init__()
        if activation not in ("sigmoid", "linear"):
            raise ValueError(f"head must be 'sigmoid' or 'linear', not {activation!r}")
        if not 0 < min_depth < mean_depth < max_depth:
            raise ValueError(
                f"depths must be 0 < min_depth < mean_depth < max_depth, not {min_depth}, {mean_depth}, {max_depth}"
            )
        if not isinstance(out_channels, int) or out_channels < 1:
            raise ValueError(f"out_channels must be a whole number of 1 or more, not {out_channels!r}")
        self.activation, self.min_depth, self.max_depth = activation, float(min_depth), float(max_depth)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        # Small weights: the first predictions are the bias, and the gradient still reaches the body.
        nn.init.normal_(self.conv.weight, std=0.01)
        fraction = (mean_depth - min_depth) / (max_depth - min_depth)
        bias = math.log(fraction / (1 - fraction)) if activation == "sigmoid" else mean_depth
        nn.init.constant_(self.conv.bias, bias)  # type: ignore[arg-type]

    def renewed(self, head: Head, **options: Any) -> "DepthHead":
        """Return a fresh head for the same features, with the same dtype, device and mode."""
        fresh = DepthHead(self.conv.in_channels, self.conv.kernel_size[0], head, **options)
        return fresh.to(self.conv.weight).train(self.training)

    def logits(self, features: Tensor) -> Tensor:
        # Autocast does not know the meta device.
        with torch.autocast("cpu" if features.is_meta else features.device.type, enabled=False):
            weight, bias = self.conv.weight.float(), self.conv.bias.float()  # type: ignore[union-attr]
            return F.conv2d(features.float(), weight, bias, padding=self.conv.padding)  # type: ignore[arg-type]

    def depth(self, logits: Tensor) -> Tensor:
        if self.activation == "linear":
            return logits
        return self.min_depth + (self.max_depth - self.min_depth) * torch.sigmoid(logits)
