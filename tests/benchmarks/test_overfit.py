"""Every architecture learns 8 real frames by heart: the two lightest here, all of them in the recorded figures."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import overfit
from depthzoo.models import list_models
from train.arguments import command
from train.augment import augment
from train.codec import encode_depth, encode_image
from train.config import AugmentConfig
from train.loading import DecodedSet, SampleStream
from train.shards import ShardDataset, ShardWriter, write_dataset

SIZE = (96, 128)
METRES_PER_STEP = 9.9955 / 255
# Fewer steps than the script's: what is asked for is the same.
STEPS = {"unet_mobilenet_v3": 100, "unet_resnet50": 80}


def write_shards(folder: Path, frames: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """A data set of nothing but train frames: uint8 (H, W, 3) and metres (H, W)."""
    with ShardWriter(folder, "train") as writer:
        for number, (image, depth) in enumerate(frames):
            writer.write(f"{number:04d}", *encode_image(image), encode_depth(depth))
    write_dataset(folder, {"train": {**writer.entry, "size": list(depth.shape), "focal_px": 500.0}})


@pytest.fixture(scope="module")
def real_set(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten real frames of different rooms, without the border."""
    folder, inside = real_data / "nyu_v2_labelled", (slice(8, 472), slice(8, 632))
    out = tmp_path_factory.mktemp("real") / "nyu"
    frames = []
    for number in range(20, 1420, 140):
        image, steps = (
            np.asarray(Image.open(folder / kind / f"{number:04d}.{form}"))[inside]
            for kind, form in (("images", "jpg"), ("depths", "png"))
        )
        frames.append((image, (steps + 0.5) * METRES_PER_STEP))
    write_shards(out, frames)
    return out


@pytest.fixture(scope="module")
def frames(real_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("overfit") / "frames"
    overfit.write_frames(real_set, out, SIZE)
    return out


def test_training_and_validation_see_the_same_pixels(frames: Path, real_set: Path) -> None:
    train, val = (ShardDataset(frames, split) for split in ("train", "val"))
    assert train.keys == val.keys and len(train) == 8
    assert set(train.keys) <= set(ShardDataset(real_set, "train").keys)
    batch = SampleStream(DecodedSet(train), seed=0).batch(0, 8)
    image, depth, _ = augment(batch, SIZE, AugmentConfig(), torch.device("cpu"))
    for i, key in enumerate(batch.keys):
        stored_image, stored_depth = val[val.keys.index(key)]
        np.testing.assert_allclose(255 * image[i].permute(1, 2, 0).numpy(), stored_image, atol=0.01)
        np.testing.assert_allclose(1000 * depth[i, 0].numpy(), stored_depth, atol=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_light_architecture_learns_8_frames_by_heart(name: str, frames: Path) -> None:
    assert overfit.overfit(name, frames, STEPS[name], SIZE)["abs_rel"] < overfit.TARGET


@pytest.mark.parametrize("name", list_models())
def test_every_architecture_has_done_so(name: str) -> None:
    stored = json.loads(overfit.RESULT.read_text())
    assert stored["frames"] == 8 and stored["target_abs_rel"] == 0.05
    figures = stored["models"][name]
    assert figures["abs_rel"] < 0.05 and figures["steps"] > 0
    assert (
        name in figures["command"] and {"torch", "depthzoo"} <= set(figures["versions"]) and figures["commit"]
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["unet_mobilenet"], "unknown model 'unet_mobilenet': did you mean 'unet_mobilenet_v3'"),
        ([], "no data set at nowhere: no such folder"),
        (["--size", "64x96"], "size 64x96: expected 4:3 and multiples of 32, as in 96x128"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(overfit.parser(), overfit.run, ["--data", "nowhere", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"overfit.py: error: {says}") and error.count("\n") == 1


def test_too_few_frames_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "few", [(np.zeros((48, 64, 3), np.uint8), np.ones((48, 64)))] * 3)
    with pytest.raises(ValueError, match="few has 3 train frames; 8 are needed"):
        overfit.write_frames(tmp_path / "few", tmp_path / "out", SIZE)
