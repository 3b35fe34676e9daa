"""Metrics against a NumPy implementation, by hand, at the edges of the crop, and on the real truth."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from depthzoo.metrics import METRICS, PROTOCOLS, DepthMetrics, EvalProtocol

FULL = EvalProtocol(crop=None)


def by_numpy(p: np.ndarray, d: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """The nine metrics of all valid pixels at once."""
    p, d = np.clip(p[valid].astype(np.float64), 1e-3, 10), d[valid].astype(np.float64)
    g, ratio = np.log(p) - np.log(d), np.maximum(p / d, d / p)
    return {
        "abs_rel": np.mean(np.abs(p - d) / d),
        "sq_rel": np.mean((p - d) ** 2 / d),
        "rmse": np.sqrt(np.mean((p - d) ** 2)),
        "rmse_log": np.sqrt(np.mean(g**2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(d))),
        "d1": np.mean(ratio < 1.25),
        "d2": np.mean(ratio < 1.25**2),
        "d3": np.mean(ratio < 1.25**3),
        "silog": 100 * np.std(g),
    }


def images(seed: int, count: int = 4, size: tuple[int, int] = (13, 17)) -> tuple[Tensor, Tensor]:
    """Predictions that leave the range, targets with zeros, NaN, infinities and depths beyond it."""
    g = torch.Generator().manual_seed(seed)
    target = 0.5 + 9 * torch.rand(count, 1, *size, generator=g)
    prediction = target * torch.exp(0.4 * torch.randn(target.shape, generator=g))
    prediction[0, 0, :2], prediction[1, 0, :2] = -1, 30
    holes = torch.rand(target.shape, generator=g)
    for below, junk in (
        (0.3, 0.0),
        (0.2, math.nan),
        (0.15, math.inf),
        (0.1, 1e-3),
        (0.05, 10.0),
        (0.02, -2.0),
    ):
        target[holes < below * torch.arange(1, count + 1).view(-1, 1, 1, 1) / count] = junk
    return prediction, target


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_numpy_in_both_averagings(seed: int, dtype: torch.dtype) -> None:
    prediction, target = (x.to(dtype) for x in images(seed))
    p, d = prediction.numpy(), target.numpy()
    with np.errstate(invalid="ignore"):
        valid = (d > 1e-3) & (d < 10)
    metrics = DepthMetrics(FULL)
    rows = torch.cat([metrics.update(prediction[:1], target[:1]), metrics.update(prediction[1:], target[1:])])
    result = metrics.compute()
    alone = [by_numpy(p[i], d[i], valid[i]) for i in range(len(p))]
    for i, name in enumerate(METRICS):
        assert [r[name] for r in alone] == pytest.approx(rows[:, i].tolist(), rel=1e-6)
        assert result["per_image"][name] == pytest.approx(np.mean([r[name] for r in alone]), rel=1e-6)
        assert result["pooled"][name] == pytest.approx(by_numpy(p, d, valid)[name], rel=1e-6)
    assert list(result["per_image"]) == list(result["pooled"]) == list(METRICS)


def test_small_case_by_hand() -> None:
    metrics = DepthMetrics(FULL)
    metrics.update(torch.tensor([[[1.0, 4.0], [3.0, 5.0]]]), torch.tensor([[[2.0, 4.0], [2.0, 0.0]]]))
    result = metrics.compute()["per_image"]
    ln2, ln15 = math.log(2), math.log(1.5)
    assert result == pytest.approx(
        {
            "abs_rel": (0.5 + 0 + 0.5) / 3,
            "sq_rel": (0.5 + 0 + 0.5) / 3,
            "rmse": math.sqrt(2 / 3),
            "rmse_log": math.sqrt((ln2**2 + ln15**2) / 3),
            "log10": (ln2 + ln15) / math.log(10) / 3,
            "d1": 1 / 3,
            "d2": 2 / 3,  # 1.5 < 1.5625
            "d3": 2 / 3,  # 2 > 1.953
            "silog": 100 * math.sqrt((ln2**2 + ln15**2) / 3 - ((ln15 - ln2) / 3) ** 2),
        }
    )


def test_abs_rel_divides_by_the_target() -> None:
    """The two arguments swapped would give 3 and 1."""
    metrics = DepthMetrics(FULL)
    metrics.update(torch.full((1, 1, 1), 1.0), torch.full((1, 1, 1), 4.0))
    assert metrics.compute()["pooled"]["abs_rel"] == 0.75
    assert metrics.compute()["pooled"]["sq_rel"] == 2.25


def test_threshold_itself_is_outside() -> None:
    metrics = DepthMetrics(FULL)
    metrics.update(torch.tensor([[[1.25, 1.2499]]]), torch.ones(1, 1, 2))
    assert metrics.compute()["pooled"]["d1"] == 0.5


def test_per_image_and_pooled_are_different_means() -> None:
    """An error of 1 m on one pixel, of 3 m on three: RMSE (1 + 3)/2 per image, sqrt(28/4) by pixel."""
    target = torch.tensor([[[2.0, 0.0, 0.0]], [[2.0, 2.0, 2.0]]])
    metrics = DepthMetrics(FULL)
    metrics.update(torch.tensor([[[3.0, 9.0, 9.0]], [[5.0, 5.0, 5.0]]]), target)
    result = metrics.compute()
    assert result["per_image"]["rmse"] == pytest.approx(2)
    assert result["pooled"]["rmse"] == pytest.approx(math.sqrt(7))
    assert result["per_image"]["abs_rel"] == pytest.approx((0.5 + 1.5) / 2)
    assert result["pooled"]["abs_rel"] == pytest.approx((0.5 + 3 * 1.5) / 4)


# The protocol.


def test_prediction_is_clipped_to_the_range_and_targets_outside_are_ignored() -> None:
    target = torch.tensor([[[8.0, 0.5, 10.0, 1e-3, 9.999, 0.0]]])
    metrics = DepthMetrics(FULL)
    metrics.update(torch.tensor([[[50.0, -3.0, 1.0, 1.0, 9.999, 1.0]]]), target)
    errors = [2.0, 0.499, 0.0]
    assert metrics.compute()["pooled"]["rmse"] == pytest.approx(
        math.sqrt(sum(e**2 for e in errors) / 3), rel=1e-6
    )
    metrics = DepthMetrics(EvalProtocol(crop=None, min_depth=1.0, max_depth=5.0))
    metrics.update(torch.tensor([[[9.0, 9.0]]]), torch.tensor([[[4.0, 6.0]]]))
    assert metrics.compute()["pooled"]["abs_rel"] == 0.25


@pytest.mark.parametrize(
    ("row", "column", "counts"),
    [
        *[(r, c, True) for r, c in ((45, 41), (45, 600), (470, 41), (470, 600), (240, 320))],
        *[(r, c, False) for r, c in ((44, 300), (471, 300), (300, 40), (300, 601), (0, 0), (479, 639))],
    ],
)
def test_eigen_crop_is_rows_45_to_471_and_columns_41_to_601(row: int, column: int, counts: bool) -> None:
    target = torch.full((1, 480, 640), 2.0)
    prediction = target.clone()
    prediction[0, row, column] = 4.0
    metrics = DepthMetrics()
    metrics.update(prediction, target)
    assert metrics.compute()["pooled"]["abs_rel"] == pytest.approx(1 / (426 * 560) if counts else 0)


def test_protocols_by_name() -> None:
    truth = torch.ones(480, 640)
    assert PROTOCOLS["eigen"].valid(truth).sum() == 426 * 560
    assert PROTOCOLS["full"].valid(truth).all()
    assert PROTOCOLS["full"].valid(torch.ones(1, 33, 47)).all()
    with pytest.raises(
        ValueError, match=r"the crop \(45, 471, 41, 601\) is for 480x640 targets, got 240x320"
    ):
        DepthMetrics().update(torch.ones(1, 240, 320), torch.ones(1, 240, 320))
    with pytest.raises(ValueError, match=r"the crop \(0, 9, 0, 9\) is for 480x640 targets"):
        EvalProtocol(crop=(0, 9, 0, 9)).valid(torch.ones(48, 64))


# What is left out and what is refused.


def test_an_image_without_valid_pixels_is_ignored() -> None:
    prediction, target = images(3)
    without = DepthMetrics(FULL)
    without.update(prediction, target)
    metrics = DepthMetrics(FULL)
    empty = torch.full_like(target[:1], math.nan)
    rows = metrics.update(torch.cat([prediction, prediction[:1]]), torch.cat([target, empty]))
    assert rows[-1].isnan().all()
    for averaging, figures in without.compute().items():  # four are summed in another order than five
        assert metrics.compute()[averaging] == pytest.approx(figures, rel=1e-9)


def test_no_valid_pixel_at_all_is_an_error() -> None:
    metrics = DepthMetrics(FULL)
    with pytest.raises(ValueError, match="no valid pixel"):
        metrics.compute()
    metrics.update(torch.ones(2, 1, 3, 3), torch.zeros(2, 1, 3, 3))
    with pytest.raises(ValueError, match="no valid pixel"):
        metrics.compute()


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_prediction_that_is_not_finite_is_refused_and_not_added(junk: float) -> None:
    prediction, target = torch.full((1, 3, 3), 3.0), torch.full((1, 3, 3), 2.0)
    metrics = DepthMetrics(FULL)
    metrics.update(prediction, target)
    before = metrics.compute()
    prediction[0, 1, 1] = junk
    with pytest.raises(ValueError, match="not finite"):
        metrics.update(prediction, target)
    assert metrics.compute() == before


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 3, 3\) and target \(1, 3, 3\) differ"):
        DepthMetrics(FULL).update(torch.ones(1, 1, 3, 3), torch.ones(1, 3, 3))
    for shape in ((3, 3), (1, 2, 3, 3), (3,)):  # (H, W) would take every row for an image
        with pytest.raises(ValueError, match=r"must be \(N, H, W\) or \(N, 1, H, W\)"):
            DepthMetrics(FULL).update(torch.ones(shape), torch.ones(shape))


# The floor.


@pytest.mark.slow
def test_the_floor_on_the_654(real_data: Path) -> None:
    """The train set's log-mean depth map has .362 / 1.072 m / .427 by others' count, on 16-bit truth perhaps.

    A constant at the train frames' mean, 2.842 m, has AbsRel .4745 and d1 .371, counted from histograms of the
    8-bit truth with no code of the project's.
    """
    folder = real_data / "nyu_v2_labelled"
    split = json.loads((folder / "splits.json").read_text())

    def truth(index: int) -> np.ndarray:
        value = np.asarray(Image.open(folder / "depths" / f"{index:04d}.png"), dtype=np.float64)
        return (value + 0.5) * 9.9955 / 255

    logs, mean = np.zeros((480, 640)), 0.0
    for index in split["train"]:
        depth = truth(index)
        logs += np.log(depth) / 795
        mean += depth.mean() / 795
    floors = {"map": torch.from_numpy(np.exp(logs)), "mean": torch.full((480, 640), mean)}
    metrics = {name: DepthMetrics() for name in floors}
    for index in split["test"]:
        target = torch.from_numpy(truth(index))
        for name, floor in floors.items():
            metrics[name].update(floor[None], target[None])
    figures = {name: m.compute() for name, m in metrics.items()}
    constant, depth_map = figures["mean"]["per_image"], figures["map"]["per_image"]
    assert mean == pytest.approx(2.8424, abs=1e-4)
    assert constant["abs_rel"] == pytest.approx(0.4745, abs=1e-4)
    assert constant["d1"] == pytest.approx(0.3713, abs=1e-4)
    assert figures["mean"]["pooled"]["rmse"] == pytest.approx(1.3545, abs=1e-4)
    assert [depth_map[k] for k in ("abs_rel", "rmse", "d1")] == pytest.approx(
        [0.362, 1.072, 0.427], abs=0.005
    )
