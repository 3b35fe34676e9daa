"""The claims of the project's first experiments, and verdicts on them from rows trained alike."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Recipes of train/recipes/reproduction in the order of training: a row comes after the one it starts from.
ROWS = ("mse", "mse_longer", "combined", "bounded", "bilinear", "resnet50", "berhu", "dispnet")
# Rows whose encoder is not the U-Net's: it may have pretrained weights, and keeps its width.
ENCODERS = ("resnet50", "dispnet")
# Metrics of which higher is better. Of all others, lower is.
HIGHER_IS_BETTER = ("d1", "edge_f1")
# Settings that rows must share to be compared.
SETTINGS = (
    *("machine", "device", "split", "height", "width", "epochs", "batch", "frames", "model_width"),
    "encoder_weights",
)


@dataclass(frozen=True)
class Claim:
    """A claim that one row is better than another.

    Attributes:
        text: the claim in words.
        better, other: names of rows.
        metric: the metric that decides it.
    """

    text: str
    better: str
    other: str
    metric: str


CLAIMS = (
    Claim("gradient and normal terms remove the lines", "combined", "mse_longer", "lines"),
    Claim("gradient and normal terms remove lines before other detail", "combined", "mse_longer", "peak"),
    Claim("gradient and normal terms sharpen depth edges", "combined", "mse_longer", "edge_f1"),
    Claim("bilinear upsampling removes the lines", "bilinear", "mse", "lines"),
    Claim("bilinear upsampling removes lines before other detail", "bilinear", "mse", "peak"),
    Claim("bilinear upsampling is more accurate", "bilinear", "mse", "abs_rel"),
    Claim("a bounded output removes the lines", "bounded", "mse", "lines"),
    Claim("an encoder of ResNet-50 is more accurate", "resnet50", "mse", "abs_rel"),
    Claim("the reverse Huber loss is more accurate than the squared error", "berhu", "mse", "abs_rel"),
    Claim("VGG16 with DispNet is more accurate", "dispnet", "mse", "abs_rel"),
)


@dataclass(frozen=True)
class Verdict:
    """What the rows say about a claim.

    Attributes:
        claim: the claim.
        pairs: for each seed with both rows, the metric of the row claimed to be better, and of the other.
        wins: number of pairs in which the claim holds.
    """

    claim: Claim
    pairs: tuple[tuple[float, float], ...]
    wins: int

    @property
    def word(self) -> str:
        """ "holds" or "fails" where all of three or more seeds agree, else "open"."""
        if len(self.pairs) < 3 or 0 < self.wins < len(self.pairs):
            return "open"
        return "holds" if self.wins else "fails"

    @property
    def means(self) -> tuple[float, float]:
        """Means of both rows over the seeds."""
        better, other = zip(*self.pairs, strict=True)
        return statistics.fmean(better), statistics.fmean(other)


def judge(rows: Iterable[Mapping[str, Any]], claims: Iterable[Claim] = CLAIMS) -> list[Verdict]:
    """Return a verdict on each claim for which at least one seed has both rows.

    Args:
        rows: with "row", "seed" and the metrics, all of the same settings.
        claims: to judge.
    """
    by_name: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["row"], {})[row["seed"]] = row
    verdicts = []
    for claim in claims:
        better, other = by_name.get(claim.better, {}), by_name.get(claim.other, {})
        pairs = tuple(
            (better[seed][claim.metric], other[seed][claim.metric])
            for seed in sorted(better.keys() & other.keys())
        )
        sign = -1 if claim.metric in HIGHER_IS_BETTER else 1
        if pairs:
            verdicts.append(Verdict(claim, pairs, sum(sign * a < sign * b for a, b in pairs)))
    return verdicts
