"""Streams of shards: the frames and draws of a local copy, in an order that a resume finds again."""

import gc
import hashlib
import signal
import subprocess
import sys
import tarfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from depthzoo.files import sha256_of
from train.__main__ import parser, run
from train.arguments import command
from train.checkpoint import load_checkpoint
from train.checkpoint import same as same_tensors
from train.loading import Batch, Decoder, as_tensors, sample_draws
from train.remote import Encoded
from train.shards import DatasetError, ShardDataset
from train.stream_order import Order
from train.streaming import RECENT_BATCHES, Feeder, Sample, ShardStream

COUNT = 22  # of the train samples of small_shards


pytestmark = pytest.mark.usefixtures("no_pauses")


def local(folder: Path) -> str:
    return f"file://{folder}"


def same(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys and one.focal_px == other.focal_px
    assert torch.equal(one.image, other.image) and torch.equal(one.depth, other.depth)
    np.testing.assert_array_equal(one.draws, other.draws)


def corrected(folder: Path, name: str, change: Callable[[Path], None]) -> None:
    """Changes a shard, and its digest in the description."""
    path, description = folder / name, folder / "dataset.json"
    before = sha256_of(path)
    change(path)
    description.write_text(description.read_text().replace(before, sha256_of(path)))


def spoil(path: Path, *names: str) -> None:
    """Overwrites members of a shard."""
    with tarfile.open(path) as tar:
        places = [(member.offset_data, member.size) for member in tar if member.name in names]
    assert len(places) == len(names)
    with open(path, "r+b") as file:
        for at, size in places:
            file.seek(at)
            file.write(b"\0" * size)


# -- the samples ------------------------------------------------------------------------------------------


def test_frames_and_draws_are_those_of_a_local_copy(small_shards: Path, serve: Any) -> None:
    data = ShardDataset(small_shards, "train")
    with ShardStream(serve(small_shards).url, "train", seed=5) as stream:
        assert len(stream) == COUNT and stream.focal_px == data.focal_px and stream.info == data.info
        batches = [stream.batch(position, 11) for position in range(0, 4 * COUNT, 11)]
    for epoch in range(4):
        pair = batches[2 * epoch], batches[2 * epoch + 1]
        assert sorted(pair[0].keys + pair[1].keys) == sorted(data.keys)
        for batch in pair:
            for place, key in enumerate(batch.keys):
                index = data.keys.index(key)
                image, depth = as_tensors(*data[index])
                assert torch.equal(batch.image[place], image) and torch.equal(batch.depth[place], depth)
                np.testing.assert_array_equal(batch.draws[place], sample_draws(5, epoch, index))
    assert batches[0].keys != batches[2].keys


def test_the_digest_is_that_of_the_description(small_shards: Path) -> None:
    text = (small_shards / "dataset.json").read_bytes()
    stream = ShardStream(local(small_shards), "train", 0)
    assert stream.digest == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2), (2, 3)])
def test_a_resume_is_exact(small_shards: Path, rank: int, world: int) -> None:
    def positions(step: int) -> int:
        return step * 4 * world + rank * 4

    def stream() -> ShardStream:
        return ShardStream(local(small_shards), "train", 9, rank, world, shuffle=6)

    with stream() as straight:
        batches = [straight.batch(positions(step), 4) for step in range(14)]
    for start in (1, 5, 8, 13):
        with stream() as resumed:
            for step in range(start, 14):
                same(resumed.batch(positions(step), 4), batches[step])


def test_a_resume_reads_no_earlier_epoch_and_no_shard_that_is_done(small_shards: Path, serve: Any) -> None:
    server = serve(small_shards)
    order = Order([5, 5, 5, 5, 2], 0, 0, 1, 2)
    with ShardStream(server.url, "train", 0, shuffle=2) as stream:
        server.asked.clear()
        stream.batch(7 * COUNT + 16, 1)
        left = [f"train-00000{run.shard}.tar" for run in order.runs(7)]
        following = [f"train-00000{run.shard}.tar" for run in order.runs(8)]
    # Of 22 samples 16 are given and 2 more are held at most: the first shards have been read.
    assert server.asked[0] in left[2:]
    assert server.asked == [*left, *following][left.index(server.asked[0]) :][: len(server.asked)]


