"""Shards against tarfile's own reading, and each way in which a data set can be wrong."""

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train import codec, shards
from train.codec import encode_depth, encode_image
from train.shards import (
    DatasetError,
    ShardDataset,
    ShardWriter,
    read_dataset,
    write_dataset,
)

COUNT = 5


def sample(index: int, size: tuple[int, int] = (6, 8)) -> tuple[np.ndarray, np.ndarray]:
    """(picture, metres in whole millimetres) that differ from sample to sample."""
    random = np.random.default_rng(index)
    image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    return image, random.integers(0, 10_000, size).astype(np.float32) / 1000


def write(folder: Path, count: int = COUNT, per_shard: int = 2, split: str = "train") -> Path:
    with ShardWriter(folder, split, samples_per_shard=per_shard) as writer:
        for i in range(count):
            image, depth = sample(i)
            writer.write(f"room_{i:04d}", *encode_image(image), encode_depth(depth))
    write_dataset(folder, {split: {**writer.entry, "size": [6, 8], "focal_px": 518.86}}, source="noise")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "set")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def edit(folder: Path, change: Any) -> None:
    """Rewrites ``dataset.json`` by ``change``, a function of its content."""
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# What is written is what is read.


def test_round_trip_over_several_shards(folder: Path) -> None:
    data = ShardDataset(folder, "train")
    assert len(data) == COUNT
    assert data.keys == [f"room_{i:04d}" for i in range(COUNT)]
    assert data.focal_px == 518.86
    assert data.info["source"] == "noise"
    assert [s["count"] for s in data.info["splits"]["train"]["shards"]] == [2, 2, 1]
    for i in (4, 0, 3, -1):
        image, depth = data[i]
        expected_image, metres = sample(i % COUNT)
        np.testing.assert_array_equal(image, expected_image)
        assert depth.dtype == np.uint16
        np.testing.assert_array_equal(depth, np.rint(metres * 1000))
    assert len(list(data)) == COUNT


def test_a_limit_takes_samples_evenly_spread(folder: Path) -> None:
    every = ShardDataset(folder, "train")
    some = ShardDataset(folder, "train", limit=2)
    assert some.keys == [every.keys[0], every.keys[2]]
    np.testing.assert_array_equal(some[1][1], every[2][1])
    assert ShardDataset(folder, "train", limit=99).keys == every.keys


def test_folder_holds_shards_indices_and_the_description_only(folder: Path) -> None:
    numbered = [f"train-{i:06d}" for i in range(3)]
    assert names(folder) == sorted(
        ["dataset.json", *(f"{n}.tar" for n in numbered), *(f"{n}.index.json" for n in numbered)]
    )
    about = read_dataset(folder)
    assert (about["format"], about["version"], about["depth_unit"]) == ("depthzoo-shards", 1, "mm")


def test_random_access_gives_the_bytes_that_tarfile_reads(folder: Path) -> None:
    """As webdataset streams them: members of one key are neighbours, the part after the first dot is the kind."""
    streamed: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, kind = member.name.split(".", 1)
                assert key not in streamed or key == list(streamed)[-1]
                streamed.setdefault(key, {})[kind] = tar.extractfile(member).read()
    data = ShardDataset(folder, "train")
    assert list(streamed) == data.keys
    for i in reversed(range(COUNT)):
        assert data.encoded(i) == (streamed[data.keys[i]]["png"], streamed[data.keys[i]]["depth.png"])


def test_dataset_json_counts_bytes_and_digests(folder: Path) -> None:
    entry = read_dataset(folder)["splits"]["train"]
    assert entry["count"] == COUNT
    for shard in entry["shards"]:
        content = (folder / shard["file"]).read_bytes()
        assert shard["bytes"] == len(content)
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()


def test_identical_input_gives_identical_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert names(one) == names(two)
    assert all((one / n).read_bytes() == (two / n).read_bytes() for n in names(one))


