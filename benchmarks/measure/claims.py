"""What the project's first experiments found or expected, and whether rows trained alike bear it out."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Recipes of train/recipes/reproduction, in the order of training: a row that goes on from another one comes after it.
ROWS = ("mse", "mse_longer", "combined", "bounded", "bilinear", "resnet50", "berhu", "dispnet")
# Those of another encoder than the U-Net's: it may have weights, and keeps its width.
ENCODERS = ("resnet50", "dispnet")
# Higher is better of these; of all others, lines and their peak too, lower.
RISING = ("d1", "edge_f1")


@dataclass(frozen=True)
class Claim:
    """One row is better than another by one figure.

    Attributes:
        says: the claim, in words.
        better, other: names of recipes.
        figure: that decides it.
    """

    says: str
    better: str
    other: str
    figure: str


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
    """What the rows say of a claim.

    Attributes:
        claim: that is judged.
        pairs: the figure of both rows for each seed that has both, the claimed better one first.
        wins: pairs in which it is.
    """

    claim: Claim
    pairs: tuple[tuple[float, float], ...]
    wins: int

    def word(self) -> str:
        """ "holds" or "fails" where all of three or more seeds agree, else "open"."""
        if len(self.pairs) < 3 or 0 < self.wins < len(self.pairs):
            return "open"
        return "holds" if self.wins else "fails"

    def means(self) -> tuple[float, float]:
        """Of both rows, over the seeds."""
        better, other = zip(*self.pairs, strict=True)
        return statistics.fmean(better), statistics.fmean(other)


def judge(
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]], claims: Sequence[Claim] = CLAIMS
) -> list[Verdict]:
    """A verdict on each claim of which at least one seed has both rows.

    Args:
        rows: figures by recipe and seed.
        claims: to be judged.
    """
    verdicts = []
    for claim in claims:
        better, other = rows.get(claim.better, {}), rows.get(claim.other, {})
        seeds = sorted(better.keys() & other.keys(), key=int)
        pairs = tuple((better[seed][claim.figure], other[seed][claim.figure]) for seed in seeds)
        sign = -1 if claim.figure in RISING else 1
        if pairs:
            verdicts.append(Verdict(claim, pairs, sum(sign * ours < sign * theirs for ours, theirs in pairs)))
    return verdicts
