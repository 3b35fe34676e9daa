"""A U-Net on a MobileNetV3-Large, for CPUs, edge devices and browsers."""

from typing import Any

from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large

from depthzoo.models._api import Weights, build_model, register_model
from depthzoo.models.base import DepthModel, Encoder, UNet
from depthzoo.models.layers import Decoder, DepthHead, Head, separable_conv

IMAGENET = MobileNet_V3_Large_Weights.IMAGENET1K_V2


class MobileNetV3Encoder(Encoder):
    """torchvision's MobileNetV3-Large without its classifier."""

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


def _two_separable_convs(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        separable_conv(in_channels, out_channels), separable_conv(out_channels, out_channels)
    )


def _unet_mobilenet_v3(head: Head = "sigmoid", **options: Any) -> UNet:
    encoder = MobileNetV3Encoder()
    widths = (192, 128, 64, 32)
    decoder = Decoder(encoder.out_channels, widths, conv=_two_separable_convs, narrow=320)
    return UNet(encoder, decoder, DepthHead(widths[-1], kernel=3, activation=head, **options))


@register_model
def unet_mobilenet_v3(
    *,
    weights: Weights = "DEFAULT",
    pretrained: bool | str | None = None,
    encoder_weights: Weights = None,
    head: Head | None = None,
    out_channels: int | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    mean_depth: float | None = None,
) -> DepthModel:
    """U-Net on a MobileNetV3-Large with a depthwise-separable bilinear decoder, 3.5M parameters: for CPU and browser.

    Depth is predicted at half the size. Encoder: Howard et al., "Searching for MobileNetV3", ICCV 2019.

    Args:
        weights: "DEFAULT" or a tag ("nyu", which works at 192x256), a path to a .safetensors file or a run folder, or
            None (random).
        pretrained: another way to give weights: True is "DEFAULT", False is None, a string is a tag.
        encoder_weights: with weights=None, "imagenet" (torchvision's IMAGENET1K_V2), a path to an encoder file, or
            None (random).
        head: "sigmoid" (default; between min_depth and max_depth) or "linear".
        out_channels: channels of the prediction, all in one range; 1 by default.
        min_depth, max_depth: range in metres; 0.001 and 10 by default.
        mean_depth: prediction of a fresh model in metres; 2.54 by default.

    Returns:
        A model that takes (N, 3, H, W) RGB in [0, 1], H and W at least 32, and returns (N, 1, H, W) float32 metres.
        Trained weights are accurate near their working size, to which :class:`depthzoo.Predictor` resizes.

    Raises:
        ValueError: for an unknown tag, weights that cannot be loaded or do not fit, or a bad option.
    """
    options = {
        "head": head,
        "out_channels": out_channels,
        "min_depth": min_depth,
        "max_depth": max_depth,
        "mean_depth": mean_depth,
    }
    return build_model(
        _unet_mobilenet_v3, "unet_mobilenet_v3", weights, pretrained, encoder_weights, options, IMAGENET
    )
