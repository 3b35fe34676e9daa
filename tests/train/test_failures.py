"""Errors by distance and the worst frames, on depths whose errors are known."""

import pytest
import torch

from depthzoo.metrics import METRICS, EvalProtocol
from train.failures import ByDistance, failures, limits

WHOLE = EvalProtocol(crop=None)


def test_errors_by_true_distance() -> None:
    truth = torch.tensor([0.5, 1.0, 1.5, 4.0, 9.0, 0.0, 12.0]).reshape(
        1, 1, 1, 7
    )  # the last two do not count
    depth = torch.tensor([1.0, 0.5, 1.5, 6.0, 99.0, 1.0, 1.0]).reshape(1, 1, 1, 7)
    by_distance = ByDistance(WHOLE)
    by_distance.update(depth, truth)
    by_distance.update(depth[..., :1], truth[..., :1])
    found = {tuple(band["metres"]): band for band in by_distance.compute()}
    assert list(found) == [(0, 1), (1, 2), (3, 5), (5, 10)]  # nothing is between 2 and 3 m
    assert found[0, 1] == {"metres": [0, 1], "share": 0.3333, "abs_rel": 1.0, "bias": 1.0}
    assert found[1, 2] == {"metres": [1, 2], "share": 0.3333, "abs_rel": 0.25, "bias": -0.25}  # 1 m is in it
    assert found[3, 5]["bias"] == 0.5
    assert found[5, 10]["abs_rel"] == pytest.approx(1 / 9, abs=1e-4)  # clipped to 10 m, as the protocol does


def test_errors_of_all_bands_are_the_pooled_figure() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, depth = (10 * torch.rand(3, 1, 20, 20, generator=generator) + 0.01 for _ in range(2))
    by_distance = ByDistance(WHOLE)
    by_distance.update(depth, truth)
    counted = (truth < 10) & (truth > 1e-3)
    expected = ((depth.clamp(max=10) - truth).abs() / truth)[counted].mean()
    bands = by_distance.compute()
    assert sum(band["share"] * band["abs_rel"] for band in bands) == pytest.approx(float(expected), rel=1e-3)


def test_the_worst_frames_come_first_and_frames_without_truth_not_at_all() -> None:
    rows = torch.zeros(12, len(METRICS), dtype=torch.float64)
    rows[:, METRICS.index("abs_rel")] = torch.arange(12.0) / 10
    rows[:, METRICS.index("d1")] = 0.25
    rows[3] = torch.nan
    by_distance = ByDistance(WHOLE)
    by_distance.update(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    found = failures(rows, [f"{i:04d}" for i in range(12)], by_distance)
    assert [row["frame"] for row in found["worst"]] == ["0011", "0010", "0009", "0008", "0007"]
    assert found["worst"][0] == {"frame": "0011", "abs_rel": 1.1, "rmse": 0.0, "d1": 0.25, "silog": 0.0}
    assert found["abs_rel"] == {"best_tenth": 0.1, "median": 0.6, "worst_tenth": 1.0}


def test_limits_are_those_of_the_card() -> None:
    card = {
        "camera": {"name": "Pinhole", "focal_px": 300, "at_width": 400},
        "depth_range": [0.1, 80.0],
        "unit": "m",
        "terms": "none",
    }
    text = "\n".join(limits(card))
    assert "Pinhole: 300 pixels of focal length at 400 wide" in text and "beyond 80 m" in text
    assert text.endswith("training data: none")


NYU, ROOMS, PAIRS = ({"source": source} for source in ("nyu-labelled", "rooms", "pairs"))


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"dataset": NYU}, True),
        ({"dataset": NYU, "mixed_with": [ROOMS], "initialised_from": {"dataset": ROOMS}}, True),
        ({"dataset": PAIRS}, False),
        ({"dataset": NYU, "mixed_with": [{"source": "pseudo-labels"}]}, False),
        ({"dataset": NYU, "initialised_from": {"dataset": PAIRS}}, False),
        ({"dataset": NYU, "initialised_from": {"recipe": "of an older card"}}, False),
        ({}, False),
    ],
)
def test_outdoors_is_ruled_out_only_where_all_data_are_known_to_be_of_rooms(
    seen: dict[str, object], said: bool
) -> None:
    camera = {"name": "Pinhole", "focal_px": 300, "at_width": 400}
    card = {"camera": camera, "depth_range": [0.001, 10.0], "unit": "m", "terms": "none"}
    assert ("outdoors" in "\n".join(limits(card | seen))) == said


def test_bands_end_where_the_range_does() -> None:
    by_distance = ByDistance(EvalProtocol(crop=None, max_depth=50.0))
    by_distance.update(torch.full((1, 1, 1, 2), 30.0), torch.tensor([30.0, 45.0]).reshape(1, 1, 1, 2))
    assert [band["metres"] for band in by_distance.compute()] == [[20, 40], [40, 50]]
