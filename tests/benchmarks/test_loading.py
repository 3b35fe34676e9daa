import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from benchmarks import loading
from train.arguments import command
from train.codec import encode_depth, encode_image
from train.shards import ShardWriter, write_dataset


@pytest.fixture(scope="module")
def frames() -> tuple[np.ndarray, np.ndarray]:
    """8 frames of 64x96, and their metres."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (8, 64, 96, 3), dtype=np.uint8), generator.uniform(1, 5, (8, 64, 96))


@pytest.fixture(scope="module")
def mat(frames: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mat") / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w") as file:
        file["images"] = frames[0].transpose(0, 3, 2, 1)
        file["depths"] = frames[1].astype(np.float32).transpose(0, 2, 1)
    return path


@pytest.fixture(scope="module")
def shards(frames: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, "train", samples_per_shard=4) as writer:
        for number, (image, depth) in enumerate(zip(*frames, strict=True)):
            writer.write(f"f{number}", *encode_image(image[::2, ::2].copy()), encode_depth(depth[::2, ::2]))
    write_dataset(folder, {"train": {**writer.entry, "size": [32, 48], "focal_px": 38.9}})
    return folder


def test_frames_of_the_file_are_upright_and_in_millimetres(
    mat: Path, frames: tuple[np.ndarray, np.ndarray]
) -> None:
    image, depth = loading.MatFile(mat, None)[3]
    assert torch.equal(image, torch.from_numpy(frames[0][3]).permute(2, 0, 1))
    np.testing.assert_allclose(depth[0], frames[1][3] * 1000, rtol=1e-6)
    image, depth = loading.MatFile(mat, (32, 48))[3]
    assert image.shape == (3, 32, 48) and depth.shape == (1, 32, 48)
    # Half the size: a pixel goes with the mean of the four it covers, and a depth is one of theirs.
    mean = frames[0][3].reshape(32, 2, 48, 2, 3).mean((1, 3))
    assert np.corrcoef(image.permute(1, 2, 0).numpy().ravel(), mean.ravel())[0, 1] > 0.8
    assert np.isin(depth.numpy(), (frames[1][3].astype(np.float32) * 1000)).all()


def test_the_runs_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PAUSE_SECONDS", 0)
    turns = iter(range(1, 7))
    runs = {name: lambda: loading.Speed(next(turns), 0) for name in ("a", "b")}
    found = loading.time_in_turns(runs, 3)
    assert {name: [one.frames_per_s for one in each] for name, each in found.items()} == {
        "a": [1, 3, 5],
        "b": [2, 4, 6],
    }


def test_frames_are_counted_by_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    given = [0]

    def batches() -> loading.Batches:
        while True:
            given[0] += 1
            yield None  # type: ignore[misc]

    def augment(*arguments: object) -> None:
        clock[0] += 2.0

    monkeypatch.setattr(loading.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(loading.time, "process_time", lambda: clock[0] / 2)
    monkeypatch.setattr(loading, "augment", augment)
    # 10 frames are three batches of 4 in 6 s; those before them do not count.
    speed = loading.speed(batches(), 10, (32, 32), 4, torch.device("cpu"))
    assert speed == loading.Speed(2.0, 250.0) and given[0] == loading.WARM_BATCHES + 3


def test_everything_it_writes(
    mat: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loading, "PAUSE_SECONDS", 0)
    out = tmp_path / "results" / "loading.json"
    arguments = [
        "--mat",
        mat,
        "--data",
        shards,
        "--size",
        "32x48",
        "--frames",
        4,
        "--batch",
        2,
        "--rounds",
        2,
    ]
    arguments += ["--processes", 1, "--device", "cpu", "--out", out]
    words = [str(argument) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["benchmarks/loading.py", *words])
    assert command(loading.parser(), loading.run, words) == 0
    (figures,) = json.loads(out.read_text())["runs"]
    assert set(figures) == {
        "question", "size", "batch", "frames_per_round", "augmentation", "mat", "shards", "cases", "reference",
        "missing", "machine", "versions", "commit", "command",
    }  # fmt: skip
    assert list(figures["cases"]) == [
        "mat, full resolution", "mat, resized", "mat, resized by 1 processes", "shards, cache none",
        "shards, cache ram", "shards, streamed",
    ]  # fmt: skip
    for name, case in figures["cases"].items():
        assert (case["cpu_ms_per_frame"] is None) == ("processes" in name)
        assert 0 < case["lowest"] <= case["frames_per_s"] <= case["highest"] and case["rounds"] == 2
    assert figures["missing"] == {
        "shards, cache device": "the memory of a CPU is the machine's: it is cache ram"
    }
    reference = figures["cases"][figures["reference"]]
    assert figures["reference"] in loading.ALONE and reference["times_reference"] == 1
    assert reference["frames_per_s"] == max(figures["cases"][name]["frames_per_s"] for name in loading.ALONE)
    assert (
        figures["size"] == [32, 48]
        and figures["mat"]["frames"] == 8
        and figures["shards"]["size"] == [32, 48]
    )
    off = loading.AugmentConfig()
    assert all(value != getattr(off, key) for key, value in figures["augmentation"].items() if key != "zoom")
    assert {"torch", "h5py", "python"} <= set(figures["versions"]) and figures["machine"]["processor"]
    assert "--mat nyu_depth_v2_labeled.mat" in figures["command"] and str(tmp_path) not in out.read_text()
    printed = capsys.readouterr().out
    assert printed.count("reference") == 1 and all(name in printed for name in figures["cases"])


def run(*arguments: object) -> int:
    return command(loading.parser(), loading.run, [str(argument) for argument in arguments])


def test_without_the_file_shards_are_compared_with_each_other(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "PAUSE_SECONDS", 0)
    flags = ["--data", shards, "--size", "32x32", "--frames", 2, "--batch", 2, "--rounds", 1]
    assert run(*flags, "--device", "cpu", "--out", tmp_path / "loading.json") == 0
    (figures,) = json.loads((tmp_path / "loading.json").read_text())["runs"]
    assert figures["reference"] == "shards, cache none" and figures["mat"] is None
    assert list(figures["cases"]) == ["shards, cache none", "shards, cache ram", "shards, streamed"]
    assert figures["cases"]["shards, cache none"]["times_reference"] == 1
    assert "not measured: mat, resized: no --mat" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_frames_lie_on_the_device(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[torch.device] = []
    augment = loading.augment

    def noticed(batch: loading.Batch, *rest: object) -> object:
        held.append(batch.image.device)
        return augment(batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "augment", noticed)
    flags = ["--data", shards, "--size", "32x32", "--frames", 2, "--batch", 2, "--rounds", 1]
    assert run(*flags, "--device", "cuda", "--out", tmp_path / "loading.json") == 0
    (figures,) = json.loads((tmp_path / "loading.json").read_text())["runs"]
    assert "shards, cache device" in figures["cases"] and figures["machine"]["gpu"]
    assert {device.type for device in held} == {"cpu", "cuda"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--mat", "missing.mat"], "missing.mat: no such file"),
        (["--mat", "text.mat"], "text.mat: not an HDF5 (MATLAB v7.3) file"),
        (["--mat", "empty.mat"], "empty.mat has no arrays images and depths"),
        (["--data", "nowhere"], "no data set at nowhere"),
        (["--rounds", "0"], "--rounds 0: expected at least 1"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available"),
    ],
)
def test_bad_input_is_one_line(
    mat: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mat").write_text("no HDF5")
    h5py.File(tmp_path / "empty.mat", "w").close()
    arguments = ["--mat", str(mat), "--data", str(shards), "--out", "out.json", *change]
    assert command(loading.parser(), loading.run, arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out.json").exists()
