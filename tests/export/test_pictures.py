from pathlib import Path

import numpy as np
import pytest

from export.pictures import Pictures
from train.shards import DatasetError, ShardDataset


def test_synthetic_ones_are_always_the_same_and_differ() -> None:
    batch = Pictures().batch(3, (32, 64), seed=5)
    assert batch.dtype == np.uint8 and batch.shape == (3, 32, 64, 3)
    assert np.array_equal(batch, Pictures().batch(3, (32, 64), seed=5))
    assert len({picture.tobytes() for picture in batch}) == 3
    assert Pictures().source == {"pictures": "synthetic", "data": "train.rooms"}


def test_real_ones_come_from_the_split_that_is_preferred(shards: Path) -> None:
    validation, train = Pictures(shards), Pictures(shards, ("train", "val"))
    assert validation.source == {"pictures": "real", "data": "kitchens", "split": "val"}
    assert str(train) == "frames of kitchens, train"
    frames = [picture.tobytes() for picture, _ in ShardDataset(shards, "val")]
    assert {picture.tobytes() for picture in validation.batch(6, (48, 64))} == set(frames)


def test_calibration_goes_through_the_split_evenly(shards: Path) -> None:
    frames = ShardDataset(shards, "train")
    batches = Pictures(shards, ("train",)).calibration(64, (48, 64), exact=True)
    assert len(batches) == len(frames) == 7
    for batch, (picture, _) in zip(batches, frames, strict=True):
        assert batch.dtype == np.float32 and np.array_equal(
            (batch[0] * 255).round(), picture.transpose(2, 0, 1)
        )


def test_calibration_keeps_the_aspect_or_squeezes(shards: Path) -> None:
    pictures = Pictures(shards, ("train",))
    assert pictures.calibration(1, (192, 192))[0].shape == (1, 3, 160, 224)
    assert pictures.calibration(1, (192, 192), exact=True)[0].shape == (1, 3, 192, 192)


def test_data_that_are_not_there(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        Pictures(tmp_path / "missing")
    with pytest.raises(DatasetError, match="no split test; it has: train, val"):
        Pictures(shards, ("test",))
