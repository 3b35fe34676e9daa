"""Frames in memory, on disk and ahead of time: the same pixels, and bad ones named."""

import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from train import loading
from train.codec import encode_depth, encode_image
from train.loading import DecodedSet, LazySet, SampleStream, as_tensors, open_frames, rarity, weighted_order
from train.shards import DatasetError, ShardDataset, ShardWriter, write_dataset

CPU = torch.device("cpu")
COUNT, SIZE = 12, (32, 48)


def frame(number: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB and metres that differ from number to number."""
    generator = np.random.default_rng(number)
    return generator.integers(0, 256, (*size, 3), dtype=np.uint8), generator.uniform(0.5, 9, size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 train frames of 32x48 in two shards."""
    with ShardWriter(tmp_path, "train", samples_per_shard=8) as writer:
        for number in range(COUNT):
            image, depth = frame(number)
            writer.write(f"f{number:02d}", *encode_image(image), encode_depth(depth))
    write_dataset(tmp_path, {"train": {**writer.entry, "size": list(SIZE), "focal_px": 40.0}})
    return tmp_path


def spoil(folder: Path, *keys: str) -> None:
    """Overwrites the pictures of some samples."""
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            places = [(m.offset_data, m.size) for m in tar if m.name.removesuffix(".png") in keys]
        with open(path, "r+b") as file:
            for at, size in places:
                file.seek(at)
                file.write(b"\0" * size)


def expected(numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    images, metres = zip(*(frame(number) for number in numbers), strict=True)
    depth = np.rint(np.stack(metres) * 1000).astype(np.int16)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(depth).unsqueeze(1)


@pytest.mark.parametrize("cache", ["auto", "ram", "device", "none"])
def test_every_cache_gives_the_stored_pixels(folder: Path, cache: str) -> None:
    frames = open_frames(ShardDataset(folder, "train"), cache, CPU, workers=2)
    assert isinstance(frames, LazySet if cache == "none" else DecodedSet)
    assert frames.keys == [f"f{number:02d}" for number in range(COUNT)] and frames.focal_px == 40.0
    numbers = [7, 0, 11, 7]
    images, depths = frames.fetch(numbers)
    assert images.dtype == torch.uint8 and depths.dtype == torch.int16
    for one, other in zip((images, depths), expected(numbers), strict=True):
        assert torch.equal(one, other)


def test_decoding_in_parts_keeps_the_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "DECODED_AHEAD", 5)
    frames = DecodedSet(ShardDataset(folder, "train"), workers=3)
    assert torch.equal(frames.images, expected(list(range(COUNT)))[0])


def test_a_fetched_batch_is_nobody_elses(folder: Path) -> None:
    frames = DecodedSet(ShardDataset(folder, "train"))
    images, depths = frames.fetch([3])
    images.zero_()
    depths.zero_()
    for one, other in zip(frames.fetch([3]), expected([3]), strict=True):
        assert torch.equal(one, other)


def test_steps_of_16_bits_survive_the_decoded_form() -> None:
    image, depth = np.zeros((2, 2, 3), np.uint8), np.array([[0, 1], [32768, 65535]], np.uint16)
    decoded = as_tensors(image, depth)[1]
    assert decoded.dtype == torch.int16
    assert (decoded.int() & 0xFFFF).tolist() == [[[0, 1], [32768, 65535]]]


def test_a_weighted_epoch_draws_each_frame_as_often_as_its_weight() -> None:
    weights = np.array([0.5, 1.0, 2.0, 0.5])
    counts = np.zeros(4)
    for epoch in range(400):
        order = weighted_order(3, epoch, weights)
        drawn = np.bincount(order % 4, minlength=4)
        assert len(order) == 4 and drawn.sum() == 4 and len(set(order.tolist())) == 4
        assert (np.floor(weights) <= drawn).all() and (drawn <= np.ceil(weights)).all()
        counts += drawn
    assert counts / 400 == pytest.approx(weights, abs=0.1)
    np.testing.assert_array_equal(weighted_order(3, 7, weights), weighted_order(3, 7, weights))


def test_rare_depths_weigh_more() -> None:
    medians = np.log(np.concatenate([np.full(90, 2.5), np.full(9, 1.2), [0.7], [np.nan]]))
    weights = rarity(medians, 0.5)
    assert weights[0] == pytest.approx(1) and weights[-1] == 1
    # Ten times as rare, drawn about 10 ** 0.5 times as often.
    assert weights[90] == pytest.approx(10**0.5, rel=0.1) and weights[99] == 5
    assert (rarity(medians, 0.0) == 1).all() and (rarity(np.full(3, np.nan), 0.5) == 1).all()


def test_a_weighted_stream_repeats_frames_with_other_draws(folder: Path) -> None:
    frames = DecodedSet(ShardDataset(folder, "train"), progress=False)
    weights = np.ones(len(frames.keys))
    weights[0] = 5.0
    stream = SampleStream(frames, 0, weights=weights)
    batch = stream.batch(0, len(weights))
    twice = [i for i, key in enumerate(batch.keys) if key == frames.keys[0]]
    assert len(twice) >= 3 and torch.equal(batch.image[twice[0]], batch.image[twice[1]])
    assert not (batch.draws[twice[0]] == batch.draws[twice[1]]).any()
    again = SampleStream(frames, 0, weights=weights).batch(0, len(weights))
    assert again.keys == batch.keys and (again.draws == batch.draws).all()


def test_medians_are_metres_of_valid_depth(folder: Path) -> None:
    dataset = ShardDataset(folder, "train")
    medians = DecodedSet(dataset, progress=False).log_medians()
    for index in (0, 5):
        steps = dataset[index][1]
        expected = np.log(np.median(steps[steps > 0]) / 1000)
        assert medians[index] == pytest.approx(expected, abs=0.1)


def test_bad_samples_are_named_and_left_out_up_to_a_share(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder, "f03", "f11")
    dataset = ShardDataset(folder, "train")
    frames = DecodedSet(dataset, max_bad=2 / COUNT)
    assert frames.keys == [key for key in dataset.keys if key not in ("f03", "f11")]
    assert torch.equal(frames.images, expected([n for n in range(COUNT) if n not in (3, 11)])[0])
    lines = sorted(capsys.readouterr().err.splitlines())
    assert len(lines) == 2 and "f03" in lines[0] and "f11" in lines[1] and "train-000001.tar" in lines[1]
    with pytest.raises(DatasetError, match=r"2 bad samples of 12, 1 allowed \(max_bad\); .*'f11'"):
        DecodedSet(dataset, max_bad=1 / COUNT, workers=1)
    with pytest.raises(DatasetError, match=r"1 bad samples of 12, 0 allowed \(max_bad\); .*'f03'"):
        DecodedSet(dataset, workers=1)


def test_a_set_of_bad_samples_only(folder: Path) -> None:
    spoil(folder, *(f"f{number:02d}" for number in range(COUNT)))
    with pytest.raises(DatasetError, match="no readable sample"):
        DecodedSet(ShardDataset(folder, "train"), max_bad=1.0)


def test_from_disk_the_next_good_sample_stands_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(folder, "f03", "f04", "f11")
    frames = LazySet(ShardDataset(folder, "train"), max_bad=3 / COUNT)
    for _ in range(2):
        images, _ = frames.fetch([2, 3, 4, 11])
        assert torch.equal(images, expected([2, 5, 5, 0])[0])
    # Each is named once.
    assert sorted(line.split("'")[1] for line in capsys.readouterr().err.splitlines()) == [
        "f03",
        "f04",
        "f11",
    ]
    strict = LazySet(ShardDataset(folder, "train"), max_bad=1 / COUNT)
    strict.fetch([3 + 2])
    with pytest.raises(DatasetError, match="2 bad samples of 12, 1 allowed"):
        strict.fetch([3, 4])


@pytest.mark.parametrize("kind", [DecodedSet, LazySet])
def test_frames_of_two_sizes_are_refused(tmp_path: Path, kind: type) -> None:
    with ShardWriter(tmp_path, "train") as writer:
        for number, size in enumerate([SIZE, (32, 40)]):
            image, depth = frame(number, size)
            writer.write(f"f{number}", *encode_image(image), encode_depth(depth))
    write_dataset(tmp_path, {"train": {**writer.entry, "size": list(SIZE), "focal_px": 40.0}})
    with pytest.raises(DatasetError, match=r"'f1' is 32x40, others 32x48; prepare the data with --size"):
        kind(ShardDataset(tmp_path, "train"), workers=1).fetch([0, 1])


@pytest.mark.parametrize(("free", "cache", "on_device"), [(2e5, "auto", True), (1e5, "auto", False)])
def test_auto_takes_the_gpu_if_half_of_it_is_enough(
    folder: Path, monkeypatch: pytest.MonkeyPatch, free: float, cache: str, on_device: bool
) -> None:
    """12 frames of 32x48 are 92,160 bytes."""
    asked: list[torch.device | None] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 10**9))
    monkeypatch.setattr(loading, "DecodedSet", lambda *args: asked.append(args[2]))
    open_frames(ShardDataset(folder, "train"), cache, torch.device("cuda"))
    assert asked == [torch.device("cuda") if on_device else None]


