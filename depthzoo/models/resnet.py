"""U-Nets on a ResNet-50: the published wide one and a lean one."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

from depthzoo.models._api import build_model, register_model
from depthzoo.models.base import DepthHead, DepthModel, Encoder, HeadOptions
from depthzoo.models.layers import Upsample2x, conv_bn_relu, double_conv, match_size


class ResNet50Encoder(Encoder):
    """torchvision's ResNet-50 without its classifier; strides 2, 4, 8, 16, 32."""

    out_channels = (64, 256, 512, 1024, 2048)
    strides = (2, 4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.body = resnet50(weights=None)
        del self.body.fc, self.body.avgpool

    def forward(self, x: Tensor) -> list[Tensor]:
        body = self.body
        features = [body.relu(body.bn1(body.conv1(x)))]
        x = body.maxpool(features[0])
        for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
            x = layer(x)
            features.append(x)
        return features


class WideDecoder(nn.Module):
    """Bridge of two 3x3 convolutions at full width, then ConvTranspose, concat, double convolution, five times.

    Args:
        channels: the encoder's features, finest first, preceded by the RGB image's 3.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        *skips, deep = channels
        self.bridge = double_conv(deep, deep, bias=True)
        self.up = nn.ModuleList()
        self.conv = nn.ModuleList()
        wide = deep
        for skip, width in zip(reversed(skips), (1024, 512, 256, 128, 64), strict=True):
            self.up.append(nn.ConvTranspose2d(wide, width, 2, stride=2))
            self.conv.append(double_conv(width + skip, width, bias=True))
            wide = width
        self.out_channels = wide

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.bridge(features[-1])
        for up, conv, skip in zip(self.up, self.conv, features[-2::-1], strict=True):
            x = conv(torch.cat([match_size(up(x), skip), skip], dim=1))
        return x


class LeanDecoder(nn.Module):
    """Narrows first, upsamples bilinearly, adds a narrowed skip, one 3x3 convolution; ends at stride 2.

    Args:
        channels: of the encoder's features, finest first.
        widths: of the decoder's levels, coarsest first; one per skip.
    """

    def __init__(self, channels: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        self.narrow = conv_bn_relu(channels[-1], widths[0], kernel=1)
        self.up = Upsample2x()
        self.skip = nn.ModuleList()
        self.conv = nn.ModuleList()
        for previous, width, skip in zip((widths[0], *widths), widths, channels[-2::-1], strict=False):
            self.skip.append(conv_bn_relu(skip, width, kernel=1))
            self.conv.append(conv_bn_relu(previous + width, width))
        self.out_channels = widths[-1]

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.narrow(features[-1])
        for narrow, conv, skip in zip(self.skip, self.conv, features[-2::-1], strict=True):
            skip = narrow(skip)
            x = conv(torch.cat([match_size(self.up(x), skip), skip], dim=1))
        return x


class WideResNet50UNet(DepthModel):
    """The widely published U-Net with a ResNet-50 encoder: RGB is a skip too, half of it is the bridge."""

    def __init__(self, **options: Unpack[HeadOptions]) -> None:
        super().__init__()
        self.encoder = ResNet50Encoder()
        self.decoder = WideDecoder((3, *ResNet50Encoder.out_channels))
        self.head = DepthHead(self.decoder.out_channels, **options)

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        return [self.head.logits(self.decoder([image, *self.encoder(image)]))]


class ResNet50UNet(DepthModel):
    """ResNet-50 with a lean bilinear decoder; the head works at half the size and its logits are upsampled."""

    def __init__(self, **options: Unpack[HeadOptions]) -> None:
        super().__init__()
        self.encoder = ResNet50Encoder()
        self.decoder = LeanDecoder(ResNet50Encoder.out_channels, (256, 128, 64, 32))
        self.head = DepthHead(self.decoder.out_channels, kernel=3, **options)
        self.up = Upsample2x()

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        return [self.up(self.head.logits(self.decoder(self.encoder(image))))]


@register_model
def unet_resnet50_heavy(
    *,
    weights: Any = "DEFAULT",
    encoder_weights: Any = None,
    head: str | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    mean_depth: float | None = None,
) -> DepthModel:
    """The published U-Net with a ResNet-50 encoder, 147.8M parameters, half of them in its bridge.

    Skips: the RGB image and 64, 256, 512, 1024 channels; ConvTranspose decoder 2048 to 64. It is here to be
    compared with; ``unet_resnet50`` is the one to use. Encoder: He et al., "Deep Residual Learning", CVPR 2016.

    Args:
        weights: "DEFAULT", a tag (none yet), a path to a .safetensors file or a run's folder, or None (random).
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
    imagenet = ResNet50_Weights.IMAGENET1K_V2
    return build_model(
        WideResNet50UNet,
        "unet_resnet50_heavy",
        weights,
        encoder_weights,
        imagenet,
        head=head,
        min_depth=min_depth,
        max_depth=max_depth,
        mean_depth=mean_depth,
    )


@register_model
def unet_resnet50(
    *,
    weights: Any = "DEFAULT",
    encoder_weights: Any = None,
    head: str | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    mean_depth: float | None = None,
) -> DepthModel:
    """U-Net on a ResNet-50 with a lean bilinear decoder: the one to use.

    Skips are narrowed by 1x1 convolutions, the decoder is 256, 128, 64, 32 wide, and depth is predicted at
    half the size. Encoder: He et al., "Deep Residual Learning", CVPR 2016.

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
    imagenet = ResNet50_Weights.IMAGENET1K_V2
    return build_model(
        ResNet50UNet,
        "unet_resnet50",
        weights,
        encoder_weights,
        imagenet,
        head=head,
        min_depth=min_depth,
        max_depth=max_depth,
        mean_depth=mean_depth,
    )
