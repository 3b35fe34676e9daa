"""Layers that the architectures share: convolution blocks, upsampling, and the decoder of the U-Nets."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Block: TypeAlias = Callable[[int, int], nn.Module]  # (in_channels, out_channels) to a module


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

    Shape: a list of features, finest first, to (N, ``out_channels``, H, W) of the finest feature's size.
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
        self.out_channels = below

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        x = self.narrow(x)
        for up, lateral, conv, skip in zip(self.up, self.skip, self.conv, reversed(skips), strict=True):
            skip = lateral(skip)
            x = conv(torch.cat([match_size(up(x), skip), skip], dim=1))
        return x
