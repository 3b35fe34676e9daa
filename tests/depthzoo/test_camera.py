"""One rule from a focal length to metres: in ``camera``, Predictor, point clouds and the command."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from depthzoo import camera, cli, cli_predict
from depthzoo.prediction import Focal, Predictor

HEIGHT, WIDTH = 48, 64
KINECT = 518.86 * WIDTH / 640  # pixels


class Wall(nn.Module):
    """2 m in the canonical camera."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.full_like(image[:, :1], 2.0)


def picture() -> np.ndarray:
    return np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def save(path: Path, film: int | None = None) -> Path:
    """A picture, with the focal length in millimetres of a 35 mm film where one is given."""
    exif = Image.Exif()
    if film is not None:
        exif.get_ifd(0x8769)[0xA405] = film
    Image.fromarray(picture()).save(path, exif=exif)
    return path


def points(path: Path) -> np.ndarray:
    """x, y, z of a point cloud, (H, W, 3)."""
    kind = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
    return np.frombuffer(path.read_bytes().partition(b"end_header\n")[2], kind)["xyz"].reshape(
        HEIGHT, WIDTH, 3
    )


def test_depth_scale_is_one_for_the_canonical_camera_at_any_size() -> None:
    assert camera.depth_scale(518.86, 640) == pytest.approx(1)
    assert camera.depth_scale(518.86 / 4, 160) == pytest.approx(1)
    assert camera.depth_scale(2 * 518.86, 640) == pytest.approx(2)
    for focal, width in ((0, 640), (-1, 640), (500, 0), (math.nan, 640), (math.inf, 640)):
        with pytest.raises(ValueError, match="expected two positive numbers"):
            camera.depth_scale(focal, width)


def test_field_of_view() -> None:
    assert camera.focal_length(6, 90) == pytest.approx(3)
    assert camera.focal_length(640, 63.33) == pytest.approx(518.86, rel=1e-3)
    for fov in (1, 179, 0, -60, 360, math.nan, math.inf):
        with pytest.raises(ValueError, match="fov must be between 1 and 179 degrees"):
            camera.focal_length(640, fov)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_two_cameras_see_one_wall(tmp_path: Path, factor: float) -> None:
    """What a lens of another focal length magnifies by a factor is further by that factor, and as large."""
    run = Predictor(Wall(), "cpu", (64, 64))
    clouds = []
    for focal in (KINECT, factor * KINECT):
        prediction = run(picture(), focal)
        assert prediction.focal_px == focal
        prediction.save_ply(tmp_path / "a.ply")
        clouds.append(points(tmp_path / "a.ply"))
    np.testing.assert_allclose(clouds[0][..., 2], 2, rtol=1e-6)
    np.testing.assert_allclose(clouds[1][..., 2], 2 * factor, rtol=1e-6)
    # x and y are z over the true focal length: the same part of the wall fills both pictures.
    np.testing.assert_allclose(clouds[1][..., :2], clouds[0][..., :2], rtol=1e-5)
    np.testing.assert_allclose(clouds[0][..., 0].max(), 2 * (WIDTH - 1) / 2 / KINECT, rtol=1e-5)


def test_a_camera_that_is_turned_keeps_its_scale() -> None:
    run = Predictor(Wall(), "cpu", (64, 64))
    for image in (picture(), picture().transpose(1, 0, 2)):
        for focal in (KINECT, None, "canonical"):
            prediction = run(image, focal)
            assert prediction.focal_px == pytest.approx(KINECT)
            np.testing.assert_allclose(prediction.depth, 2, rtol=1e-6)


def test_exif_is_used_unless_something_is_given(tmp_path: Path) -> None:
    run = Predictor(Wall(), "cpu", (64, 64))
    path = save(tmp_path / "a.jpg", film=36)  # as long as the picture is wide
    cases: list[tuple[Focal, float, str]] = [
        (None, WIDTH, "EXIF"),
        ("canonical", KINECT, "canonical"),
        (2 * KINECT, 2 * KINECT, "given"),
    ]
    for focal, expected, source in cases:
        prediction = run(path, focal)
        assert prediction.focal_px == pytest.approx(expected) and prediction.focal_source == source
        np.testing.assert_allclose(prediction.depth, 2 * expected / KINECT, rtol=1e-6)


def test_several_pictures_have_one_focal_length_or_each_their_own(tmp_path: Path) -> None:
    run = Predictor(Wall(), "cpu", (64, 64), batch_size=2)
    path = save(tmp_path / "a.jpg", film=36)
    found = [p.focal_px for p in run([path, picture(), path], [None, None, 50.0])]
    assert found == pytest.approx([WIDTH, KINECT, 50])
    assert [p.focal_px for p in run(torch.zeros(2, 3, HEIGHT, WIDTH), 50)] == [50, 50]
    with pytest.raises(ValueError, match="2 focal lengths for 1 images"):
        run([path], [1.0, 2.0])
    for focal in (0, -1.0, math.nan, math.inf, "kinect"):
        with pytest.raises(ValueError, match=r"^image 0: focal_px must be a positive number of pixels"):
            run([path], focal)  # type: ignore[call-overload]


def test_field_of_view_stands_for_a_focal_length(tmp_path: Path) -> None:
    run = Predictor(Wall(), "cpu", (64, 64))
    path = save(tmp_path / "a.jpg", film=36)
    for prediction in (run(path, fov=90), *run([path, picture()], fov=90)):
        assert prediction.focal_px == pytest.approx(WIDTH / 2) and prediction.focal_source == "given"
        np.testing.assert_allclose(prediction.depth, 2 * WIDTH / 2 / KINECT, rtol=1e-6)
    # The angle is horizontal, whichever way the camera was held.
    assert run(picture().transpose(1, 0, 2), fov=90).focal_px == pytest.approx(HEIGHT / 2)
    with pytest.raises(ValueError, match="fov must be between 1 and 179 degrees"):
        run(path, fov=0)
    with pytest.raises(ValueError, match="focal_px and fov are both given"):
        run(path, 50.0, fov=90)


@pytest.mark.parametrize(
    ("film", "arguments", "focal", "said"),
    [
        (None, [], KINECT, "52 px (canonical)"),
        (36, [], WIDTH, "64 px (EXIF)"),
        (36, ["--focal", "canonical"], KINECT, "52 px (canonical)"),
        (36, ["--focal", "100"], 100, "100 px (given)"),
        (None, ["--fov", "90"], WIDTH / 2, "32 px (given)"),
    ],
)
def test_the_command_and_python_agree(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    film: int | None,
    arguments: list[str],
    focal: float,
    said: str,
) -> None:
    run = Predictor(Wall(), "cpu", (64, 64))
    monkeypatch.setattr(cli_predict, "predictor", lambda *_, **__: run)
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.jpg", film)
    assert cli.main(["predict", "a.jpg", "--save", "npy,ply", *arguments]) == 0
    assert f"focal length {said} -> " in capsys.readouterr().out
    expected = run(tmp_path / "a.jpg", focal)
    np.testing.assert_array_equal(np.load("out/a.npy"), expected.depth)
    np.testing.assert_allclose(expected.depth, 2 * focal / KINECT, rtol=1e-6)
    expected.save_ply("python.ply")
    assert Path("python.ply").read_bytes() == Path("out/a.ply").read_bytes()
