"""A U-Net for CPUs, phones and browsers on a MobileNetV3-Large."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large

from depthzoo.models._api import build_model, register_model
from depthzoo.models.base import DepthHead, DepthModel, Encoder, HeadOptions
from depthzoo.models.layers import Upsample2x, conv_bn_relu, match_size, separable_conv


class MobileNetV3Encoder(Encoder):
    """torchvision's MobileNetV3-Large without its classifier; strides 2, 4, 8, 16, 32."""

    out_channels = (16, 24, 40, 112, 960)
    strides = (2, 4, 8, 16, 32)
    # The last layer of each stride in torchvision's ``features``.
    taps = (1, 3, 6, 12, 16)

    def __init__(self) -> None:
        super().__init__()
        self.body = mobilenet_v3_large(weights=None)
        del self.body.classifier, self.body.avgpool

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for index, layer in enumerate(self.body.features):
            x = layer(x)
            if index in self.taps:
                features.append(x)
        return features


class SeparableDecoder(nn.Module):
    """Bilinear upsampling, concat, two depthwise-separable convolutions; ends at stride 2.

    Args:
        channels: of the encoder's features, finest first.
        widths: of the decoder's levels, coarsest first; one more than the skips.
    """

    def __init__(self, channels: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        self.narrow = conv_bn_relu(channels[-1], widths[0], kernel=1)
        self.up = Upsample2x()
        self.conv = nn.ModuleList()
        for previous, width, skip in zip(widths, widths[1:], channels[-2::-1], strict=False):
            self.conv.append(
                nn.Sequential(separable_conv(previous + skip, width), separable_conv(width, width))
            )
        self.out_channels = widths[-1]

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.narrow(features[-1])
        for conv, skip in zip(self.conv, features[-2::-1], strict=True):
            x = conv(torch.cat([match_size(self.up(x), skip), skip], dim=1))
        return x


class MobileNetV3UNet(DepthModel):
    """MobileNetV3-Large with a depthwise-separable bilinear decoder; the head works at half the size."""

    def __init__(self, **options: Unpack[HeadOptions]) -> None:
        super().__init__()
        self.encoder = MobileNetV3Encoder()
        self.decoder = SeparableDecoder(MobileNetV3Encoder.out_channels, (320, 192, 128, 64, 32))
        self.head = DepthHead(self.decoder.out_channels, kernel=3, **options)
        self.up = Upsample2x()

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        return [self.up(self.head.logits(self.decoder(self.encoder(image))))]


@register_model
def unet_mobilenet_v3(
    *,
    weights: Any = "DEFAULT",
    encoder_weights: Any = None,
    head: str | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    mean_depth: float | None = None,
) -> DepthModel:
    """U-Net on a MobileNetV3-Large with a depthwise-separable bilinear decoder: for CPU, edge and browser.

    Encoder: Howard et al., "Searching for MobileNetV3", ICCV 2019. Depth is predicted at half the size.

    Args:
        weights: "DEFAULT", a tag ("nyu", which works at 192x256), a path to a .safetensors file or a run's folder,
            or None (random).
        encoder_weights: None, "imagenet" (torchvision's IMAGENET1K_V2), or a path to an encoder file.
        head: "sigmoid", within [min_depth, max_depth], or "linear".
        min_depth, max_depth: metres; 0.001 and 10.
        mean_depth: metres; what a fresh model predicts, 2.54.

    Returns:
        A model that takes (N, 3, H, W) RGB in [0, 1], H, W >= 32, and gives (N, 1, H, W) float32 metres. With
        trained weights feed it near their working size, or use :class:`depthzoo.Predictor`.

    Raises:
        ValueError: unknown tag, weights that do not fit, nothing to load, a bad option.
    """
    imagenet = MobileNet_V3_Large_Weights.IMAGENET1K_V2
    return build_model(
        MobileNetV3UNet,
        "unet_mobilenet_v3",
        weights,
        encoder_weights,
        imagenet,
        head=head,
        min_depth=min_depth,
        max_depth=max_depth,
        mean_depth=mean_depth,
    )