def test_two_splits_in_one_folder(tmp_path: Path) -> None:
    entries = {}
    for split, first in (("train", 0), ("test", 3)):
        with ShardWriter(tmp_path, split) as writer:
            image, depth = sample(first)
            writer.write("same_key", *encode_image(image, quality=95), encode_depth(depth))
        entries[split] = {**writer.entry, "focal_px": 518.86}
    write_dataset(tmp_path, entries)
    train, test = ShardDataset(tmp_path, "train"), ShardDataset(tmp_path, "test")
    np.testing.assert_array_equal(test[0][1], np.rint(sample(3)[1] * 1000))
    np.testing.assert_array_equal(train[0][1], np.rint(sample(0)[1] * 1000))


def test_jpeg_at_full_chroma() -> None:
    """One red column in grey: with subsampled chroma its neighbours would turn red."""
    image = np.full((16, 16, 3), 128, np.uint8)
    image[:, 7] = (200, 60, 60)
    extension, content = encode_image(image, quality=98)
    assert extension == "jpg"
    assert np.abs(np.asarray(Image.open(io.BytesIO(content))).astype(int) - image).max() <= 12


# Depth.


def test_depth_encoding_by_hand() -> None:
    metres = np.array([[0.001, 2.3456, 9.9955, 65.535], [np.nan, np.inf, -np.inf, -1.0], [0, 4e-4, 6e-4, 70]])
    decoded = np.asarray(Image.open(io.BytesIO(encode_depth(metres.astype(np.float32)))))
    # Not finite, not positive, under half a millimetre and beyond 16 bits: invalid.
    np.testing.assert_array_equal(decoded, [[1, 2346, 9996, 65535], [0, 0, 0, 0], [0, 0, 1, 0]])
    assert decoded.dtype == np.uint16


def test_depth_outside_the_range_is_invalid() -> None:
    metres = np.array([[0.4, 0.5, 30.0, 80.0], [80.1, 255.9, 300.0, np.nan]], np.float32)
    decoded = np.asarray(Image.open(io.BytesIO(encode_depth(metres, 1 / 256, (0.5, 80.0)))))
    np.testing.assert_array_equal(decoded, [[0, 128, 7680, 20480], [0, 0, 0, 0]])
    decoded = np.asarray(Image.open(io.BytesIO(encode_depth(metres, depth_range=(0.001, 10.0)))))
    np.testing.assert_array_equal(decoded, [[400, 500, 0, 0], [0, 0, 0, 0]])


def test_unit_range_and_camera_are_stated(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train") as writer:
        image, depth = sample(0)
        writer.write("a", *encode_image(image), encode_depth(depth, 1 / 256))
    splits = {"train": {**writer.entry, "focal_px": 9.0}}
    write_dataset(tmp_path, splits, 1 / 256, (0.5, 80.0), camera="car")
    about = read_dataset(tmp_path)
    assert (about["depth_unit"], about["depth_range"], about["camera"]) == (1 / 256, [0.5, 80.0], "car")
    data = ShardDataset(tmp_path, "train")
    assert (data.depth_unit, data.depth_range) == (1 / 256, (0.5, 80.0))
    np.testing.assert_array_equal(data[0][1], np.rint(depth * 256))


def test_a_set_that_states_neither_is_in_millimetres_up_to_ten_metres(folder: Path) -> None:
    edit(folder, lambda content: [content.pop(key) for key in ("depth_unit", "depth_range")])
    data = ShardDataset(folder, "train")
    assert (data.depth_unit, data.depth_range) == (0.001, (0.001, 10.0))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("depth_unit", "inch", "inch"),
        ("depth_unit", 0, "depth_unit 0"),
        ("depth_range", [5, 1], "expected 0 < least < largest"),
        ("depth_range", [1], "expected 2"),
        ("depth_range", None, "not iterable"),
    ],
)
def test_a_bad_unit_or_range(folder: Path, key: str, value: Any, says: str) -> None:
    edit(folder, lambda content: content.update({key: value}))
    with pytest.raises(DatasetError, match=f"dataset.json: .*{says}"):
        ShardDataset(folder, "train")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_depth_of_any_precision_is_a_millimetre_at_its_own_value(dtype: type) -> None:
    metres = np.linspace(0.01, 10, 97).astype(dtype).reshape(1, -1)
    decoded = np.asarray(Image.open(io.BytesIO(encode_depth(metres))))
    assert np.abs(decoded - metres.astype(np.float64) * 1000).max() <= 0.501


