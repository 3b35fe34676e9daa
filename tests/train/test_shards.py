"""The shard format: against tarfile's own reading, and each way in which a data set can be wrong."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from depthzoo.errors import DatasetError
from train import codec
from train.codec import encode_depth, encode_image
from train.shards import ShardDataset, ShardWriter, read_dataset, write_dataset

COUNT = 5


def sample(index: int, size: tuple[int, int] = (6, 8)) -> tuple[np.ndarray, np.ndarray]:
    """(image, metres in whole millimetres) that differ from sample to sample."""
    random = np.random.default_rng(index)
    image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    return image, random.integers(0, 10_000, size).astype(np.float32) / 1000


def write(folder: Path, count: int = COUNT) -> Path:
    """Shards of 2, 2 and 1 train samples."""
    with ShardWriter(folder, "train", samples_per_shard=2) as writer:
        for i in range(count):
            image, depth = sample(i)
            writer.write(f"room_{i:04d}", *encode_image(image), encode_depth(depth))
    write_dataset(folder, {"train": {**writer.entry, "size": [6, 8], "focal_px": 518.86}}, source="noise")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "set")


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    change(content)
    (folder / "dataset.json").write_text(json.dumps(content))


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


# What is written is what is read.


def test_round_trip_over_several_shards(folder: Path) -> None:
    data = ShardDataset(folder, "train")
    assert len(data) == COUNT and data.keys == [f"room_{i:04d}" for i in range(COUNT)]
    assert (data.focal_px, data.info["source"]) == (518.86, "noise")
    for i in [3, 0, 4, 1, 2, -1]:
        image, depth = data[i]
        expected, metres = sample(i % COUNT)
        np.testing.assert_array_equal(image, expected)
        assert depth.dtype == np.uint16
        np.testing.assert_array_equal(depth, np.rint(metres * 1000))
    assert len(list(data)) == COUNT


def test_a_limit_takes_samples_evenly_spread(folder: Path) -> None:
    every, some = ShardDataset(folder, "train"), ShardDataset(folder, "train", limit=2)
    assert some.keys == [every.keys[0], every.keys[2]]
    np.testing.assert_array_equal(some[1][1], every[2][1])
    assert ShardDataset(folder, "train", limit=99).keys == every.keys


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
    about = read_dataset(folder)
    assert (about["format"], about["version"], about["depth_unit"]) == ("depthzoo-shards", 1, "mm")
    assert about["splits"]["train"]["count"] == COUNT
    for shard in about["splits"]["train"]["shards"]:
        content = (folder / shard["file"]).read_bytes()
        assert shard["bytes"] == len(content)
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()


def test_identical_input_gives_identical_bytes(tmp_path: Path) -> None:
    one, two = ({p.name: p.read_bytes() for p in write(tmp_path / name).iterdir()} for name in ("one", "two"))
    numbered = [f"train-{i:06d}" for i in range(3)]
    assert sorted(one) == sorted(
        ["dataset.json", *(f"{n}.tar" for n in numbered), *(f"{n}.index.json" for n in numbered)]
    )
    assert one == two


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_depth_of_any_precision_is_a_millimetre_at_its_own_value(dtype: type) -> None:
    metres = np.linspace(0.01, 10, 97).astype(dtype).reshape(1, -1)
    decoded = np.asarray(Image.open(io.BytesIO(encode_depth(metres))))
    assert np.abs(decoded - metres.astype(np.float64) * 1000).max() <= 0.501


def test_unit_range_and_camera_are_stated(tmp_path: Path, folder: Path) -> None:
    with ShardWriter(tmp_path, "train") as writer:
        image, depth = sample(0)
        writer.write("a", *encode_image(image), encode_depth(depth, 1 / 256))
    write_dataset(tmp_path, {"train": {**writer.entry, "focal_px": 9.0}}, 1 / 256, (0.5, 80.0), camera="car")
    data = ShardDataset(tmp_path, "train")
    assert (data.depth_unit, data.depth_range, data.info["camera"]) == (1 / 256, (0.5, 80.0), "car")
    np.testing.assert_array_equal(data[0][1], np.rint(depth * 256))
    edit(folder, lambda content: [content.pop(key) for key in ("depth_unit", "depth_range")])
    data = ShardDataset(folder, "train")
    assert (data.depth_unit, data.depth_range) == (0.001, (0.001, 10.0))


# Writing.


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "taken"])
def test_bad_keys_are_refused(tmp_path: Path, key: str) -> None:
    image, depth = sample(0)
    with ShardWriter(tmp_path, "train", samples_per_shard=1) as writer:
        writer.write("taken", *encode_image(image), encode_depth(depth))
        with pytest.raises(ValueError, match=re.escape(repr(key))):
            writer.write(key, *encode_image(image), encode_depth(depth))
        with pytest.raises(ValueError, match="jpg or png, not 'webp'"):
            writer.write("b", "webp", b"", b"")
    assert writer.entry["count"] == 1


def test_an_exception_leaves_no_unfinished_shard(tmp_path: Path) -> None:
    image, depth = sample(0)
    with pytest.raises(RuntimeError, match="source"), ShardWriter(tmp_path, "train", 2) as writer:
        for i in range(3):
            writer.write(f"{i}", *encode_image(image), encode_depth(depth))
        raise RuntimeError("the source broke")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train-000000.index.json", "train-000000.tar"]
    assert writer.entry == {}


# Reading what is wrong: one line with the place, and nothing silently else.


def refused(folder: Path, match: str, split: str = "train") -> None:
    with pytest.raises(DatasetError, match=match) as error:
        list(ShardDataset(folder, split))
    assert len(str(error.value).splitlines()) == 1


def test_missing_folder_and_missing_description(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere: no such folder")
    refused(tmp_path, r"dataset\.json is missing; run python -m train\.prepare")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b'{"a": 1} x', "is not JSON"),
        (b"[]", "does not describe depthzoo-shards version 1"),
        (b'{"format": "coco", "version": 1}', "does not describe depthzoo-shards version 1"),
        (b'{"format": "depthzoo-shards", "version": 2}', "does not describe depthzoo-shards version 1"),
    ],
)
def test_description_of_something_else(folder: Path, content: bytes, says: str) -> None:
    (folder / "dataset.json").write_bytes(content)
    refused(folder, rf"dataset\.json {says}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["splits"]["train"]["shards"][1].pop("bytes"), "lacks part of split 'train'.*'bytes'"),
        (lambda c: c["splits"]["train"].pop("focal_px"), "'focal_px'"),
        (lambda c: c["splits"]["train"].update(shards=[]), "'train' is empty"),
        (lambda c: c["splits"].update(val=c["splits"].pop("train")), "no split 'train'; it has: val"),
        (lambda c: c.pop("splits"), "no table of splits"),
        (lambda c: c.update(depth_unit="inch"), "dataset.json: .*inch"),
        (lambda c: c.update(depth_unit=0), "depth_unit 0"),
        (lambda c: c.update(depth_range=[5, 1]), "expected 0 < least < largest"),
        (lambda c: c.update(depth_range=[1]), "expected 2"),
        (lambda c: c.update(depth_range=None), "not iterable"),
    ],
)
def test_description_that_is_incomplete(folder: Path, change: Any, says: str) -> None:
    edit(folder, change)
    refused(folder, says)


def test_shard_missing_or_truncated(folder: Path) -> None:
    shard = folder / "train-000001.tar"
    whole = shard.read_bytes()
    data = ShardDataset(folder, "train")
    shard.write_bytes(whole[:600])
    with pytest.raises(DatasetError, match=r"train-000001\.tar: room_0002\.png is truncated"):
        data[2]
    refused(folder, rf"train-000001\.tar has 600 bytes, dataset\.json says {len(whole)}")
    shard.unlink()
    refused(folder, r"train-000001\.tar is missing")


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
    refused(folder, r"room_0000\.depth\.png is truncated, or not where the index says")
    index.write_text(json.dumps([["stale", *first[1:]], second]))
    refused(folder, r"stale\.png is truncated, or not where the index says")


@pytest.mark.parametrize(
    ("image", "depth", "match"),
    [
        (None, png(np.ones((6, 8), np.uint8)), "sample 'bad': depth is not a 16-bit PNG"),
        (None, png(np.ones((6, 8, 3), np.uint8)), "sample 'bad': depth of mode RGB"),
        (None, png(np.ones((8, 6), np.uint16)), r"image of \(6, 8\) and depth of \(8, 6\)"),
        (b"no picture", None, "sample 'bad': cannot be decoded"),
        (None, b"", "sample 'bad': cannot be decoded"),
    ],
    ids=["8 bit", "RGB", "other size", "no picture", "no depth"],
)
def test_sample_that_is_wrong_is_named(
    tmp_path: Path, image: bytes | None, depth: bytes | None, match: str
) -> None:
    good = png(sample(0)[0]), encode_depth(sample(0)[1])
    with ShardWriter(tmp_path, "val") as writer:
        writer.write(
            "bad",
            "png",
            *(mine if given is None else given for given, mine in zip((image, depth), good, strict=True)),
        )
    write_dataset(tmp_path, {"val": {**writer.entry, "focal_px": 1.0}})
    refused(tmp_path, rf"val-000000\.tar.*{match}", split="val")


def test_no_byte_of_a_sample_can_break_the_reader() -> None:
    """A flipped byte anywhere in a stored PNG is harmless or a ``DatasetError``, whatever Pillow raises."""
    content, refusals, depth = png(sample(0)[0]), 0, encode_depth(sample(0)[1])
    for at in range(8, len(content), 3):
        broken = bytearray(content)
        broken[at] ^= 0x55
        try:
            codec.decode(bytes(broken), depth, "shard", "key")
        except DatasetError:
            refusals += 1
    assert refusals > 20


def test_sixteen_bits_as_older_pillows_open_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow 10.1 opens a 16-bit greyscale PNG as mode I, 32 bits in memory."""
    real = Image.open

    def older(file: Any) -> Image.Image:
        image = real(file)
        older = image.convert("I") if image.mode == "I;16" else image
        older.format = image.format
        return older

    expected = ShardDataset(folder, "train")[1][1]
    monkeypatch.setattr(codec.Image, "open", older)
    depth = ShardDataset(folder, "train")[1][1]
    assert depth.dtype == np.uint16
    np.testing.assert_array_equal(depth, expected)
