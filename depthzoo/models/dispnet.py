"""VGG16 with the DispNet decoder, which predicts depth at four scales."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_BN_Weights, vgg16_bn

from depthzoo.models._api import Weights, build_model, register_model
from depthzoo.models.base import DepthModel, Encoder
from depthzoo.models.layers import DepthHead, Head, Upsample2x, match_size

IMAGENET = VGG16_BN_Weights.IMAGENET1K_V1


class VGG16Encoder(Encoder):
    """torchvision's VGG16 with BatchNorm, without its classifier; the features are those after each pooling."""

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
        """Run layers ``first`` to ``last`` - 1; a method of its own, so that training can checkpoint activations."""
        for index in range(first, last):
            x = self.body.features[index](x)
        return x


class DispNetVGG16(DepthModel):
    """VGG16 with five levels of transposed convolutions.

    The four finest levels have a head, and each takes the coarser level's prediction (its first channel) as one more
    channel.
    """

    def __init__(self, head: Head = "sigmoid", **options: Any) -> None:
        super().__init__()
        self.encoder = VGG16Encoder()
        *skips, below = (0, *self.encoder.out_channels)  # no skip at full size
        self.up_features, self.conv = nn.ModuleList(), nn.ModuleList()
        heads = []
        for level, (width, skip) in enumerate(zip((256, 128, 64, 32, 16), reversed(skips), strict=True)):
            up = nn.ConvTranspose2d(below, width, 4, stride=2, padding=1)
            conv = nn.Conv2d(width + skip + (level > 1), width, 3, padding=1)
            self.up_features.append(nn.Sequential(up, nn.LeakyReLU(0.1, inplace=True)))
            self.conv.append(nn.Sequential(conv, nn.LeakyReLU(0.1, inplace=True)))
            if level > 0:
                heads.append(DepthHead(width, kernel=3, activation=head, **options))
            below = width
        self.coarse_heads = nn.ModuleList(heads[:-1])
        self.head = heads[-1]
        self.up_logits = Upsample2x()

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        *skips, x = self.encoder(image)
        logits: list[Tensor] = []
        for up, conv, skip, head in zip(
            self.up_features,
            self.conv,
            [*reversed(skips), None],
            [None, *self.coarse_heads, self.head],
            strict=True,
        ):
            finer = image if skip is None else skip
            parts = [match_size(up(x), finer)]
            if skip is not None:
                parts.append(skip)
            if logits:
                # The first channel alone, so that a new head with other channels fits.
                coarser = logits[-1] if logits[-1].shape[1] == 1 else logits[-1][:, :1]
                parts.append(match_size(self.up_logits(coarser), finer).to(x.dtype))
            x = conv(torch.cat(parts, dim=1))
            if head is not None:
                logits.append(head.logits(x))
        return logits[::-1]


@register_model
def dispnet_vgg16(
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
    """VGG16-BN encoder with the DispNet decoder and four depth heads, 19.9M parameters.

    ``forward(image, all_heads=True)`` returns the depths at full, 1/2, 1/4 and 1/8 size, finest first. Sources:
    Mayer et al., "A Large Dataset to Train Convolutional Networks", CVPR 2016 (decoder); Fang et al., "Towards
    Good Practice for CNN-Based Monocular Depth Estimation", WACV 2020 (the combination).

    Args:
        weights: "DEFAULT" or a tag (none yet), a path to a .safetensors file or a run folder, or None (random).
        pretrained: another way to give weights: True is "DEFAULT", False is None, a string is a tag.
        encoder_weights: with weights=None, "imagenet" (torchvision's IMAGENET1K_V1), a path to an encoder file, or
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
    return build_model(DispNetVGG16, "dispnet_vgg16", weights, pretrained, encoder_weights, options, IMAGENET)