def test_a_gpu_too_small_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (90_000, 10**9))
    with pytest.raises(DatasetError, match=r"0\.0 GiB decoded, 0\.0 GiB free on cuda; use --cache ram"):
        open_frames(ShardDataset(folder, "train"), "device", torch.device("cuda"))


@pytest.mark.parametrize("count", [1, 4, 5])
def test_reading_ahead_gives_the_same_batches(folder: Path, count: int) -> None:
    """Over the ends of epochs, after a jump back, and with another batch size in between."""
    dataset = ShardDataset(folder, "train")
    plain, ahead = (SampleStream(LazySet(dataset), 5, ahead) for ahead in (0, 2 * count))
    positions = [2 * count * step for step in range(20)]
    for position, many in [*((p, count) for p in positions), (0, count), (count, 3), (0, count)]:
        one, other = plain.batch(position, many), ahead.batch(position, many)
        assert one.keys == other.keys
        assert torch.equal(one.image, other.image) and torch.equal(one.depth, other.depth)
        np.testing.assert_array_equal(one.draws, other.draws)


def test_the_next_batch_is_read_before_it_is_asked_for(folder: Path) -> None:
    class Noting(LazySet):
        def fetch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
            if threading.current_thread() is not threading.main_thread():
                background.append(list(indices))
                read.set()
            return super().fetch(indices)

    background: list[list[int]] = []
    read = threading.Event()
    stream = SampleStream(Noting(ShardDataset(folder, "train")), 5, ahead=4)
    stream.batch(0, 4)
    assert read.wait(60)
    assert background == [[stream.locate(position)[1] for position in range(4, 8)]]


def test_what_fails_in_the_background_is_reported(folder: Path) -> None:
    dataset = ShardDataset(folder, "train")
    stream = SampleStream(LazySet(dataset), 5, ahead=COUNT)
    stream.batch(0, COUNT)
    assert stream._next is not None
    stream._next[1].result()  # the second epoch is there
    spoil(folder, "f06")
    stream.batch(COUNT, COUNT)
    with pytest.raises(DatasetError, match="'f06' cannot be decoded"):
        stream.batch(2 * COUNT, COUNT)