def test_two_processes_have_an_epoch_between_them(small_shards: Path, serve: Any) -> None:
    server = serve(small_shards)
    found = []
    for rank in range(2):
        with ShardStream(server.url, "train", 4, rank, 2) as stream:
            found += stream.batch(rank * 11, 11).keys
    assert sorted(found) == sorted(ShardDataset(small_shards, "train").keys)


def test_the_last_batches_can_be_had_again_without_reading(small_shards: Path, serve: Any) -> None:
    server = serve(small_shards)
    with ShardStream(server.url, "train", 2, shuffle=4) as stream:
        batches = [stream.batch(2 * step, 2) for step in range(RECENT_BATCHES + 10)]
        feeder = stream._feeder
        for step in range(10, RECENT_BATCHES + 10):
            same(stream.batch(2 * step, 2), batches[step])
        assert len(stream._window) <= 2 * RECENT_BATCHES
        same(
            stream.batch(2 * (RECENT_BATCHES + 10), 2),
            ShardStream(server.url, "train", 2, shuffle=4).batch(84, 2),
        )
        assert stream._feeder is feeder
        # Others begin anew, and it goes on from there.
        for step in (3, 4, 5):
            same(stream.batch(2 * step, 2), batches[step])
        assert stream._feeder is not feeder


def test_positions_are_the_processes_own(small_shards: Path) -> None:
    with ShardStream(local(small_shards), "train", 0, rank=1, world=2) as stream:
        for position in (0, 3, 5):
            with pytest.raises(ValueError, match=rf"position {position} is not one of process 1 of 2"):
                stream.batch(position, 4)


def test_more_processes_than_samples(small_shards: Path) -> None:
    with pytest.raises(ValueError, match=r"23 processes for the 22 samples of file://"):
        ShardStream(local(small_shards), "train", 0, rank=0, world=23)


# -- what goes wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["first byte", "header", "picture", "depth", "between", "end"])
def test_a_broken_connection_loses_nothing(small_shards: Path, serve: Any, at: str) -> None:
    with tarfile.open(small_shards / "train-000001.tar") as tar:
        picture, depth = tar.getmembers()[4:6]
    places = {
        "first byte": 0,
        "header": picture.offset + 100,
        "picture": picture.offset_data + 10,
        "between": depth.offset,
        "depth": depth.offset_data + 10,
        "end": (small_shards / "train-000001.tar").stat().st_size - 1,
    }
    server = serve(small_shards)
    server.cut["train-000001.tar"] = [places[at]]
    with (
        ShardStream(server.url, "train", 1, shuffle=3) as broken,
        ShardStream(local(small_shards), "train", 1, shuffle=3) as whole,
    ):
        for position in range(0, COUNT, 2):
            same(broken.batch(position, 2), whole.batch(position, 2))
        assert server.asked.count("train-000001.tar") >= 2


def test_a_command_that_ends_early_is_noticed(small_shards: Path) -> None:
    """Without a complaint, and between the two members of a sample."""
    with tarfile.open(small_shards / "train-000001.tar") as tar:
        cut = tar.getmembers()[5].offset
    url = f"pipe:head -c $(case {{}} in train-000001.tar) echo {cut};; *) echo 999999999;; esac) {small_shards}/{{}}"
    stream = ShardStream(url, "train", 1)
    with stream, pytest.raises(DatasetError, match=r"3 samples, dataset\.json says 5, 5 times in a row"):
        stream.batch(0, 4)


