"""Blocks and resizing that the architectures share."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 3, bias: bool = False) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def double_conv(in_channels: int, out_channels: int, bias: bool = False) -> nn.Sequential:
    """Two 3x3 convolutions, each with BatchNorm and ReLU: the block of the U-Net."""
    return nn.Sequential(
        *conv_bn_relu(in_channels, out_channels, bias=bias),
        *conv_bn_relu(out_channels, out_channels, bias=bias),
    )


def separable_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Depthwise 3x3, then pointwise convolution, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        *conv_bn_relu(in_channels, out_channels, kernel=1),
    )


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize to ``size`` (H, W)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def match_size(x: Tensor, skip: Tensor) -> Tensor:
    """``x`` at the size of ``skip``; untouched where the sizes agree, so that export traces nothing."""
    if x.shape[-2:] != skip.shape[-2:]:
        x = resize(x, skip.shape[-2:])
    return x


class Upsample2x(nn.Module):
    """Bilinear upsampling by two, with no parameter of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