# Writing.


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "taken"])
def test_bad_keys_are_refused(tmp_path: Path, key: str) -> None:
    image, depth = sample(0)
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("taken", *encode_image(image), encode_depth(depth))
        with pytest.raises(ValueError, match=re.escape(repr(key))):
            writer.write(key, *encode_image(image), encode_depth(depth))
    assert writer.entry["count"] == 1


def test_key_written_in_an_earlier_shard_is_a_duplicate(tmp_path: Path) -> None:
    image, depth = sample(0)
    with ShardWriter(tmp_path, "train", samples_per_shard=1) as writer:
        writer.write("one", *encode_image(image), encode_depth(depth))
        with pytest.raises(ValueError, match="duplicate"):
            writer.write("one", *encode_image(image), encode_depth(depth))


def test_other_extension_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train") as writer, pytest.raises(ValueError, match="jpg or png, not 'webp'"):
        writer.write("a", "webp", b"", b"")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_exception_while_writing_leaves_nothing(tmp_path: Path, count: int) -> None:
    image, depth = sample(0)
    with pytest.raises(RuntimeError, match="source"), ShardWriter(tmp_path, "train", 2) as writer:
        for i in range(count):
            writer.write(f"{i}", *encode_image(image), encode_depth(depth))
        raise RuntimeError("the source broke")
    assert names(tmp_path) == []
    assert writer.entry == {}


def test_exception_leaves_the_shards_of_others(folder: Path) -> None:
    before = names(folder)
    with pytest.raises(RuntimeError), ShardWriter(folder, "test"):
        raise RuntimeError
    assert names(folder) == before


def test_disk_full_at_the_last_shard_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    image, depth = sample(0)
    with pytest.raises(OSError, match="No space"), ShardWriter(tmp_path, "train", 2) as writer:
        for i in range(3):
            writer.write(f"{i}", *encode_image(image), encode_depth(depth))
        monkeypatch.setattr(shards.os, "fsync", full)
    assert names(tmp_path) == []


# Reading what is wrong: one line with the place, and nothing silently else.


def refused(folder: Path, match: str, split: str = "train") -> None:
    with pytest.raises(DatasetError, match=match) as error:
        list(ShardDataset(folder, split))
    assert len(str(error.value).splitlines()) == 1


def test_missing_folder_and_missing_description(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere: no such folder")
    refused(tmp_path, r"dataset\.json is missing; run python -m train\.prepare")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b'{"a": 1} x'], ids=["empty", "half", "bytes", "tail"]
)
def test_description_that_is_no_json(folder: Path, content: bytes) -> None:
    (folder / "dataset.json").write_bytes(content)
    refused(folder, r"dataset\.json is not JSON")


@pytest.mark.parametrize("content", ["[]", "null", '{"format": "coco", "version": 1}', "{}"])
def test_description_of_something_else(folder: Path, content: str) -> None:
    (folder / "dataset.json").write_text(content)
    refused(folder, "does not describe depthzoo-shards version 1")


def test_description_of_a_later_version(folder: Path) -> None:
    edit(folder, lambda about: about.update(version=2))
    refused(folder, "version 1")


def test_description_without_its_parts(folder: Path) -> None:
    edit(folder, lambda about: about["splits"]["train"]["shards"][1].pop("bytes"))
    refused(folder, "lacks part of split 'train'.*'bytes'")
    edit(folder, lambda about: about["splits"]["train"].pop("focal_px"))
    refused(folder, "'focal_px'")
    edit(folder, lambda about: about.pop("splits"))
    refused(folder, "no table of splits")


def test_unknown_and_empty_split(folder: Path) -> None:
    refused(folder, "no split 'test'; it has: train", split="test")
    edit(folder, lambda about: about["splits"]["train"].update(shards=[]))
    refused(folder, "'train' is empty")