def test_a_shard_out_of_reach_is_one_line(folder: Path, serve: Any) -> None:
    server = serve(folder)
    path = folder / "train-000002.tar"
    content = path.read_bytes()
    path.unlink()
    with ShardStream(server.url, "train", 1) as stream:
        for times in (1, 2):  # it is said again, not waited for
            with pytest.raises(DatasetError, match=rf"^{server.url}/{path.name}: HTTP error, such as 404.*$"):
                stream.batch(0, COUNT)
            assert server.asked.count(path.name) == times
        path.write_bytes(content)
        server.cut[path.name] = [3000] * 5
        broke_off = rf"^{server.url}/{path.name}: the connection broke off, 5 times in a row$"
        with pytest.raises(DatasetError, match=broke_off):
            stream.batch(0, COUNT)
        assert len(stream.batch(0, COUNT).keys) == COUNT  # the network is back


def test_bad_samples_are_named_and_the_next_good_one_stands_in(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardStream(local(folder), "train", 6, shuffle=3) as stream:
        good = [stream.batch(position, 1) for position in range(COUNT + 2)]
    with tarfile.open(folder / "train-000001.tar") as tar:
        names = [member.name for member in tar]
    corrected(folder, "train-000001.tar", lambda path: spoil(path, names[2], names[5]))
    bad = {names[2].split(".")[0], names[5].split(".")[0]}
    with ShardStream(local(folder), "train", 6, shuffle=3, max_bad=2 / COUNT) as stream:
        for position in range(0, COUNT, 2):
            batch = stream.batch(position, 2)
            for place in range(2):
                shown = next(g for g in good[position + place :] if g.keys[0] not in bad)
                assert batch.keys[place] == shown.keys[0]
                assert torch.equal(batch.image[place], shown.image[0])
                np.testing.assert_array_equal(batch.draws[place], good[position + place].draws[0])
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split("'")[1] for line in lines) == sorted(bad)
    assert all(f"{local(folder)}/train-000001.tar" in line for line in lines)
    stream = ShardStream(local(folder), "train", 6, max_bad=1 / COUNT)
    with stream, pytest.raises(DatasetError, match=r"2 bad samples of 22, 1 allowed \(max_bad\)"):
        stream.batch(0, COUNT)


@pytest.mark.parametrize(("gone", "missing"), [(1, "depth.png"), (0, "jpg or png")])
def test_half_a_sample_is_a_bad_sample(folder: Path, gone: int, missing: str) -> None:
    def drop(path: Path) -> None:
        with tarfile.open(path) as tar, tarfile.open(path.with_suffix(".part"), "w") as half:
            for place, member in enumerate(tar):
                if place != gone:
                    half.addfile(member, tar.extractfile(member))
        path.with_suffix(".part").replace(path)

    corrected(folder, "train-000004.tar", drop)
    stream = ShardStream(local(folder), "train", 0)
    with stream, pytest.raises(DatasetError, match=rf"train-000004\.tar: sample 'room-\d+' has no {missing}"):
        stream.batch(0, COUNT)


def test_a_shard_that_changed_is_noticed(folder: Path) -> None:
    path = folder / "train-000001.tar"
    with tarfile.open(path) as tar:
        member = tar.getmembers()[0]
    content = bytearray(path.read_bytes())
    content[member.offset_data + member.size - 1] ^= 1
    path.write_bytes(content)
    stream = ShardStream(local(folder), "train", 0, max_bad=0.5)
    with (
        stream,
        pytest.raises(DatasetError, match=r"train-000001\.tar: sha256 \w+, dataset\.json says \w+; one"),
    ):
        stream.batch(0, COUNT)


def test_webdataset_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DatasetError, match=r'run pip install "depthzoo\[stream\]"$'):
        ShardStream("http://127.0.0.1:1/nyu", "train", 0)


# -- in the background ------------------------------------------------------------------------------------


def test_samples_are_read_ahead_up_to_a_number(small_shards: Path) -> None:
    data = ShardDataset(small_shards, "train")
    taken: list[int] = []
    enough = threading.Event()

    def endless() -> Iterator[Sample]:
        for number in range(1000):
            taken.append(number)
            if number == 4:
                enough.set()
            yield Sample(0, number, Encoded("url", data.keys[0], *data.encoded(0)))

    with ThreadPoolExecutor(1) as pool:
        feeder = Feeder(endless(), pool, Decoder("url", 1, 0.0), 4, threading.Event())
        assert enough.wait(60)  # nobody has asked for anything
        assert feeder.get().number == 0
        feeder.close()
        assert not feeder._thread.is_alive()
        assert len(taken) <= 4 + 1 + 2 + 4  # and what close takes out to make room


