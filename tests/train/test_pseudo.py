"""Pseudo-labels: the teacher's own depth, in shards that training reads."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from depthzoo.models import create_model
from depthzoo.prediction import Predictor
from train.cards import load_any
from train.prepare import prepare
from train.shards import ShardDataset
from train.sources.pseudo import Pseudo, centre_crop

Run = Callable[..., int]


@pytest.mark.parametrize("flip", [False, True])
def test_shards_hold_the_depth_of_the_teacher(
    pictures: Path, teacher: Path, tmp_path: Path, run_prepare: Run, flip: bool
) -> None:
    out = tmp_path / "set"
    words = ["pseudo", pictures, "--teacher", teacher, "--size", "48x64", "--terms", "of the pictures"]
    # By default in the teacher's mirror too.
    assert run_prepare(*words, *([] if flip else ["--no-flip"]), "--out", out, "--workers", 2) == 0
    dataset = ShardDataset(out, "train")
    assert len(dataset) == 6 and dataset.keys[2] == "0000002-attic-00002"
    assert dataset.focal_px == pytest.approx(51.886)  # 518.86 px at 640 wide, 64 wide
    predict = Predictor(create_model("unet_mobilenet_v3", weights=teacher), "cpu", flip=flip)
    for image, millimetres in dataset:
        depth = predict(image).depth
        assert image.shape == (48, 64, 3) and depth.std() > 0.005
        assert np.abs(millimetres / 1000 - depth).max() <= 0.001
    info = dataset.info
    assert info["teacher"] == {
        "model": "unet_mobilenet_v3",
        "tag": "test",
        "file": "model.safetensors",
        "sha256": hashlib.sha256(teacher.read_bytes()).hexdigest(),
        "terms": "of the teacher",
        "working_size": [64, 96],
        "flip": flip,
    }
    assert "of the pictures" in info["terms"] and "of the teacher" in info["terms"]
    assert info["pictures_from"] == ["rooms.tar"] and "518.86" in info["camera"]
    assert str(tmp_path) not in json.dumps(info) and str(teacher.parent) not in json.dumps(info)


def test_size_is_the_teachers_and_the_limit_is_spread(
    pictures: Path, teacher: Path, tmp_path: Path, run_prepare: Run
) -> None:
    out = tmp_path / "set"
    words = ["--teacher", teacher.parent, "--limit", 3, "--workers", 1, "--out", out]
    assert run_prepare("pseudo", pictures, *words) == 0
    dataset = ShardDataset(out, "train")
    assert [key[-5:] for key in dataset.keys] == ["00000", "00002", "00004"]
    assert dataset[0][1].shape == (64, 96)


def test_far_depth_of_a_teacher_is_kept(pictures: Path, teacher: Path, tmp_path: Path) -> None:
    source = Pseudo([pictures], str(teacher), size=(64, 64), flip=False)
    source.depth_range, source.depth_unit = (0.001, 100.0), 1 / 256
    predict = Predictor(load_any(str(teacher)), "cpu")
    image = source.load(source.items()[0]).image
    prepare(source, tmp_path / "set")
    dataset = ShardDataset(tmp_path / "set", "train")
    assert dataset.depth_range == (0.001, 100.0)
    np.testing.assert_allclose(dataset[0][1] / 256, predict(image).depth, atol=1 / 256)


@pytest.mark.parametrize(
    ("shape", "size", "middle"),
    [
        ((60, 60), (30, 40), (slice(7, 52), slice(0, 60))),  # too high: 45 rows of 60
        ((30, 80), (30, 40), (slice(0, 30), slice(20, 60))),  # too wide
        ((30, 40), (30, 40), (slice(0, 30), slice(0, 40))),
    ],
)
def test_centre_crop(shape: tuple[int, int], size: tuple[int, int], middle: tuple[slice, slice]) -> None:
    """What lies inside the crop is white, the rest black: the crop is all white."""
    image = np.zeros((*shape, 3), dtype=np.uint8)
    image[middle] = 255
    cropped = centre_crop(image, size)
    assert cropped.shape == (*size, 3) and (cropped == 255).all()


@pytest.mark.parametrize(
    ("pictures_are", "more", "says"),
    [
        ("nowhere", [], "nowhere: no such tar or folder"),
        ("bad", [], "x.png: not an image in a known format"),
        ("pictures", ["--teacher", "unet_resnet"], "did you mean 'unet_resnet50'"),
        ("pictures", ["--teacher", "nowhere.safetensors"], "nowhere.safetensors"),
        ("pictures", ["--limit", "-1"], "--limit -1"),
    ],
)
def test_bad_arguments_are_one_line(
    pictures: Path, teacher: Path, tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str],
    pictures_are: str, more: list[str], says: str,
) -> None:  # fmt: skip
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    path = pictures if pictures_are == "pictures" else tmp_path / pictures_are
    words = ["pseudo", path, "--teacher", teacher, "--out", tmp_path / "set", "--workers", 1]
    assert run_prepare(*words, *more) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.strip().count("\n") == 0
    assert not (tmp_path / "set").exists()
