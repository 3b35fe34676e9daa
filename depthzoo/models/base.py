"""The contract of every model: RGB in, depth in metres out."""

import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import torch
from torch import Tensor, nn

from depthzoo.models.layers import NYU_LOG_MEAN_DEPTH, Decoder, DepthHead, Head, Upsample2x, match_size
from depthzoo.weights import save_weights

MIN_SIZE = 32
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

    @overload
    def forward(self, image: Tensor, all_heads: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, image: Tensor, all_heads: Literal[True]) -> list[Tensor]: ...
    @overload
    def forward(self, image: Tensor, all_heads: bool) -> Tensor | list[Tensor]: ...
    def forward(self, image: Tensor, all_heads: bool = False) -> Tensor | list[Tensor]:
        """Predict depth for a batch of images.

        Args:
            image: (N, 3, H, W) float, RGB in [0, 1], H and W at least 32.
            all_heads: also return the coarser predictions of a network that has them.

        Returns:
            (N, 1, H, W) float32 metres, or as many channels as the head has; with ``all_heads`` a list, finest first,
            the first at the image's size and the others at their own.

        Raises:
            ValueError: for another shape, a smaller image, or an integer dtype.
        """
        normalized = self._normalized(image)
        # Not in a graph, which may serve every size.
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            self._warn_of_size(image)
        logits = self.predict_logits(normalized)
        depth = self.head.depth(match_size(logits[0], image))
        return [depth, *map(self.head.depth, logits[1:])] if all_heads else depth

    if TYPE_CHECKING:  # that of nn.Module returns Any
        __call__ = forward

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the features of the encoder, finest first.

        Feature ``i`` is (N, C, H, W) with C = ``encoder.out_channels[i]`` channels and 1/``encoder.strides[i]`` of the
        image's size. The size at which trained weights work best is ``card["size"]``.

        Args:
            image: as for :meth:`forward`.

        Raises:
            ValueError: as :meth:`forward`.
        """
        features: list[Tensor] = self.encoder(self._normalized(image))
        return features

    def reset_head(
        self,
        out_channels: int | None = None,
        head: Head | None = None,
        min_depth: float | None = None,
        max_depth: float | None = None,
        mean_depth: float | None = None,
    ) -> Self:
        """Replace the head (or all heads) by a fresh one for another range or number of channels, and return the model.

        The encoder and the decoder keep their weights; the new head has to be trained. :attr:`arguments` is updated, so
        that :meth:`save` and ``depthzoo.load`` keep the head. Metrics of the earlier weights leave :attr:`card`.
        Arguments that are not given stay as they are.

        Args:
            out_channels: channels of the prediction, all in one range; ``depthzoo.Predictor`` takes the first as depth.
            head: "sigmoid" (between min_depth and max_depth) or "linear".
            min_depth, max_depth: range in metres.
            mean_depth: first prediction of the new head, in metres; best exp(mean(ln d)) of the data to train on.

        Raises:
            ValueError: for another head, less than one channel, or unless 0 < min_depth < mean_depth < max_depth.
        """
        current: dict[str, Any] = {
            "head": self.head.activation,
            "out_channels": self.head.conv.out_channels,
            "min_depth": self.min_depth,
            "max_depth": self.max_depth,
            "mean_depth": self.arguments.get("mean_depth", NYU_LOG_MEAN_DEPTH),
        }
        given = {
            "head": head,
            "out_channels": out_channels,
            "min_depth": min_depth,
            "max_depth": max_depth,
            "mean_depth": mean_depth,
        }
        options = current | {key: value for key, value in given.items() if value is not None}
        heads = {name: module for name, module in self.named_modules() if isinstance(module, DepthHead)}
        for name, old in heads.items():
            self.set_submodule(name, old.renewed(**options))
        self.arguments = self.arguments | options
        self.card = self._inherited_card()
        return self

    def save(self, path: str | os.PathLike[str], *, half: bool = True, **card: Any) -> None:
        """Write the weights to a .safetensors file, which ``depthzoo.load`` turns into this model again.

        The header holds the model's name and arguments and a card. Of the card of the loaded weights it keeps the
        working size, the camera, the terms, and what the weights were trained on (as ``initialised_from``), but no
        figures: training has changed them. ``model.save(path, **model.card)`` keeps a card whole.

        Args:
            path: of the file; its folder is created.
            half: store matrices as float16, as the zoo does; if False, as float32.
            **card: entries of the card, JSON-serializable: ``size=[H, W]`` is the size that Predictor works at;
                ``metrics``, ``dataset``, ``recipe`` and ``terms`` are shown by ``depthzoo info``.

        Raises:
            WeightsError: for weights that are not finite, a card that is not JSON, or a file that cannot be written.
        """
        facts = {"unit": "m", "parameters": sum(p.numel() for p in self.parameters())}
        if self.head.activation == "sigmoid":
            facts["depth_range"] = [self.min_depth, self.max_depth]
        model = {"model": self.name, "arguments": self.arguments}
        whole = self.card is not None and self.card.items() <= card.items()
        own = {} if whole else self._inherited_card() or {}
        save_weights(path, self.state_dict(), own | facts | card | model, half=half)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, card: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Write ``model.safetensors``, ``config.json`` and ``README.md`` to a folder, as for the Hugging Face Hub.

        ``depthzoo.load`` and ``depthzoo.from_pretrained`` read it. Needs huggingface_hub, the extra ``hub``.

        Args:
            folder: is created.
            card: entries of the card; see :meth:`save`.
            **options: of ``huggingface_hub.ModelHubMixin.save_pretrained``.
        """
        from depthzoo.hub import HubModel  # an extra

        HubModel(self, card or {}, options.get("repo_id", "USER/NAME")).save_pretrained(
            Path(folder), **options
        )

    def push_to_hub(self, repo_id: str, *, card: dict[str, Any] | None = None, **options: Any) -> str:
        """Upload what :meth:`save_pretrained` writes to a repository of the Hugging Face Hub, and return its URL.

        Args:
            repo_id: "USER/NAME"; is created.
            card: entries of the card; see :meth:`save`.
            **options: of ``huggingface_hub.ModelHubMixin.push_to_hub``, as ``private`` and ``token``.
        """
        from depthzoo.hub import HubModel  # an extra

        return HubModel(self, card or {}, repo_id).push_to_hub(repo_id, **options)

    def _inherited_card(self) -> dict[str, Any] | None:
        """What the card says of weights that are trained further."""
        if self.card is None:
            return None
        kept = {key: self.card[key] for key in ("size", "camera", "terms") if key in self.card}
        before = ("dataset", "recipe", "trained_on", "initialised_from", "mixed_with")
        origin = {key: self.card[key] for key in before if self.card.get(key)}
        if set(origin) == {"initialised_from"}:  # not trained since
            origin = origin["initialised_from"]
        return kept | ({"initialised_from": origin} if origin else {})

    def _normalized(self, image: Tensor) -> Tensor:
        """The input of the encoder, in its dtype."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"{self.name}: image must be (N, 3, H, W), got {tuple(image.shape)}")
        if image.shape[-2] < MIN_SIZE or image.shape[-1] < MIN_SIZE:
            raise ValueError(
                f"{self.name}: image must be at least {MIN_SIZE}x{MIN_SIZE} pixels, "
                f"got {image.shape[-2]}x{image.shape[-1]}"
            )
        if not image.is_floating_point():
            raise ValueError(f"{self.name}: image must be float in [0, 1], got {image.dtype}; divide by 255")
        # The body may be in half precision; depth is float32 whatever it is.
        normalized: Tensor = self.normalize(image)
        return normalized.to(next(self.parameters()).dtype)

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
