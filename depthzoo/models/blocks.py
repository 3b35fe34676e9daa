"""What every model of the zoo is made of: the contract, the normalisation, the head, the seam."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthzoo import weights as weights_module

MIN_SIZE = 32
# exp(mean(ln d)) over the valid pixels of the 795 NYU Depth V2 train frames, in metres.
NYU_LOG_MEAN_DEPTH = 2.54


class HeadOptions(TypedDict, total=False):
    """Builder options that every architecture takes; see :class:`DepthHead`."""

    head: Literal["sigmoid", "linear"]
    min_depth: float
    max_depth: float
    mean_depth: float


class ImageNetNormalize(nn.Module):
    """Subtracts ImageNet's mean and divides by its deviation; RGB in [0, 1], shape (N, 3, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image.float() - self.mean) / self.std


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


class Encoder(nn.Module):
    """What a decoder can be built on.

    ``forward`` takes the normalised image (N, 3, H, W) and returns a list of features, finest first;
    feature ``i`` has ``out_channels[i]`` channels and 1/``strides[i]`` of the image's size, rounded
    as its convolutions round. A wrapped torchvision backbone is its attribute ``body``, so that an
    encoder file holds torchvision's own names.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]


class DepthHead(nn.Module):
    """The last convolution and the range of depth, in float32 even under autocast.

    ``kind="sigmoid"``: ``min_depth + (max_depth - min_depth) * sigmoid(x)``; ``kind="linear"``: x itself,
    which may leave the range and become negative. A fresh head predicts about ``mean_depth`` everywhere.

    Args:
        in_channels: channels of the features.
        kernel: size of the convolution.
        head: "sigmoid" or "linear".
        min_depth, max_depth: range in metres.
        mean_depth: metres; by default the log-mean depth of the NYU Depth V2 train frames.

    Shapes: features (N, in_channels, h, w); logits and depth (N, 1, h, w).

    Raises:
        ValueError: for another ``head``, or unless 0 < min_depth < mean_depth < max_depth.
    """

    def __init__(
        self,
        in_channels: int,
        kernel: int = 1,
        head: str = "sigmoid",
        min_depth: float = 0.001,
        max_depth: float = 10.0,
        mean_depth: float = NYU_LOG_MEAN_DEPTH,
    ) -> None:
        super().__init__()
        if head not in ("sigmoid", "linear"):
            raise ValueError(f"head must be 'sigmoid' or 'linear', not {head!r}")
        if not 0 < min_depth < mean_depth < max_depth:
            raise ValueError(
                f"depths must be 0 < min_depth < mean_depth < max_depth, not {min_depth}, {mean_depth}, {max_depth}"
            )
        self.kind, self.min_depth, self.max_depth = head, float(min_depth), float(max_depth)
        self.conv = nn.Conv2d(in_channels, 1, kernel, padding=kernel // 2)
        # Small weights: the first predictions are the bias, and the gradient still reaches the body.
        nn.init.normal_(self.conv.weight, std=0.01)
        share = (mean_depth - min_depth) / (max_depth - min_depth)
        bias = math.log(share / (1 - share)) if head == "sigmoid" else mean_depth
        nn.init.constant_(self.conv.bias, bias)  # type: ignore[arg-type]

    def logits(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            weight, bias = self.conv.weight.float(), self.conv.bias.float()  # type: ignore[union-attr]
            return F.conv2d(features.float(), weight, bias, padding=self.conv.padding)  # type: ignore[arg-type]

    def depth(self, logits: Tensor) -> Tensor:
        if self.kind == "linear":
            return logits
        return self.min_depth + (self.max_depth - self.min_depth) * torch.sigmoid(logits)

    def forward(self, features: Tensor) -> Tensor:
        return self.depth(self.logits(features))


class DepthModel(nn.Module):
    """Base of every model: RGB in, metres out.

    Attributes:
        name: the builder's name.
        arguments: builder options that rebuild the same architecture, JSON-able.
        card: the metadata of the loaded weights, or None for random ones.
        encoder: an :class:`Encoder`.
        head: the :class:`DepthHead` of the finest prediction.
    """

    name: str
    arguments: dict[str, Any]
    card: dict[str, Any] | None
    encoder: Encoder
    head: DepthHead

    def __init__(self) -> None:
        super().__init__()
        self.name = getattr(type(self), "name", type(self).__name__)
        self.arguments, self.card = {}, None
        self.normalize = ImageNetNormalize()

    @property
    def min_depth(self) -> float:
        """Metres; the smallest depth that a bounded head gives."""
        return self.head.min_depth

    @property
    def max_depth(self) -> float:
        """Metres; the largest depth that a bounded head gives."""
        return self.head.max_depth

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        """Normalised image to the logits of all heads, finest first, at their own sizes."""
        raise NotImplementedError

    def forward(self, image: Tensor, all_heads: bool = False) -> Tensor | list[Tensor]:
        """Depth of a batch of pictures.

        Args:
            image: (N, 3, H, W) float, RGB in [0, 1]; any H, W >= 32.
            all_heads: also return the coarser predictions of a network that has them.

        Returns:
            (N, 1, H, W) float32, metres; with ``all_heads`` a list, finest first, the first of the
            image's size and the others of their own.

        Raises:
            ValueError: for another shape, a smaller picture, or integers.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"{self.name}: image must be (N, 3, H, W), got {tuple(image.shape)}")
        if image.shape[-2] < MIN_SIZE or image.shape[-1] < MIN_SIZE:
            raise ValueError(
                f"{self.name}: image must be at least {MIN_SIZE}x{MIN_SIZE} pixels, "
                f"got {image.shape[-2]}x{image.shape[-1]}"
            )
        if not image.is_floating_point():
            raise ValueError(f"{self.name}: image must be float in [0, 1], got {image.dtype}; divide by 255")
        # A body in half precision takes its own; the range of depth stays float32 whatever it is.
        body = next(self.parameters()).dtype
        logits = self.predict_logits(self.normalize(image).to(body))
        depth = self.head.depth(match_size(logits[0], image))
        return [depth, *map(self.head.depth, logits[1:])] if all_heads else depth


