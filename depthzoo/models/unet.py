"""The U-Net of 2015, padded and with BatchNorm, with its own or with bilinear upsampling."""

from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from depthzoo.models._api import build_model, register_model
from depthzoo.models.base import DepthHead, DepthModel, Encoder, HeadOptions
from depthzoo.models.layers import Upsample2x, conv_bn_relu, double_conv, match_size

WIDTH, LEVELS = 64, 5


class UNetEncoder(Encoder):
    """Double convolutions with 2x2 max pooling between; strides 1, 2, 4, 8, 16."""

    strides = (1, 2, 4, 8, 16)

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width must be a whole number of 1 or more, not {width!r}")
        self.out_channels = tuple(width << level for level in range(LEVELS))
        self.body = nn.ModuleList(
            double_conv(before, after)
            for before, after in zip((3, *self.out_channels), self.out_channels, strict=False)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.body[0](x)]
        for block in self.body[1:]:
            features.append(block(self.pool(features[-1])))
        return features


class UNetDecoder(nn.Module):
    """Upsamples, concatenates the skip, double convolution; four times.

    Args:
        widths: channels of the encoder's features, finest first.
        bilinear: bilinear upsampling and a 1x1 convolution in place of the transposed convolution.
    """

    def __init__(self, widths: tuple[int, ...], bilinear: bool) -> None:
        super().__init__()
        self.up = nn.ModuleList()
        self.conv = nn.ModuleList()
        for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True):
            if bilinear:
                self.up.append(nn.Sequential(conv_bn_relu(coarse, fine, kernel=1), Upsample2x()))
            else:
                self.up.append(nn.ConvTranspose2d(coarse, fine, 2, stride=2))
            self.conv.append(double_conv(2 * fine, fine))

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for up, conv, skip in zip(self.up, self.conv, features[-2::-1], strict=True):
            x = conv(torch.cat([match_size(up(x), skip), skip], dim=1))
        return x


class UNet(DepthModel):
    """U-Net (Ronneberger et al., MICCAI 2015) with padded convolutions, BatchNorm and a depth head."""

    def __init__(self, bilinear: bool = False, width: int = WIDTH, **options: Unpack[HeadOptions]) -> None:
        super().__init__()
        self.encoder = UNetEncoder(width)
        self.decoder = UNetDecoder(self.encoder.out_channels, bilinear)
        self.head = DepthHead(width, **options)

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        return [self.head.logits(self.decoder(self.encoder(image)))]


@register_model
def unet(
    *,
    weights: Any = "DEFAULT",
    encoder_weights: Any = None,
    head: str | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    mean_depth: float | None = None,
    width: int | None = None,
) -> DepthModel:
    """U-Net from scratch with a ConvTranspose decoder, 31.0M parameters.

    Encoder of five double 3x3 convolutions (64 to 1024 channels) with BatchNorm; decoder of transposed
    convolutions (kernel 2, stride 2). Source: Ronneberger et al., "U-Net", MICCAI 2015.

    Args:
        weights: "DEFAULT", a tag (none yet), a path to a .safetensors file or a run's folder, or None (random).
        encoder_weights: None or a path to an encoder file.
        head: "sigmoid", within [min_depth, max_depth], or "linear".
        min_depth, max_depth: metres; 0.001 and 10.
        mean_depth: metres; what a fresh model predicts, 2.54.
        width: channels of the finest level, 64, which each coarser one doubles.

    Returns:
        A model that takes (N, 3, H, W) RGB in [0, 1], H, W >= 32, and gives (N, 1, H, W) float32 metres. With
        trained weights feed it near their working size, or use :class:`depthzoo.Predictor`.

    Raises:
        ValueError: unknown tag, weights that do not fit, nothing to load, a bad option.
    """
    return build_model(
        UNet,
        "unet",
        weights,
        encoder_weights,
        head=head,
        min_depth=min_depth,
        max_depth=max_depth,
        mean_depth=mean_depth,
        width=width,
    )


@register_model
def unet_bilinear(
    *,
    weights: Any = "DEFAULT",
    encoder_weights: Any = None,
    head: str | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    mean_depth: float | None = None,
    width: int | None = None,
) -> DepthModel:
    """U-Net from scratch with bilinear upsampling: the same encoder as ``unet``, no checkerboard.

    Each step narrows with a 1x1 convolution and upsamples bilinearly, as Odena et al., "Deconvolution and
    Checkerboard Artifacts", Distill 2016, advise.

    Args:
        weights: "DEFAULT", a tag (none yet), a path to a .safetensors file or a run's folder, or None (random).
        encoder_weights: None or a path to an encoder file.
        head: "sigmoid", within [min_depth, max_depth], or "linear".
        min_depth, max_depth: metres; 0.001 and 10.
        mean_depth: metres; what a fresh model predicts, 2.54.
        width: channels of the finest level, 64, which each coarser one doubles.

    Returns:
        A model that takes (N, 3, H, W) RGB in [0, 1], H, W >= 32, and gives (N, 1, H, W) float32 metres. With
        trained weights feed it near their working size, or use :class:`depthzoo.Predictor`.

    Raises:
        ValueError: unknown tag, weights that do not fit, nothing to load, a bad option.
    """
    return build_model(
        partial(UNet, bilinear=True),
        "unet_bilinear",
        weights,
        encoder_weights,
        head=head,
        min_depth=min_depth,
        max_depth=max_depth,
        mean_depth=mean_depth,
        width=width,
    )
