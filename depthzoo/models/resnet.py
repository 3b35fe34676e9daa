"""U-Nets on a ResNet-50: a lean one, and the widely published heavy one."""

from functools import partial
from typing import Any

from torch import Tensor
from torchvision.models import ResNet50_Weights, resnet50

from depthzoo.models._api import Weights, build_model, register_model
from depthzoo.models.base import DepthModel, Encoder, UNet
from depthzoo.models.layers import (
    Decoder,
    DepthHead,
    Head,
    conv_bn_relu,
    conv_transpose,
    double_conv,
    pointwise,
)

IMAGENET = ResNet50_Weights.IMAGENET1K_V2


class ResNet50Encoder(Encoder):
    """torchvision's ResNet-50 without its classifier.

    Args:
        image_skip: return the image as the finest feature.
    """

    out_channels: tuple[int, ...] = (64, 256, 512, 1024, 2048)
    strides: tuple[int, ...] = (2, 4, 8, 16, 32)

    def __init__(self, image_skip: bool = False) -> None:
        super().__init__()
        self.image_skip = image_skip
        if image_skip:
            self.out_channels, self.strides = (3, *self.out_channels), (1, *self.strides)
        self.body = resnet50(weights=None)
        del self.body.fc, self.body.avgpool

    def forward(self, image: Tensor) -> list[Tensor]:
        body = self.body
        features = [body.relu(body.bn1(body.conv1(image)))]
        x = body.maxpool(features[0])
        for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
            x = layer(x)
            features.append(x)
        return [image, *features] if self.image_skip else features


class BridgedDecoder(Decoder):
    """Two 3x3 convolutions of the coarsest feature at full width, then transposed convolutions."""

    def __init__(self, channels: tuple[int, ...], widths: tuple[int, ...]) -> None:
        conv = partial(double_conv, bias=True)
        super().__init__(channels, widths, conv=conv, up=conv_transpose)
        self.bridge = conv(channels[-1], channels[-1])

    def forward(self, features: list[Tensor]) -> Tensor:
        return super().forward([*features[:-1], self.bridge(features[-1])])


def _unet_resnet50(head: Head = "sigmoid", **options: Any) -> UNet:
    encoder = ResNet50Encoder()
    widths = (256, 128, 64, 32)
    decoder = Decoder(encoder.out_channels, widths, conv=conv_bn_relu, lateral=pointwise, narrow=widths[0])
    return UNet(encoder, decoder, DepthHead(widths[-1], kernel=3, activation=head, **options))


def _unet_resnet50_heavy(head: Head = "sigmoid", **options: Any) -> UNet:
    encoder = ResNet50Encoder(image_skip=True)
    decoder = BridgedDecoder(encoder.out_channels, (1024, 512, 256, 128, 64))
    return UNet(encoder, decoder, DepthHead(64, kernel=1, activation=head, **options))


@register_model
def unet_resnet50(
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
    """U-Net on a ResNet-50 with a lean bilinear decoder, 26.1M parameters: the one to use.

    Lateral 1x1 convolutions reduce the skips, the decoder is 256, 128, 64 and 32 channels wide, and depth is predicted
    at half the size. Encoder: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

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
        _unet_resnet50, "unet_resnet50", weights, pretrained, encoder_weights, options, IMAGENET
    )


@register_model
def unet_resnet50_heavy(
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
    """The widely published U-Net with a ResNet-50 encoder, 147.8M parameters, half of them in its bridge.

    The image is a skip too, and the decoder has transposed convolutions with 1024 to 64 channels. It is a reference for
    comparison; ``unet_resnet50`` is the one to use. Encoder: He et al., "Deep Residual Learning for Image
    Recognition", CVPR 2016.

    Args:
        weights: "DEFAULT" or a tag (none yet), a path to a .safetensors file or a run folder, or None (random).
        pretrained: another way to give weights: True is "DEFAULT", False is None, a string is a tag.
        encoder_weights: with weights=None, "imagenet" (torchvision's IMAGENET1K_V2), a path to an encoder file, or
            None (random).
        head: "sigmoid" (default; between min_depth and max_depth) or "linear".
        out_channels: channels of the prediction, all in one range; 1 by default.
        min_depth, max_depth: range in metres; 0.001 and 10 by default.
        mean_depth: prediction of a fresh model in metres; 2.54 by default.

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
    }
    return build_model(
        _unet_resnet50_heavy, "unet_resnet50_heavy", weights, pretrained, encoder_weights, options, IMAGENET
    )
