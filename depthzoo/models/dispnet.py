"""VGG16 with the DispNet decoder, which predicts at four scales."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_BN_Weights, vgg16_bn

from depthzoo.models._api import build_model, register_model
from depthzoo.models.base import DepthHead, DepthModel, Encoder, HeadOptions
from depthzoo.models.layers import Upsample2x, match_size


class VGG16Encoder(Encoder):
    """torchvision's VGG16 with BatchNorm, tapped after each pooling; strides 2, 4, 8, 16, 32."""

    out_channels = (64, 128, 256, 512, 512)
    strides = (2, 4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.body = vgg16_bn(weights=None)
        del self.body.classifier, self.body.avgpool

    def forward(self, x: Tensor) -> list[Tensor]:
        features, first = [], 0
        for last, layer in enumerate(self.body.features):
            if isinstance(layer, nn.MaxPool2d):
                x = self.stage(x, first, last + 1)
                features.append(x)
                first = last + 1
        return features

    def stage(self, x: Tensor, first: int, last: int) -> Tensor:
        """Layers first, ..., last - 1: in a call of its own, which training can make forget its activations."""
        for index in range(first, last):
            x = self.body.features[index](x)
        return x


def _conv_leaky(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.LeakyReLU(0.1, inplace=True))


def _up_leaky(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1), nn.LeakyReLU(0.1, inplace=True)
    )


class DispNetVGG16(DepthModel):
    """Five transposed convolutions; the four finest levels predict, each from the coarser prediction too."""

    widths = (256, 128, 64, 32, 16)

    def __init__(self, **options: Unpack[HeadOptions]) -> None:
        super().__init__()
        self.encoder = VGG16Encoder()
        skips = (*self.encoder.out_channels[-2::-1], 0)  # /16 /8 /4 /2, and none at full size
        deep = self.encoder.out_channels[-1]
        self.up_features = nn.ModuleList()
        self.conv = nn.ModuleList()
        heads = []
        for level, (previous, width, skip) in enumerate(
            zip((deep, *self.widths), self.widths, skips, strict=False)
        ):
            coarser = 1 if level > 1 else 0
            self.up_features.append(_up_leaky(previous, width))
            self.conv.append(_conv_leaky(width + skip + coarser, width))
            if level > 0:
                heads.append(DepthHead(width, kernel=3, **options))
        self.coarse_heads = nn.ModuleList(heads[:-1])
        self.head = heads[-1]
        self.up_logits = Upsample2x()

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        features = self.encoder(image)
        skips = [*features[-2::-1], image]
        heads: list[DepthHead] = [*self.coarse_heads, self.head]  # type: ignore[list-item]
        x = features[-1]
        logits: list[Tensor] = []
        for level, (up, conv, skip) in enumerate(zip(self.up_features, self.conv, skips, strict=True)):
            parts = [match_size(up(x), skip)]
            if level < len(skips) - 1:
                parts.append(skip)
            if logits:
                parts.append(match_size(self.up_logits(logits[-1]), skip).to(parts[0].dtype))
            x = conv(torch.cat(parts, dim=1))
            if level > 0:
                logits.append(heads[level - 1].logits(x))
        return logits[::-1]


@register_model
def dispnet_vgg16(
    *,
    weights: Any = "DEFAULT",
    encoder_weights: Any = None,
    head: str | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    mean_depth: float | None = None,
) -> DepthModel:
    """VGG16-BN encoder with the DispNet decoder and four depth heads, 19.9M parameters.

    ``forward(image, all_heads=True)`` gives the depths at full, 1/2, 1/4 and 1/8 size, finest first. Sources:
    Mayer et al., "A Large Dataset to Train Convolutional Networks", CVPR 2016 (decoder); Fang et al., "Towards
    Good Practice for CNN-Based Monocular Depth Estimation", WACV 2020 (the pairing).

    Args:
        weights: "DEFAULT", a tag (none yet), a path to a .safetensors file or a run's folder, or None (random).
        encoder_weights: None, "imagenet" (torchvision's IMAGENET1K_V1), or a path to an encoder file.
        head: "sigmoid", within [min_depth, max_depth], or "linear".
        min_depth, max_depth: metres; 0.001 and 10.
        mean_depth: metres; what a fresh model predicts, 2.54.

    Returns:
        A model that takes (N, 3, H, W) RGB in [0, 1], H, W >= 32, and gives (N, 1, H, W) float32 metres. With
        trained weights feed it near their working size, or use :class:`depthzoo.Predictor`.

    Raises:
        ValueError: unknown tag, weights that do not fit, nothing to load, a bad option.
    """
    return build_model(
        DispNetVGG16,
        "dispnet_vgg16",
        weights,
        encoder_weights,
        VGG16_BN_Weights.IMAGENET1K_V1,
        head=head,
        min_depth=min_depth,
        max_depth=max_depth,
        mean_depth=mean_depth,
    )
