"""What every model of the zoo is made of: the contract, the normalisation, the head, the seam."""

import math
import warnings
from typing import Any, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthzoo.models.layers import match_size

MIN_SIZE = 32
FAR_OFF = (
    1.6  # times the pixels of the working size, or a part of them, at which trained weights are much worse
)
GOOD = 1.1  # times the AbsRel of the best size
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

    Trained weights hold their accuracy near their working size, ``card["size"]``, which
    :class:`depthzoo.Predictor` scales pictures to. A bare network in evaluation mode warns once of an image that is
    far from it.
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
        # None of this is for a graph: it may serve every size.
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            self._warn_of_size(image)
        # A body in half precision takes its own; the range of depth stays float32 whatever it is.
        body = next(self.parameters()).dtype
        logits = self.predict_logits(self.normalize(image).to(body))
        depth = self.head.depth(match_size(logits[0], image))
        return [depth, *map(self.head.depth, logits[1:])] if all_heads else depth

    def _warn_of_size(self, image: Tensor) -> None:
        if self.training or self._warned or not self.card or "size" not in self.card:
            return
        height, width = self.card["size"]
        # A card may have figures by size: those nearly as good as the best, and the sizes between them, are meant too.
        table = self.card.get("sizes") or {}
        errors = {size: row["abs_rel"] if isinstance(row, dict) else row for size, row in table.items()}
        good = [size for size, error in errors.items() if error <= GOOD * min(errors.values())]
        known = [math.prod(map(int, size.split("x"))) for size in good]
        area = image.shape[-2] * image.shape[-1]
        if not min([height * width / FAR_OFF, *known]) <= area <= max([height * width * FAR_OFF, *known]):
            self._warned = True
            warnings.warn(
                f"{self.name}: these weights work at {height}x{width} and are much less accurate on an image of "
                f"{image.shape[-2]}x{image.shape[-1]}; depthzoo.Predictor(model) scales each picture to fit",
                stacklevel=2,
            )
