"""Pseudo-labels: the teacher's own depth, in shards that training reads."""

import hashlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from depthzoo.models import create_model
from depthzoo.predictor import Predictor
from train.arguments import command
from train.loading import DecodedSet
from train.pictures import Picture, find_pictures
from train.pseudo import centre_crop, label, parser, run, sample_key
from train.shards import ShardDataset


def pseudo(*arguments: object) -> int:
    return command(parser(), run, [*map(str, arguments), "--device", "cpu"])


@pytest.mark.parametrize("flip", [False, True])
def test_shards_hold_the_depth_of_the_teacher(
    pictures: Path, teacher: Path, tmp_path: Path, flip: bool
) -> None:
    out = tmp_path / "set"
    more = ["--flip"] if flip else []
    arguments = ["--teacher", teacher, "--data", pictures, "--out", out, "--size", "48x64", "--batch-size", 4]
    assert pseudo(*arguments, "--terms", "of the pictures", *more) == 0
    dataset = ShardDataset(out, "train")
    assert len(dataset) == 6 and dataset.keys[2] == "0000002-attic-00002"
    assert dataset.focal_px == pytest.approx(51.886)  # 518.86 px at 640 wide, 64 wide
    model = create_model("unet_mobilenet_v3", weights=teacher)
    predict = Predictor(model, "cpu", flip=flip)
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
    assert str(tmp_path) not in json.dumps(info)
    assert DecodedSet(dataset).focal_px == dataset.focal_px
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_size_is_the_teachers_and_the_limit_is_spread(pictures: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert pseudo("--teacher", teacher.parent, "--data", pictures, "--out", out, "--limit", 3) == 0
    dataset = ShardDataset(out, "train")
    assert [key[-5:] for key in dataset.keys] == ["00000", "00002", "00004"]
    assert dataset[0][1].shape == (64, 96)


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


def test_keys_have_no_dot_and_no_slash() -> None:
    for name in ("a b/c.d/0001.x.webp", "0001.png", "ä/" + "long" * 40 + ".jpg"):
        key = sample_key(7, Picture(Path("x.tar"), name, 0, 1))
        assert key.startswith("0000007-") and key.isascii() and not set("./ ") & set(key) and len(key) < 80


class Stopping(torch.nn.Module):
    """A teacher that is told to stop in its second batch."""

    def __init__(self, error: bool) -> None:
        super().__init__()
        self.calls, self.error = 0, error

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 2:
            if self.error:
                raise OSError("no space left on device")
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.ones_like(image[:, :1])


class Far(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.full_like(image[:, :1], 70.0)


def test_far_depth_of_a_teacher_is_kept(pictures: Path, tmp_path: Path) -> None:
    found, size = find_pictures([pictures]), (64, 64)
    label(found, Predictor(Far(), "cpu", size), tmp_path / "set", size, 2, (0.001, 100.0))
    dataset = ShardDataset(tmp_path / "set", "train")
    assert dataset.depth_range == (0.001, 100.0)
    assert all((depth * dataset.depth_unit == 70).all() for _, depth in dataset)


@pytest.mark.parametrize("error", [False, True])
def test_nothing_half_written_stays(pictures: Path, tmp_path: Path, error: bool) -> None:
    predict = Predictor(Stopping(error), "cpu", (64, 64), batch_size=2)
    with pytest.raises(OSError if error else KeyboardInterrupt):
        label(find_pictures([pictures]), predict, tmp_path / "set", (48, 64), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--data", "nowhere"], "nowhere: no such tar or folder"),
        (["--teacher", "unet_resnet"], "did you mean 'unet_resnet50'"),
        (["--teacher", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--limit", "-1"], "--limit -1"),
        (["--out", "FULL"], "not empty"),
        (["--data", "BAD"], "1 of 1 pictures are unreadable"),
    ],
)
def test_bad_arguments_are_one_line(
    pictures: Path,
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    says: str,
) -> None:
    for name in ("FULL", "BAD"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"no picture")
    change = [str(tmp_path / word) if word in ("FULL", "BAD") else word for word in change]
    base = ["--teacher", teacher, "--data", pictures, "--out", tmp_path / "set", "--size", "48x64"]
    assert pseudo(*base, *change) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.strip().count("\n") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BAD", "FULL"]
