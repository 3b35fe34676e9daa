"""Colours, panels and point clouds against known answers."""

from pathlib import Path

import numpy as np
import pytest

from depthzoo import visualize
from depthzoo.colormaps import COLORMAPS
from depthzoo.prediction import Prediction

RAMP = np.linspace(1, 3, 201, dtype=np.float32)[None].repeat(50, axis=0)
BLACK = np.zeros((*RAMP.shape, 3), np.uint8)


@pytest.mark.parametrize("name", sorted(COLORMAPS))
def test_colors_are_matplotlibs(name: str) -> None:
    colormaps = pytest.importorskip("matplotlib").colormaps
    expected = np.rint(colormaps[name](np.arange(256))[:, :3] * 255)
    np.testing.assert_array_equal(visualize.colormap_lut(name), expected)


def test_turbo_goes_from_blue_over_green_to_red() -> None:
    """The ends and the middle that are published; nearest is last in the reversed map."""
    turbo = visualize.colormap_lut("turbo")
    np.testing.assert_array_equal(turbo[[0, -1]], [[48, 18, 59], [122, 4, 3]])
    assert turbo[128].argmax() == 1 and turbo[50].argmax() == 2 and turbo[220].argmax() == 0
    np.testing.assert_array_equal(visualize.colormap_lut("turbo_r"), turbo[::-1])


def test_range_stays_and_invalid_is_grey() -> None:
    depth = np.array([[0.5, 1.0, 2.0, 9.0, 0.0, -1.0, np.nan, np.inf]], np.float32)
    colors = visualize.colorize(depth, "gray", near=1, far=2)
    np.testing.assert_array_equal(colors[0, :, 0], [0, 0, 255, 255, *[visualize.INVALID] * 4])


def test_default_range_is_the_1st_and_99th_percentile() -> None:
    near, far = visualize.percentile_range(RAMP)
    assert near == pytest.approx(1.02, abs=0.011) and far == pytest.approx(2.98, abs=0.011)
    outlier = RAMP.copy()
    outlier[0, :3] = 0, np.nan, 1000
    assert visualize.percentile_range(outlier)[1] < 3
    assert visualize.percentile_range(np.zeros((3, 3))) == (0, 1)
    assert visualize.percentile_range(RAMP * 0 + 1, RAMP * 0 + 5) == (1, 5)


def test_constant_and_empty_depth_can_be_drawn() -> None:
    for value in (2.0, 0.0, np.nan):
        depth = np.full((5, 4), value, np.float32)
        assert len(np.unique(visualize.colorize(depth).reshape(-1, 3), axis=0)) == 1
        assert visualize.panel(np.zeros((5, 4, 3), np.uint8), depth, depth).dtype == np.uint8


def test_panel_holds_the_pictures_and_its_legend() -> None:
    image = np.full((300, 400, 3), (10, 20, 30), np.uint8)
    depth = np.linspace(1, 3, 400, dtype=np.float32)[None].repeat(300, axis=0)
    two = visualize.panel(image, depth, tile=400, colormap="gray", near=1, far=3)
    four = visualize.panel(image, depth, depth * 1.25, tile=400, colormap="gray", near=1, far=3)
    width = 400 + 2 * visualize.PAD
    assert two.shape[1] == 2 * width and four.shape[1] == 4 * width and two.shape[0] == four.shape[0]
    top, left = visualize.PAD + visualize.TITLE, visualize.PAD
    np.testing.assert_array_equal(two[top : top + 300, left : left + 400], image)
    shown = two[top : top + 300, width + left : width + left + 400, 0].astype(int)
    np.testing.assert_allclose(shown[0], np.linspace(0, 255, 400), atol=1)
    bar = two[top + 300 + visualize.PAD + 2, width + left : width + left + 400, 0].astype(int)
    np.testing.assert_allclose(bar, np.linspace(0, 255, 400), atol=1)
    # Some text is drawn below the bar.
    assert (two[top + 300 + visualize.PAD + visualize.BAR + 2 :, width:] < 128).any()
    # |p - d| / d is a fifth everywhere; the picture's cells are the same with and without a target.
    np.testing.assert_array_equal(four[:, :width], two[:, :width])


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (10, 3)])
def test_panel_of_odd_shapes(shape: tuple[int, int]) -> None:
    panel = visualize.panel(np.zeros((*shape, 3), np.uint8), np.ones(shape, np.float32), tile=64)
    assert panel.shape[1] == 2 * (visualize.MIN_CELL + 2 * visualize.PAD)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown colormap 'turboo': did you mean 'turbo'"):
        visualize.colorize(RAMP, "turboo")
    with pytest.raises(ValueError, match="near must be below far, got 3 and 2 m"):
        visualize.colorize(RAMP, near=3, far=2)
    with pytest.raises(ValueError, match="near must be below far"):
        visualize.panel(BLACK, RAMP, near=9)
    with pytest.raises(ValueError, match=r"target is \(3, 3\), depth is \(50, 201\)"):
        visualize.panel(BLACK, RAMP, np.ones((3, 3)))


def parse_ply(path: Path) -> tuple[list[str], np.ndarray]:
    header, _, body = path.read_bytes().partition(b"end_header\n")
    kind = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    return header.decode("ascii").splitlines(), np.frombuffer(body, kind)


def test_ply_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 5, (4, 6)).astype(np.float32)
    depth[0, 0], depth[3, 5] = 10, 0.001  # the clip limits are kept
    image = rng.integers(0, 256, (4, 6, 3), np.uint8)
    Prediction(depth, image, focal_px=3).save_ply(tmp_path / "a.ply")
    header, points = parse_ply(tmp_path / "a.ply")
    assert header[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "element vertex 24" in header and len(points) == 24
    names = [line.split()[-1] for line in header if line.startswith("property")]
    assert names == ["x", "y", "z", "red", "green", "blue"]
    np.testing.assert_array_equal(points["z"].reshape(4, 6), depth)
    np.testing.assert_array_equal(
        np.stack([points[c] for c in ("red", "green", "blue")], -1).reshape(4, 6, 3), image
    )
    # The axis between columns 2 and 3, rows 1 and 2.
    rows, columns = np.mgrid[:4, :6]
    np.testing.assert_allclose(points["x"].reshape(4, 6), (columns - 2.5) / 3 * depth, rtol=1e-5)
    np.testing.assert_allclose(points["y"].reshape(4, 6), (rows - 1.5) / 3 * depth, rtol=1e-5)


@pytest.mark.parametrize("shape", [(480, 640), (640, 480)])
def test_ply_of_the_kinect_by_default(tmp_path: Path, shape: tuple[int, int]) -> None:
    Prediction(np.ones(shape, np.float32), np.zeros((*shape, 3), np.uint8)).save_ply(tmp_path / "a.ply")
    _, points = parse_ply(tmp_path / "a.ply")
    # 518.86 px whichever way the camera was held.
    assert points["x"].max() == pytest.approx((shape[1] / 2 - 0.5) / 518.86, rel=1e-5)
    assert points["y"].max() == pytest.approx((shape[0] / 2 - 0.5) / 518.86, rel=1e-5)


def test_ply_of_a_large_picture_is_written_in_strips(tmp_path: Path) -> None:
    depth = np.arange(1100 * 1000, dtype=np.float32).reshape(1100, 1000)
    Prediction(depth, np.zeros((1100, 1000, 3), np.uint8)).save_ply(tmp_path / "a.ply")
    _, points = parse_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(points["z"], depth.ravel())
