"""The contract of every model: RGB in, depth in metres out."""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthzoo.models.layers import Decoder, Upsample2x, match_size

MIN_SIZE = 32
# exp(mean(ln d)) over the valid pixels of the 795 NYU Depth V2 train frames, in metres.
NYU_LOG_MEAN_DEPTH = 2.54
# Trained weights lose accuracy beyond this factor in pixels from their working size.
SIZE_FACTOR = 1.6
# A size counts as good if its AbsRel is within this factor of the best size's.
GOOD = 1.1


class ImageNetNormalize(nn.Module):
    """Subtract ImageNet's mean and divide by its standard deviation; RGB in [0, 1], shape (N, 3, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image.float() - self.mean) / self.std


class Encoder(nn.Module):
    """Base of the encoders.

    ``forward`` takes the normalized image (N, 3, H, W) and returns a list of features, finest first: feature ``i``
    has ``out_channels[i]`` channels and 1/``strides[i]`` of the image's size. ``body`` is the backbone, whose keys an
    encoder file has.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    body: Any


class DepthHead(nn.Module):
    """The last convolution and the range of depth, in float32 even under autocast.

    Args:
        in_channels: channels of the features.
        kernel: size of the convolution.
        activation: "sigmoid" gives ``min_depth + (max_depth - min_depth) * sigmoid(x)``; "linear" gives x, which may
            leave the range and become negative.
        min_depth, max_depth: range in metres.
        mean_depth: prediction of a fresh head, in metres; by default the log-mean depth of NYU Depth V2.

    Shape: features (N, in_channels, H, W) to logits, and logits to depth, (N, 1, H, W).

    Raises:
        ValueError: for another activation, or unless 0 < min_depth < mean_depth < max_depth.
    """

    def __init__(
        self,
        in_channels: int,
        kernel: int = 1,
        activation: str = "sigmoid",
        min_depth: float = 0.001,
        max_depth: float = 10.0,
        mean_depth: float = NYU_LOG_MEAN_DEPTH,
    ) -> None:
        super().__init__()
        if activation not in ("sigmoid", "linear"):
            raise ValueError(f"head must be 'sigmoid' or 'linear', not {activation!r}")
        if not 0 < min_depth < mean_depth < max_depth:
            raise ValueError(
                f"depths must be 0 < min_depth < mean_depth < max_depth, not {min_depth}, {mean_depth}, {max_depth}"
            )
        self.activation, self.min_depth, self.max_depth = activation, float(min_depth), float(max_depth)
        self.conv = nn.Conv2d(in_channels, 1, kernel, padding=kernel // 2)
        # Small weights: the first predictions are the bias, and the gradient still reaches the body.
        nn.init.normal_(self.conv.weight, std=0.01)
        fraction = (mean_depth - min_depth) / (max_depth - min_depth)
        bias = math.log(fraction / (1 - fraction)) if activation == "sigmoid" else mean_depth
        nn.init.constant_(self.conv.bias, bias)  # type: ignore[arg-type]

    def logits(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            weight, bias = self.conv.weight.float(), self.conv.bias.float()  # type: ignore[union-attr]
            return F.conv2d(features.float(), weight, bias, padding=self.conv.padding)  # type: ignore[arg-type]

    def depth(self, logits: Tensor) -> Tensor:
        if self.activation == "linear":
            return logits
        return self.min_depth + (self.max_depth - self.min_depth) * torch.sigmoid(logits)


class DepthModel(nn.Module):
    """Base of the models. A subclass implements :meth:`predict_logits`.

    Attributes:
        name: name of the builder.
        arguments: builder options that rebuild the architecture, JSON-serializable.
        card: metadata of the loaded weights, or None for random ones.
        encoder: the :class:`Encoder`.
        head: the :class:`DepthHead` of the finest prediction.

    Trained weights are accurate near their working size, ``card["size"]``, to which :class:`depthzoo.Predictor`
    resizes each image. In evaluation mode a model warns once about an image far from that size.
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
        self._warned = False
        self.normalize = ImageNetNormalize()

    @property
    def min_depth(self) -> float:
        """Lower end of a bounded head's range, in metres."""
        return self.head.min_depth

    @property
    def max_depth(self) -> float:
        """Upper end of a bounded head's range, in metres."""
        return self.head.max_depth

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        """Return the logits of all heads, finest first, at their own sizes, from the normalized image."""
        raise NotImplementedError

    def forward(self, image: Tensor, all_heads: bool = False) -> Tensor | list[Tensor]:
        """Predict depth for a batch of images.

        Args:
            image: (N, 3, H, W) float, RGB in [0, 1], H and W at least 32.
            all_heads: also return the coarser predictions of a network that has them.

        Returns:
            (N, 1, H, W) float32 metres; with ``all_heads`` a list, finest first, the first at the image's size and
            the others at their own.

        Raises:
            ValueError: for another shape, a smaller image, or an integer dtype.
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
        # Not in a graph, which may serve every size.
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            self._warn_of_size(image)
        # The body may be in half precision; depth is float32 whatever it is.
        dtype = next(self.parameters()).dtype
        logits = self.predict_logits(self.normalize(image).to(dtype))
        depth = self.head.depth(match_size(logits[0], image))
        return [depth, *map(self.head.depth, logits[1:])] if all_heads else depth

    def _warn_of_size(self, image: Tensor) -> None:
        if self.training or self._warned or not self.card or "size" not in self.card:
            return
        height, width = self.card["size"]
        areas = [height * width / SIZE_FACTOR, height * width * SIZE_FACTOR]
        # A card may have figures by size: "HxW" to those of that size, or to its AbsRel alone.
        figures = self.card.get("sizes") or {}
        errors = {size: row["abs_rel"] if isinstance(row, dict) else row for size, row in figures.items()}
        for size, error in errors.items():
            if error <= GOOD * min(errors.values()):
                areas.append(math.prod(map(int, size.split("x"))))
        if not min(areas) <= image.shape[-2] * image.shape[-1] <= max(areas):
            self._warned = True
            warnings.warn(
                f"{self.name}: these weights work at {height}x{width} and are much less accurate on an image of "
                f"{image.shape[-2]}x{image.shape[-1]}; depthzoo.Predictor(model) resizes each image to fit",
                stacklevel=2,
            )


class UNet(DepthModel):
    """An encoder, a :class:`~depthzoo.models.layers.Decoder` and a head.

    The decoder ends at the size of the encoder's finest feature. If that is half the image's, the head predicts at half
    the size and its logits are upsampled.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, head: DepthHead) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = encoder, decoder, head
        self.up = Upsample2x() if encoder.strides[0] == 2 else nn.Identity()

    def predict_logits(self, image: Tensor) -> list[Tensor]:
        return [self.up(self.head.logits(self.decoder(self.encoder(image))))]
