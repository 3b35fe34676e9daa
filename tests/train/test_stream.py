"""Data sets behind a URL: every sample once an epoch, validation frames copied, errors in one line."""

import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from depthzoo.errors import DatasetError
from train.augment import as_tensors
from train.checkpoint import load_checkpoint
from train.distributed import World
from train.shards import ShardDataset
from train.stream import RemoteSplit, RemoteStream, copy_split, is_remote

pytest.importorskip("webdataset")
COUNT = 22  # train samples, in shards of 5, 5, 5, 5 and 2


def local(folder: Path) -> str:
    return f"pipe:cat {folder}/{{}}"


def stream(url: str, position: int = 0, world: World | None = None, seed: int = 3) -> RemoteStream:
    return RemoteStream(RemoteSplit(url, "train"), seed, world or World(), position)


@pytest.mark.parametrize(
    ("place", "remote"),
    [
        ("https://host/nyu", True),
        ("pipe:cat {}", True),
        ("file:/data", True),
        ("data/nyu", False),
        ("C:nyu", False),
    ],
)
def test_a_url_is_not_a_folder(place: str, remote: bool) -> None:
    assert is_remote(place) == remote and not is_remote(Path("data"))


@pytest.mark.parametrize("scheme", ["http", "file", "pipe"])
def test_an_epoch_has_every_sample_once_as_stored(
    scheme: str, small_shards: Path, serve: Callable[[Path], str]
) -> None:
    url = {
        "http": lambda: serve(small_shards),
        "file": lambda: f"file:{small_shards}",
        "pipe": lambda: local(small_shards),
    }
    data, read = ShardDataset(small_shards, "train"), stream(url[scheme]())
    epochs = [[read.batch(epoch * COUNT + at, 11) for at in (0, 11)] for epoch in range(2)]
    keys = [[key for batch in epoch for key in batch.keys] for epoch in epochs]
    assert [sorted(epoch) for epoch in keys] == [sorted(data.keys)] * 2 and keys[0] != keys[1] != data.keys
    batch = epochs[0][0]
    image, depth = as_tensors(*data[data.keys.index(batch.keys[4])])
    assert torch.equal(batch.image[4], image) and torch.equal(batch.depth[4], depth)
    assert batch.focal_px == data.focal_px and len({tuple(draws) for draws in batch.draws}) == 11
    assert stream(url[scheme]()).batch(0, 11).keys == batch.keys


def test_processes_read_shards_of_their_own(small_shards: Path) -> None:
    worlds = [World(rank, 2) for rank in range(2)]
    # Two shards at least, of which one may be the short one.
    first, second = (set(stream(local(small_shards), world=world).batch(0, 7).keys) for world in worlds)
    assert len(first) == len(second) == 7 and first.isdisjoint(second)
    with pytest.raises(DatasetError, match="6 processes for 5 shards"):
        stream(local(small_shards), world=World(0, 6))


def test_a_resumed_stream_continues_at_the_start_of_a_shard(
    small_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed = stream(local(small_shards), position=COUNT + 12)
    assert "continuing at the start of a shard" in capsys.readouterr().err
    # The rest of its epoch: 22 samples less the shards that 12 samples fill.
    rest = resumed.batch(COUNT + 12, 10).keys
    assert len(set(rest)) == 10 and set(rest) < set(ShardDataset(small_shards, "train").keys)


def test_the_last_batches_can_be_read_again(small_shards: Path) -> None:
    read = stream(local(small_shards))
    batches = [read.batch(4 * step, 4) for step in range(40)]
    assert all(read.batch(4 * step, 4) is batches[step] for step in range(8, 40))


def test_validation_frames_are_copied_once(
    small_shards: Path, tmp_path: Path, serve: Callable[[Path], str]
) -> None:
    out = tmp_path / "copy"
    for _ in range(2):
        copy_split(serve(small_shards), "val", out)
        copied, original = ShardDataset(out, "val"), ShardDataset(small_shards, "val")
        assert copied.keys == original.keys and copied.encoded(0) == original.encoded(0)
        written = (out / "val-000000.tar").stat().st_mtime_ns
    assert (out / "val-000000.tar").stat().st_mtime_ns == written


def test_a_copy_that_is_not_what_it_says_is_refused(folder: Path, tmp_path: Path) -> None:
    shard = folder / "val-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DatasetError, match=r"val-000000\.tar: sha256 \w+, dataset\.json says \w+"):
        copy_split(local(folder), "val", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def rename_shard(folder: Path) -> None:
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace("train-000001.tar", "x; touch y.tar"))


def drop_depth(folder: Path) -> None:
    path = folder / "train-000004.tar"
    with tarfile.open(path) as tar, tarfile.open(path.with_suffix(".part"), "w") as half:
        for member in tar:
            if not member.name.endswith(".depth.png"):
                half.addfile(member, tar.extractfile(member))
    path.with_suffix(".part").replace(path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "dataset.json").unlink(), r"dataset\.json cannot be read: .*"),
        (lambda f: (f / "dataset.json").write_text("{}"), "does not describe depthzoo-shards"),
        (rename_shard, "dataset.json names a shard 'x; touch y.tar'"),
        (
            lambda f: (f / "train-000002.tar").unlink(),
            r"train-000002\.tar cannot be read: (empty file|.*exit code 1)$",
        ),
        (
            lambda f: (f / "train-000002.tar").write_bytes(b"no tar" * 999),
            r"train-000002\.tar cannot be read",
        ),
        (drop_depth, r"train-000004\.tar: sample 'room-\d+' lacks its image or its depth\.png"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder: Path, damage: Callable[[Path], object], says: str) -> None:
    damage(folder)
    with pytest.raises(DatasetError, match=says) as caught:
        stream(local(folder)).batch(0, COUNT)
    assert "\n" not in str(caught.value)


def test_an_http_error_says_so(small_shards: Path, serve: Callable[[Path], str]) -> None:
    with pytest.raises(
        DatasetError, match=r"/nowhere/dataset\.json cannot be read: .*an HTTP error such as 404"
    ):
        RemoteSplit(f"{serve(small_shards)}/nowhere", "train")


def test_webdataset_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DatasetError, match=r'run pip install "depthzoo\[stream\]"$'):
        RemoteSplit("http://127.0.0.1:1/nyu", "train")


def test_training_from_a_url(
    small_shards: Path,
    sixty_steps: Path,
    serve: Callable[[Path], str],
    tmp_path: Path,
    train: Callable[..., int],
) -> None:
    out, url = tmp_path / "run", serve(small_shards)
    given = ["--recipe", sixty_steps, "--data", url, "--out", out]
    assert train(*given, "--max-steps", 4) == 0
    assert train("--resume", "--out", out, "--max-steps", 8) == 0
    state = load_checkpoint(out / "checkpoint.safetensors").state
    assert state["resumed_from"] == [4] and [row["step"] for row in state["history"]] == [4, 8]
    assert json.loads((out / "sources.json").read_text()) == {"data": url, "mix": []}
    assert train(*given, "--frames", 3, "--out", tmp_path / "other") == 2
    shutil.rmtree(out)