def load_encoder(encoder: Encoder, encoder_weights: str | os.PathLike[str] | None, imagenet: Any) -> None:
    """Fills ``encoder.body``: None leaves it random, "imagenet" downloads torchvision's, a path reads a file.

    Raises:
        ValueError: for an encoder that has no ImageNet weights, a download that fails or has another digest, or a
            file that does not fit.
    """
    if encoder_weights is None:
        return
    if encoder_weights != "imagenet":
        weights_module.load_into(encoder.body, encoder_weights)  # type: ignore[arg-type]
        return
    if imagenet is None:
        raise ValueError(
            "encoder_weights='imagenet': this encoder is no ImageNet network; use None or a path"
        )
    try:
        state = imagenet.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # a digest that differs is a RuntimeError of torch.hub
        raise weights_module.WeightsError(
            f"encoder_weights='imagenet': cannot download {imagenet.url}: {weights_module.reason(error)}; without a "
            "network use none or a path"
        ) from error
    own = encoder.body.state_dict()  # type: ignore[union-attr]
    # By the file's keys: a file older than num_batches_tracked (VGG's) has none, and BatchNorm fills it in.
    body = {key: value for key, value in state.items() if key in own}
    encoder.body.load_state_dict(body, strict=True)  # type: ignore[union-attr]


def assemble(
    factory: Callable[..., DepthModel],
    name: str,
    weights: str | os.PathLike[str] | None,
    encoder_weights: str | os.PathLike[str] | None,
    imagenet: Any = None,
    **options: Any,
) -> DepthModel:
    """Builds a registered model and fills it.

    Trained weights bring their own options; one given here must agree with them.

    Raises:
        ValueError: for options that the weights contradict, and whatever loading raises.
    """
    if weights is None:
        model = factory(**options)
        model.name, model.arguments = name, dict(options)
        load_encoder(model.encoder, encoder_weights, imagenet)
        return model
    if encoder_weights is not None:
        raise ValueError(f"{name}: encoder_weights are for a fresh model; add weights=None")
    path = weights_module.find(name, weights)
    card = weights_module.read_metadata(path)
    arguments = dict(card.get("arguments", {}))
    for key, value in options.items():
        if key != "mean_depth" and value != arguments.get(key, OPTION_DEFAULTS.get(key)):
            trained = arguments.get(key, OPTION_DEFAULTS.get(key))
            raise ValueError(f"{name}: {path.name} was trained with {key}={trained!r}, not {value!r}")
    model = factory(**arguments)
    model.name, model.arguments, model.card = name, arguments, card
    weights_module.load_into(model, path)
    return model.eval()


# What a card that does not name an option means.
OPTION_DEFAULTS: dict[str, Any] = {"head": "sigmoid", "min_depth": 0.001, "max_depth": 10.0, "width": 64}