def test_shard_missing_or_cut_short(folder: Path) -> None:
    shard = folder / "train-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    refused(folder, rf"train-000001\.tar has {len(whole) - 512} bytes, dataset\.json says {len(whole)}")
    shard.unlink()
    refused(folder, r"train-000001\.tar is missing")


def test_shard_cut_short_after_opening(folder: Path) -> None:
    data = ShardDataset(folder, "train")
    shard = folder / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(DatasetError, match=r"train-000000\.tar: room_0000\.png is cut short"):
        data[0]


def test_index_missing_or_of_another_length(folder: Path) -> None:
    index = folder / "train-000000.index.json"
    index.write_text(json.dumps(json.loads(index.read_text())[:1]))
    refused(folder, r"train-000000\.tar has 1 samples, dataset\.json says 2")
    index.unlink()
    refused(folder, r"train-000000\.index\.json is missing")


@pytest.mark.parametrize("content", ["[", "5", "[1, 2]", '[["a"], ["b"]]', '[["a", "png", 0, 1, 2, "3"]]'])
def test_index_that_is_garbage(folder: Path, content: str) -> None:
    (folder / "train-000000.index.json").write_text(content)
    refused(folder, r"train-000000\.index\.json is no index")


def test_index_of_other_samples_pairs_no_picture_with_wrong_depth(folder: Path) -> None:
    index = folder / "train-000000.index.json"
    first, second = json.loads(index.read_text())
    index.write_text(json.dumps([[*first[:4], *second[4:]], second]))
    refused(folder, r"room_0000\.depth\.png is cut short, or not where the index has it")
    index.write_text(json.dumps([["stale", *first[1:]], second]))
    refused(folder, r"stale\.png is cut short, or not where the index has it")


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "depth", "match"),
    [
        (None, png(np.ones((6, 8), np.uint8)), "depth of sample 'bad' is not a 16-bit PNG but mode L"),
        (None, png(np.ones((6, 8, 3), np.uint8)), "not a 16-bit PNG but mode RGB"),
        (None, png(np.ones((8, 6), np.uint16)), "an image of 6x8 and depth of 8x6"),
        (b"no picture", None, "sample 'bad' cannot be decoded"),
        (b"", None, "sample 'bad' cannot be decoded"),
        (None, b"no picture", "sample 'bad' cannot be decoded"),
    ],
    ids=["8 bit", "RGB", "other size", "no picture", "empty", "no depth"],
)
def test_sample_that_is_wrong_is_named(
    tmp_path: Path, image: bytes | None, depth: bytes | None, match: str
) -> None:
    good = (
        png(sample(0)[0]) if image is None else image,
        encode_depth(sample(0)[1]) if depth is None else depth,
    )
    with ShardWriter(tmp_path, "val") as writer:
        writer.write("bad", "png", *good)
    write_dataset(tmp_path, {"val": {**writer.entry, "focal_px": 1.0}})
    refused(tmp_path, rf"val-000000\.tar.*{match}", split="val")


def test_no_byte_of_a_sample_can_break_the_reader(tmp_path: Path) -> None:
    """A flipped byte anywhere in a stored PNG is harmless or a ``DatasetError``, whatever Pillow raises."""
    content, refusals = bytearray(png(sample(0)[0])), 0
    data = ShardDataset(write(tmp_path, count=1), "train")
    depth = encode_depth(sample(0)[1])
    for at in range(8, len(content), 3):
        broken = content.copy()
        broken[at] ^= 0x55
        data.encoded = lambda _, broken=broken: (bytes(broken), depth)  # type: ignore[method-assign]
        try:
            data[0]
        except DatasetError:
            refusals += 1
    assert refusals > 20


def test_sixteen_bits_as_older_pillows_open_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow 10.1 opens a 16-bit greyscale PNG as mode I, 32 bits in memory."""
    real = Image.open

    def older(file: Any) -> Image.Image:
        picture = real(file)
        return picture.convert("I") if picture.mode == "I;16" else picture

    expected = ShardDataset(folder, "train")[1][1]
    monkeypatch.setattr(codec.Image, "open", older)
    depth = ShardDataset(folder, "train")[1][1]
    assert depth.dtype == np.uint16
    np.testing.assert_array_equal(depth, expected)
