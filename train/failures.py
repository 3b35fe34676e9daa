"""What a card says against its weights: how wrong they are, at what distance, in which frames, and their limits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from depthzoo.metrics import METRICS, EvalProtocol
from train.samples import ranked

DISTANCES = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 80.0)  # metres
WORST = 5
SHOWN = ("abs_rel", "rmse", "d1", "silog")
# Sources whose frames are all of rooms.
INDOORS = ("nyu", "rooms")


class ByDistance:
    """Adds up relative errors by true distance, over all pixels that count.

    Args:
        protocol: which pixels count, and what predictions are clipped to; the last band ends where it does.
    """

    def __init__(self, protocol: EvalProtocol) -> None:
        far = protocol.max_depth
        self.protocol, self.edges = protocol, (*(edge for edge in DISTANCES if edge < far), far)
        # Rows: pixels, |p - d| / d, (p - d) / d.
        self._sums = torch.zeros(3, len(self.edges) - 1, dtype=torch.float64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds pictures, both (N, 1, H, W) metres."""
        rules = self.protocol
        mask = rules.valid(target)
        truth = target[mask].double()
        error = (prediction[mask].double().clamp(rules.min_depth, rules.max_depth) - truth) / truth
        band = torch.bucketize(truth, torch.tensor(self.edges[1:-1], dtype=torch.float64), right=True)
        for row, values in zip(self._sums, (torch.ones_like(error), error.abs(), error), strict=True):
            row.index_add_(0, band, values)

    def compute(self) -> list[dict[str, Any]]:
        """For each band that has pixels: "metres" [from, to), "share" of the pixels, "abs_rel", and "bias", the mean of
        (p - d) / d: above 0 is too far."""
        count, absolute, signed = self._sums
        return [
            {
                "metres": [self.edges[i], self.edges[i + 1]],
                "share": round(float(count[i] / count.sum()), 4),
                "abs_rel": round(float(absolute[i] / count[i]), 4),
                "bias": round(float(signed[i] / count[i]), 4),
            }
            for i in range(len(count))
            if count[i]
        ]


def failures(rows: Tensor, keys: Sequence[str], by_distance: ByDistance) -> dict[str, Any]:
    """A card's "failures".

    Args:
        rows: (N, 9) figures of each frame, as ``train.evaluate.evaluate`` gives them.
        keys: of the frames.
        by_distance: of all of them.

    Returns:
        "by_distance" (see :class:`ByDistance`), "abs_rel" of the frames at the 10th, 50th and 90th percentile, and the
        "worst" frames by AbsRel with their figures: where SILog is far below 100 AbsRel, near and far are right and the
        scale is not.
    """
    order = ranked(rows)
    errors = rows[order, METRICS.index("abs_rel")]
    percentiles = torch.quantile(errors, torch.tensor([0.1, 0.5, 0.9], dtype=errors.dtype))
    names = ("best_tenth", "median", "worst_tenth")
    return {
        "by_distance": by_distance.compute(),
        "abs_rel": {name: round(float(value), 4) for name, value in zip(names, percentiles, strict=True)},
        "worst": [
            {"frame": keys[index]} | {key: round(float(rows[index, METRICS.index(key)]), 4) for key in SHOWN}
            for index in order[::-1][:WORST]
        ],
    }


def _of_rooms(card: dict[str, Any]) -> bool:
    """Whether all data sets of the weights, and of those that they began from, are known to be of rooms."""
    seen, before = [card.get("dataset") or {}, *(card.get("mixed_with") or ())], card.get("initialised_from")
    rooms = all(str(data.get("source")).startswith(INDOORS) for data in seen)
    return rooms and (not before or _of_rooms(before))


def limits(card: dict[str, Any]) -> list[str]:
    """What the weights of a card are not for, out of what it says of their training."""
    camera, (near, far), unit = card["camera"], card["depth_range"], card["unit"]
    return [
        *(["Rooms: nothing was learnt or measured outdoors."] if _of_rooms(card) else []),
        f"One camera, {camera['name']}: {camera['focal_px']:g} pixels of focal length at {camera['at_width']} wide. "
        "For another give its focal length, or multiply depth by f / (0.8107 * width), f its focal length in pixels.",
        f"Nothing was learnt nearer than {near:g} {unit} or beyond {far:g} {unit}; see failures for what near and far "
        "depth is worth.",
        f"Terms of the training data: {card['terms']}",
    ]
