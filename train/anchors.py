"""What a figure on the 654 test frames of NYU Depth V2 can be held against: floors, and published results."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

COLUMNS = {"abs_rel": "AbsRel", "rmse": "RMSE", "d1": "d1"}
Figure = float | tuple[float, float] | None


@dataclass(frozen=True)
class Anchor:
    """Figures of others, per-image, in the order of ``COLUMNS``; a pair is a range, None is not stated."""

    name: str
    figures: tuple[Figure, Figure, Figure]


FLOORS = (
    Anchor("a constant", (0.481, None, 0.371)),
    Anchor("the train set's log-mean depth map", (0.362, 1.072, 0.427)),
)
ANCHORS = {
    "795 train frames": (
        Anchor("Liu et al. 2015", (0.213, 0.759, 0.650)),
        Anchor("Roy & Todorovic 2016", (0.187, 0.744, None)),
        Anchor("ResNet-34 FPN, ImageNet", (0.181, 0.647, 0.725)),
        Anchor("ResNet-50 hybrid, ImageNet", (0.167, 0.614, 0.757)),
    ),
    "24,000 to 50,000 train frames": (
        Anchor("without ImageNet weights", ((0.175, 0.207), (0.60, 0.71), (0.67, 0.74))),
        Anchor("Hu et al. 2019, ResNet-50", (0.126, 0.555, 0.843)),
        Anchor("DenseDepth", (0.123, 0.465, 0.846)),
        Anchor("BTS, ResNet-50", (0.119, 0.419, 0.865)),
    ),
}


def is_nyu_test(info: dict[str, Any], split: str, protocol: str) -> bool:
    """Whether figures are of the 654 official frames by the Eigen protocol, so that these compare with them.

    Args:
        info: ``dataset.json``.
        split: of it.
        protocol: "eigen" or "full".
    """
    count = info["splits"].get(split, {}).get("count")
    return (
        split == "test"
        and count == 654
        and protocol == "eigen"
        and str(info.get("source", "")).startswith("nyu")
    )


def sections() -> Iterator[tuple[str, tuple[Anchor, ...]]]:
    """Title and anchors, from the floors up."""
    yield "floors, on the filled truth", FLOORS
    for title, anchors in ANCHORS.items():
        yield f"published, {title}", anchors


def show(figure: Figure) -> str:
    """ ".481", ".175-.207" or "-"."""
    if figure is None:
        return "-"
    parts = figure if isinstance(figure, tuple) else (figure,)
    return "-".join(f"{part:.3f}".removeprefix("0") for part in parts)


def anchor_table() -> str:
    """All of them as lines of text."""
    lines = [" " * 38 + "".join(f"{name:>12}" for name in COLUMNS.values())]
    for title, anchors in sections():
        lines.append(title)
        for anchor in anchors:
            lines.append(f"  {anchor.name:<36}" + "".join(f"{show(figure):>12}" for figure in anchor.figures))
    return "\n".join(lines)
