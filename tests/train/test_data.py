"""Decoded frames and the batches drawn from them; data that cannot be trained on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from depthzoo.errors import DatasetError
from train.codec import encode_depth, encode_image
from train.config import TrainConfig
from train.data import ShuffledFrames, Sources, TrainData
from train.distributed import World
from train.frames import Frames, decode_frames
from train.order import sample_draws
from train.shards import ShardDataset, ShardWriter, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def open_data(
    folder: Path, out: Path, world: World | None = None, further: tuple[Path, ...] = (), **settings: Any
) -> TrainData:
    """The opened data of a run."""
    config = TrainConfig(**{"size": (48, 64), "batch_size": 4, **settings})
    data = TrainData(config, Sources(folder, further), out, CPU, world or World())
    data.open()
    return data


# -- decoded frames -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["auto", "ram", "disk"])
def test_every_cache_holds_the_stored_pixels(small_shards: Path, tmp_path: Path, cache: str) -> None:
    dataset = ShardDataset(small_shards, "train")
    frames = decode_frames(dataset, CPU, cache=cache, workers=2, folder=tmp_path)
    assert frames.keys == dataset.keys and frames.focal_px == dataset.focal_px
    for index in range(len(dataset)):
        image, depth = dataset[index]
        assert torch.equal(frames.images[index], torch.from_numpy(image.copy()).permute(2, 0, 1))
        np.testing.assert_array_equal(frames.depths[index, 0].numpy().view(np.uint16), depth)
    assert list(tmp_path.iterdir()) == [], "the file of the memory map is unlinked"


def test_medians_are_metres_of_valid_depth(rooms_set: Path) -> None:
    dataset = ShardDataset(rooms_set, "train")
    medians = decode_frames(dataset, CPU).log_medians()
    for index in (0, 5):
        steps = dataset[index][1]
        assert medians[index] == pytest.approx(np.log(np.median(steps[steps > 0]) / 1000), abs=0.1)


@pytest.mark.parametrize(
    ("free", "cache", "resident"),
    [(700_000, "auto", True), (600_000, "auto", False), (400_000, "device", True), (10**9, "ram", False)],
)
def test_frames_go_to_a_gpu_that_is_large_enough(
    rooms_set: Path, monkeypatch: pytest.MonkeyPatch, free: int, cache: str, resident: bool
) -> None:
    """22 frames of 48x64 are 337,920 bytes at 5 bytes a pixel; "auto" takes at most half of what is free."""
    gpu, used, empty = torch.device("cuda"), [], torch.empty
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr(
        torch, "empty", lambda *size, device, **kind: used.append(device) or empty(*size, **kind)
    )
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    decode_frames(ShardDataset(rooms_set, "train"), gpu, cache=cache)
    assert used == [gpu if resident else None]


def test_a_gpu_that_is_too_small_is_one_line(rooms_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (300_000, 10**9))
    with pytest.raises(DatasetError, match=r"0\.0 GiB decoded, 0\.0 GiB free on cuda; use --cache ram"):
        decode_frames(ShardDataset(rooms_set, "train"), torch.device("cuda"), cache="device")


# -- batches --------------------------------------------------------------------------------------------------


def test_a_sample_is_the_same_in_any_batch(rooms_set: Path) -> None:
    frames = decode_frames(ShardDataset(rooms_set, "train"), CPU)
    whole, late = ShuffledFrames(frames, 3).batch(0, 50), ShuffledFrames(frames, 3).batch(37, 5)
    assert late.keys == whole.keys[37:42] and torch.equal(late.image, whole.image[37:42])
    np.testing.assert_array_equal(late.draws, whole.draws[37:42])
    # The first epoch has each frame once, with the draws of its index.
    assert sorted(whole.keys[:22]) == sorted(frames.keys)
    index = list(frames.keys).index(whole.keys[7])
    np.testing.assert_array_equal(whole.draws[7], sample_draws(3, 0, index))


def test_weighted_frames_are_repeated_with_other_draws() -> None:
    images, depths = torch.arange(6).view(6, 1, 1, 1).byte(), torch.zeros(6, 1, 1, 1, dtype=torch.int16)
    stream = ShuffledFrames(Frames(images, depths, list("abcdef"), 40.0), 0, np.array([5.0, 1, 1, 1, 1, 1]))
    batch = stream.batch(0, 6)
    twice = [i for i, key in enumerate(batch.keys) if key == "a"]
    assert len(twice) >= 3 and not (batch.draws[twice[0]] == batch.draws[twice[1]]).any()


def test_a_batch_mixes_its_data_sets(
    rooms_set: Path, small_shards: Path, nyu_set: Path, tmp_path: Path
) -> None:
    data = open_data(nyu_set, tmp_path, further=(rooms_set, small_shards), batch_size=8, mix=(0.25, 0.5))
    image, depth, mask, keys = data.batch(0, (48, 64))
    assert [key.split("-")[0] for key in keys] == ["nyu"] * 2 + ["room"] * 6
    assert image.shape == (8, 3, 64, 64) and depth.shape == mask.shape == (8, 1, 64, 64)
    # Orders of their own: the two sets of rooms hold the same frames.
    assert (
        keys[2:4] != keys[4:6] and data.describe()["mixed_with"] == [{"source": "rooms", "terms": "MIT"}] * 2
    )


def test_batches_keep_the_aspect_of_the_frames(rooms_set: Path, tmp_path: Path) -> None:
    data = open_data(rooms_set, tmp_path)
    for size, fed in (((32, 32), (32, 32)), ((96, 128), (96, 128)), ((64, 256), (96, 160))):
        image, depth, mask, _ = data.batch(0, size)
        assert image.shape[-2:] == depth.shape[-2:] == mask.shape[-2:] == fed


def test_frames_can_be_limited(rooms_set: Path, tmp_path: Path) -> None:
    data = open_data(rooms_set, tmp_path, frames=5, batch_size=2)
    assert (
        data.epoch_steps == 3 and len({k for step in range(10) for k in data.batch(step, (32, 32))[3]}) == 5
    )


def test_balance_draws_rare_depths_more_often(rooms_set: Path, tmp_path: Path) -> None:
    plain, balanced = (open_data(rooms_set, tmp_path, balance=power, batch_size=22) for power in (0.0, 1.0))
    for step in range(3):
        assert len(set(plain.batch(step, (32, 32))[3])) == 22 > len(set(balanced.batch(step, (32, 32))[3]))


def test_processes_share_the_batch_of_one(
    rooms_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "barrier", lambda self: None)
    whole = open_data(rooms_set, tmp_path)
    halves = [open_data(rooms_set, tmp_path, World(rank, 2, 0)) for rank in range(2)]
    for step in range(12):
        image, depth, mask, keys = whole.batch(step, (48, 64))
        parts = [half.batch(step, (48, 64)) for half in halves]
        assert [key for part in parts for key in part[3]] == keys
        for column, expected in enumerate((image, depth, mask)):
            assert torch.equal(torch.cat([part[column] for part in parts]), expected)


@pytest.mark.parametrize(
    ("size", "settings", "says"),
    [
        (23, {"batch_size": 23}, "23 processes for 22 train frames"),
        (3, {}, "batch_size 4 gives 4 images a step, which 3 processes .* cannot share evenly"),
        (2, {"accumulate": 4}, "2 processes with accumulate = 4 cannot share evenly"),
        (1, {"mix": (0.5,)}, r"mix = \[0.5\] needs 1 data sets \(--mix-data\), got 0"),
    ],
)
def test_batches_that_cannot_be_are_one_line(
    rooms_set: Path, tmp_path: Path, size: int, settings: dict[str, object], says: str
) -> None:
    config = TrainConfig(**{"batch_size": 4, **settings})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=says):
        TrainData(config, Sources(rooms_set), tmp_path, CPU, World(0, size, 0))


# -- data that are broken -------------------------------------------------------------------------------------


def corrupt(folder: Path, split: str) -> None:
    """Overwrite the last image of a split with zeros."""
    shard = sorted(folder.glob(f"{split}-*.tar"))[-1]
    _, _, at, size, *_ = json.loads(shard.with_suffix(".index.json").read_text())[-1]
    with open(shard, "r+b") as file:
        file.seek(at)
        file.write(bytes(size))


def other_size(folder: Path, split: str) -> None:
    """Write the train split in one shard, its last sample with half of the rows."""
    dataset = ShardDataset(folder, split)
    samples = list(zip(dataset.keys, dataset, strict=True))
    for path in folder.glob(f"{split}-*"):
        path.unlink()
    with ShardWriter(folder, split) as writer:
        for number, (key, (image, depth)) in enumerate(samples, 1):
            rows = 32 if number == len(samples) else 48
            writer.write(key, *encode_image(image[:rows]), encode_depth(depth[:rows] / 1000))
    splits = dataset.info["splits"]
    splits[split] |= writer.entry
    write_dataset(folder, splits, source="rooms")


@pytest.mark.parametrize(
    ("damage", "split", "says"),
    [
        (corrupt, "train", "sample 'room-.*': cannot be decoded: not a picture"),
        (corrupt, "val", "sample 'room-.*': cannot be decoded: not a picture"),
        (other_size, "train", "is 32x64, others 48x64; prepare the data with --size"),
    ],
)
def test_broken_frames_are_one_line_before_the_first_step(
    damage: Callable[[Path, str], None], split: str, says: str, folder: Path, tmp_path: Path
) -> None:
    damage(folder, split)
    with pytest.raises(DatasetError, match=says) as caught:
        open_data(folder, tmp_path)
    assert "\n" not in str(caught.value)