def wait_until(true: Any) -> bool:
    deadline = time.monotonic() + 60
    while not true():
        if time.monotonic() > deadline:
            return False
        gc.collect()
    return True


def test_closing_ends_what_waits_for_a_silent_server(small_shards: Path, serve: Any) -> None:
    server = serve(small_shards)
    server.silent |= {f"train-00000{shard}.tar" for shard in range(5)}
    stream = ShardStream(server.url, "train", 0)
    feeder = stream._start(0, 1)
    assert wait_until(lambda: len(server.asked) > 1)
    stream.close()
    assert not feeder._thread.is_alive()
    server.silent.clear()
    assert stream.batch(0, 1).keys  # it can be used again
    stream.close()


def test_a_forgotten_stream_ends_its_thread(small_shards: Path) -> None:
    stream = ShardStream(local(small_shards), "train", 0)
    stream.batch(0, 1)
    assert stream._feeder is not None
    thread, gone = stream._feeder._thread, weakref.ref(stream)
    assert thread.is_alive()
    del stream
    assert wait_until(lambda: gone() is None and not thread.is_alive())


STALLED = """
import sys
from train.streaming import ShardStream
stream = ShardStream(sys.argv[1], "train", 0, shuffle=1)
print(stream.batch(0, 1).keys[0], flush=True)
if sys.argv[2] == "wait":
    for position in range(1, 100):
        stream.batch(position, 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["wait", "exit"])
def test_no_process_hangs_and_none_is_left(small_shards: Path, serve: Any, root: Path, end: str) -> None:
    """At the end of the program, and at Ctrl-C, while a server is silent."""
    server = serve(small_shards)
    first = Order([5, 5, 5, 5, 2], 0, 0, 1, 1).runs(0)[0].shard
    server.silent |= {f"train-00000{shard}.tar" for shard in range(5) if shard != first}
    arguments = [sys.executable, "-c", STALLED, server.url, end]
    with subprocess.Popen(
        arguments, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("room-")
        assert wait_until(lambda: len(server.asked) >= 3)
        if end == "wait":
            process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    if end == "exit":
        assert process.returncode == 0 and error == ""
    else:
        assert error.rstrip().endswith("KeyboardInterrupt") and error.count("Traceback") == 1
    # Nobody of its session is left.
    found = subprocess.run(["ps", "-o", "pid=", "-s", str(process.pid)], capture_output=True, text=True)
    assert found.stdout.strip() == ""


@pytest.mark.slow
def test_training_from_a_url_resumes_bit_by_bit(small_shards: Path, serve: Any, tmp_path: Path) -> None:
    """With the averaged weights' statistics from the last batches, which the resumed run has to read again."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'model = "unet_mobilenet_v3"\nsize = [32, 32]\nsteps = 8\nbatch_size = 4\nema = 0.9\nprecision = "fp32"\n'
        "validate_every = 4\ncheckpoint_every = 4\n[loss]\nsilog = 1.0\n[augment]\nflip = true\nzoom = [1.0, 1.4]\n"
    )
    server = serve(small_shards)

    def train(out: Path, *more: str) -> Path:
        arguments = ["--recipe", str(recipe), "--data", server.url, "--out", str(out), "--device", "cpu"]
        assert command(parser(), run, [*arguments, "--deterministic", *more]) == 0
        return out / "checkpoint.safetensors"

    straight = load_checkpoint(train(tmp_path / "straight"))
    train(tmp_path / "broken", "--max-steps", "5")
    broken = load_checkpoint(train(tmp_path / "broken", "--resume"))
    torch.use_deterministic_algorithms(False)
    assert broken.state["resumed_from"] == [5] and broken.state["step"] == 8
    assert same_tensors(straight.model, broken.model)
    assert same_tensors(straight.average or {}, broken.average or {"missing": torch.zeros(1)})
