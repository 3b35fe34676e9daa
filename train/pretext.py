"""What an encoder can be pre-trained on: the kind of a picture, or that two views are of one picture."""

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from depthzoo.models import DepthModel

# Of SimSiam's heads, as in the paper.
WIDTH, BOTTLENECK = 2048, 512


class Pretext(nn.Module):
    """An encoder with a head that is thrown away afterwards.

    Attributes:
        views: how many augmented versions of each picture ``forward`` takes.
        encoder: as in the model of the zoo.
    """

    views: int

    def __init__(self, model: DepthModel) -> None:
        super().__init__()
        # The model itself stays outside: a pretext has the encoder's parameters and not the decoder's.
        self.normalize, self.encoder = model.normalize, model.encoder
        self.features = model.encoder.out_channels[-1]

    def embed(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float in [0, 1] to the mean of the deepest features, (N, C)."""
        deepest: Tensor = self.encoder(self.normalize(image))[-1]
        return deepest.float().mean((2, 3))

    def transform(self, size: int) -> Callable[[Tensor], Tensor]:
        """The random augmentation of one uint8 picture (3, h, w) to (3, size, size)."""
        raise NotImplementedError

    def forward(self, image: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss, and what else is to be logged.

        Args:
            image: (views * N, 3, H, W) float in [0, 1], one view of the whole batch after the other.
            labels: (N,) int64, indices of the kinds.
        """
        raise NotImplementedError


class Classify(Pretext):
    """Global average pooling and a linear layer tell the kinds apart; cross-entropy with label smoothing.

    Args:
        model: whose encoder is trained.
        kinds: how many there are.
        smoothing: of the labels.
    """

    views = 1

    def __init__(self, model: DepthModel, kinds: int, smoothing: float) -> None:
        super().__init__(model)
        self.linear, self.smoothing = nn.Linear(self.features, kinds), smoothing

    def transform(self, size: int) -> Callable[[Tensor], Tensor]:
        augmentation: Callable[[Tensor], Tensor] = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.3, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.3, 0.3, 0.3),
            ]
        )
        return augmentation

    def logits(self, image: Tensor) -> Tensor:
        """(N, kinds) float32."""
        logits: Tensor = self.linear(self.embed(image))
        return logits.float()

    def forward(self, image: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        return F.cross_entropy(self.logits(image), labels, label_smoothing=self.smoothing), {}


def similarity_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean negative cosine similarity of (N, D) and (N, D); no gradient goes through the target."""
    return -F.cosine_similarity(prediction.float(), target.detach().float(), dim=1).mean()


def spread(embedding: Tensor) -> float:
    """Standard deviation of the normalised (N, D) embedding times the root of D, mean over the channels.

    About 1 for embeddings that fill the sphere, 0 where all are one (Chen and He, section 4.1: 1/sqrt(D)).
    """
    unit = F.normalize(embedding.detach().float(), dim=1)
    return float(unit.std(dim=0).mean() * unit.shape[1] ** 0.5)


def _mlp(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for previous, width in pairwise(widths):
        layers += [nn.Linear(previous, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
    return layers


class SimSiam(Pretext):
    """Predicts the embedding of one view from another's, without negatives.

    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, with its heads and its
    augmentation; the kernel of the blur is a tenth of the size as in SimCLR.
    """

    views = 2

    def __init__(self, model: DepthModel) -> None:
        super().__init__(model)
        self.projector = nn.Sequential(
            *_mlp(self.features, WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH, bias=False),
            nn.BatchNorm1d(WIDTH, affine=False),
        )
        self.predictor = nn.Sequential(*_mlp(WIDTH, BOTTLENECK), nn.Linear(BOTTLENECK, WIDTH))

    def transform(self, size: int) -> Callable[[Tensor], Tensor]:
        augmentation: Callable[[Tensor], Tensor] = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                v2.RandomGrayscale(p=0.2),
                v2.RandomApply([v2.GaussianBlur(2 * (size // 20) + 1, sigma=(0.1, 2.0))], p=0.5),
                v2.RandomHorizontalFlip(),
            ]
        )
        return augmentation

    def forward(self, image: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        # Each view by itself: the statistics of BatchNorm must not tell one view about the other.
        first, second = (self.projector(self.embed(view)) for view in image.chunk(2))
        ahead, back = self.predictor(first), self.predictor(second)
        loss = similarity_loss(ahead, second) / 2 + similarity_loss(back, first) / 2
        return loss, {"spread": spread(first)}
