"""The U-Net of 2015 with padded convolutions and BatchNorm, with transposed convolutions or bilinear upsampling."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from depthzoo.models._api import Weights, build_model, register_model
from depthzoo.models.base import DepthModel, Encoder, UNet
from depthzoo.models.layers import (
    Decoder,
    DepthHead,
    Head,
    Upsample2x,
    conv_transpose,
    double_conv,
    pointwise,
)


class UNetEncoder(Encoder):
    """Five double convolutions with 2x2 max pooling between them.

    Args:
        width: channels of the finest feature; each coarser one has twice as many.
    """

    strides = (1, 2, 4, 8, 16)

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width must be a whole number of 1 or more, not {width!r}")
        self.out_channels = tuple(width * stride for stride in self.strides)
        self.body = nn.ModuleList(
            double_conv(before, after)
            for before, after in zip((3, *self.out_channels), self.out_channels, strict=False)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        first, *others = self.body
        features = [first(x)]
        for block in others:
            features.append(block(self.pool(features[-1])))
        return features


def _narrow_and_upsample(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(pointwise(in_channels, out_channels), Upsample2x())


def _unet(bilinear: bool, head: Head = "sigmoid", width: int = 64, **options: Any) -> UNet:
    encoder = UNetEncoder(width)
    up = _narrow_and_upsample if bilinear else conv_transpose
    decoder = Decoder(encoder.out_channels, encoder.out_channels[-2::-1], conv=double_conv, up=up)
    return UNet(encoder, decoder, DepthHead(width, kernel=1, activation=head, **options))


@register_model
def unet(
    *,
    weights: Weights = "DEFAULT",
    pretrained: bool | str | None = None,
    encoder_weights: Weights = None,
    head: Head | None = None,
    out_channels: int | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    mean_depth: float | None = None,
    width: int | None = None,
) -> DepthModel:
    """U-Net from scratch with transposed convolutions in the decoder, 31.0M parameters.

    The encoder has five double 3x3 convolutions (64 to 1024 channels) with BatchNorm. Source: Ronneberger et al.,
    "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.

    Args:
        weights: "DEFAULT" or a tag (none yet), a path to a .safetensors file or a run folder, or None (random).
        pretrained: another way to give weights: True is "DEFAULT", False is None, a string is a tag.
        encoder_weights: with weights=None, a path to an encoder file, or None (random).
        head: "sigmoid" (default; between min_depth and max_depth) or "linear".
        out_channels: channels of the prediction, all in one range; 1 by default.
        min_depth, max_depth: range in metres; 0.001 and 10 by default.
        mean_depth: prediction of a fresh model in metres; 2.54 by default.
        width: channels of the finest level, doubled by each coarser one; 64 by default.

    Returns:
        A model that takes (N, 3, H, W) RGB in [0, 1], H and W at least 32, and returns (N, 1, H, W) float32 metres.

    Raises:
        ValueError: for an unknown tag, weights that cannot be loaded or do not fit, or a bad option.
    """
    options = {
        "head": head,
        "out_channels": out_channels,
        "min_depth": min_depth,
        "max_depth": max_depth,
        "mean_depth": mean_depth,
        "width": width,
    }
    return build_model(partial(_unet, bilinear=False), "unet", weights, pretrained, encoder_weights, options)


@register_model
def unet_bilinear(
    *,
    weights: Weights = "DEFAULT",
    pretrained: bool | str | None = None,
    encoder_weights: Weights = None,
    head: Head | None = None,
    out_channels: int | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    mean_depth: float | None = None,
    width: int | None = None,
) -> DepthModel:
    """U-Net from scratch with bilinear upsampling in the decoder, 28.9M parameters: ``unet`` without the checkerboard.

    At each level a 1x1 convolution reduces the channels before bilinear upsampling. Source: Odena et al.,
    "Deconvolution and Checkerboard Artifacts", Distill 2016.

    Args:
        weights: "DEFAULT" or a tag (none yet), a path to a .safetensors file or a run folder, or None (random).
        pretrained: another way to give weights: True is "DEFAULT", False is None, a string is a tag.
        encoder_weights: with weights=None, a path to an encoder file, or None (random).
        head: "sigmoid" (default; between min_depth and max_depth) or "linear".
        out_channels: channels of the prediction, all in one range; 1 by default.
        min_depth, max_depth: range in metres; 0.001 and 10 by default.
        mean_depth: prediction of a fresh model in metres; 2.54 by default.
        width: channels of the finest level, doubled by each coarser one; 64 by default.

    Returns:
        A model that takes (N, 3, H, W) RGB in [0, 1], H and W at least 32, and returns (N, 1, H, W) float32 metres.

    Raises:
        ValueError: for an unknown tag, weights that cannot be loaded or do not fit, or a bad option.
    """
    options = {
        "head": head,
        "out_channels": out_channels,
        "min_depth": min_depth,
        "max_depth": max_depth,
        "mean_depth": mean_depth,
        "width": width,
    }
    return build_model(
        partial(_unet, bilinear=True), "unet_bilinear", weights, pretrained, encoder_weights, options
    )
