"""From sources to shards: encoding, the conversion, and what an interruption leaves."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from depthzoo.camera import depth_scale
from depthzoo.errors import DatasetError
from train import prepare as module
from train.encoding import resize_frame, unit_problem
from train.prepare import PROGRESS, prepare
from train.shards import ShardDataset, ShardWriter
from train.sources.base import Frame, Item, Source
from train.sources.nyu_labelled import official_split
from train.sources.pairs import Pairs

Run = Callable[..., int]
PER_SHARD = ("--samples-per-shard", 3)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Real frames.


def test_split_is_the_official_one_with_whole_scenes_held_out(
    split: dict[str, list[int]], real_data: Path
) -> None:
    official = json.loads((real_data / "nyu_v2_labelled" / "splits.json").read_text())
    assert sorted(split["train"] + split["val"]) == official["train"]
    assert split["test"] == official["test"]
    assert (len(split["train"]), len(split["val"]), len(split["test"])) == (700, 95, 654)
    # Neighbours in the official train list share a scene: none may be in train and the other in val.
    train, val = set(split["train"]), set(split["val"])
    assert not any(number + 1 in val or number - 1 in val for number in train)


def test_folds_do_not_overlap() -> None:
    folds = [official_split(fold) for fold in range(5)]
    held_out = [set(fold["val"]) for fold in folds]
    assert sum(map(len, held_out)) == len(set.union(*held_out))
    assert all(sorted(f["train"] + f["val"]) == sorted(folds[0]["train"] + folds[0]["val"]) for f in folds)
    assert all(95 <= len(val) <= 121 for val in held_out)


def test_real_frames_come_out_upright_and_in_metres(real_set: Path, real_data: Path) -> None:
    """A wrong transpose or a lost scale shows against the original files."""
    folder = real_data / "nyu_v2_labelled"
    test, train = ShardDataset(real_set, "test"), ShardDataset(real_set, "train")
    assert test.keys == [f"nyu-{number:04d}" for number in official_split()["test"] if number < 60]
    for index in (0, len(test) - 1):
        number = int(test.keys[index].removeprefix("nyu-"))
        image, depth = test[index]
        np.testing.assert_array_equal(image, np.asarray(Image.open(folder / "images" / f"{number:04d}.jpg")))
        steps = np.asarray(Image.open(folder / "depths" / f"{number:04d}.png"))
        np.testing.assert_allclose(depth / 1000, (steps + 0.5) * 9.9955 / 255, atol=6e-4)
    # Only train frames are resized and lose the white border.
    assert train[0][0].shape == (120, 160, 3) and test[0][0].shape == (480, 640, 3)
    assert test.focal_px == 518.86 and train.focal_px == pytest.approx(518.86 * 120 / 464)
    edges = [
        np.concatenate([image[[0, -1]], image[:, [0, -1]].swapaxes(0, 1)], 1).mean() for image, _ in train
    ]
    assert max(edges) < 240 and test[0][0][0].mean() > 250
    info = test.info
    assert info["source"] == "nyu-labelled" and info["truth"] == "filled" and "research" in info["terms"]


# Encoding.


def frame(image: np.ndarray, depth: np.ndarray, focal_px: float = 100.0) -> Frame:
    return Frame(image, depth, focal_px)


def test_a_picture_is_not_squeezed() -> None:
    """A square stays one, the middle is kept, and little is cut off."""
    image = np.zeros((100, 308, 3), np.uint8)
    image[20:60, 120:160] = 255
    depth = np.where(image[..., 0] > 0, 5.0, 2.0)
    small = resize_frame(frame(image, depth, 200.0), (50, 150))  # two pixels are cut at each end
    assert small.image.shape == (50, 150, 3) and small.focal_px == 100.0
    rows, columns = np.nonzero(small.image[..., 0] > 128)
    assert (np.ptp(rows), np.ptp(columns), rows.min(), columns.min()) == (19, 19, 10, 58)
    rows, columns = np.nonzero(small.depth == 5)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 29, 58, 77)
    assert set(np.unique(small.depth)) == {2.0, 5.0}


def test_a_camera_keeps_its_scale_of_depth_at_another_size() -> None:
    small = resize_frame(frame(np.zeros((464, 622, 3), np.uint8), np.ones((464, 622)), 518.86), (288, 384))
    assert depth_scale(small.focal_px, 384) == pytest.approx(depth_scale(518.86, 384 * 464 / 288))


@pytest.mark.parametrize(
    ("shape", "size", "whole"),
    [
        ((375, 1242), (288, 384), (183, 605)),
        ((464, 622), (256, 256), (221, 296)),
        ((64, 48), (24, 32), (32, 24)),
    ],
)
def test_a_size_that_cuts_much_off_is_refused_with_one_that_does_not(
    shape: tuple[int, int], size: tuple[int, int], whole: tuple[int, int]
) -> None:
    large = frame(np.zeros((*shape, 3), np.uint8), np.ones(shape))
    with pytest.raises(DatasetError, match=f"--size {whole[0]}x{whole[1]} keeps it whole$"):
        resize_frame(large, size)
    assert resize_frame(large, whole).image.shape[:2] == whole


@pytest.mark.parametrize(
    ("median", "scale", "far", "likely"),
    [(2500, 1, 10, "0.001"), (0.0025, 1, 10, "1000"), (250, 1, 10, "0.01"), (15_000, 1, 80, "0.001")],
)
def test_another_unit_is_refused_with_the_likely_scale(
    median: float, scale: float, far: float, likely: str
) -> None:
    assert unit_problem([median], scale, (0.001, far)).endswith(f"the likely scale is {likely}")


@pytest.mark.parametrize(("median", "far"), [(41.78, 80.0), (1.5, 80.0), (0.1, 1.0), (2.5, 10.0)])
def test_a_median_is_plausible_where_the_range_says_so(median: float, far: float) -> None:
    assert not unit_problem([median], depth_range=(0.001, far))


# The conversion.


@dataclass
class Odd(Source):
    """Frames made up here; some misbehave."""

    name = "odd"
    help = ""
    count: int
    bad: tuple[int, ...] = ()
    die: bool = False
    focal: int = 0
    metres: float = 2.0

    def items(self) -> list[Item]:
        return [Item("train", f"f{number}", number) for number in range(self.count)]

    def load(self, item: Item) -> Frame:
        if self.die and item.where == self.count - 1:
            os._exit(9)
        if item.where in self.bad:
            raise DatasetError("scratched")
        image = np.zeros((32, 32, 3), np.uint8)
        return Frame(image, np.full((32, 32), self.metres), 100.0 + self.focal * item.where)


@pytest.fixture
def folders(
    tmp_path: Path, picture_bytes: Callable[..., bytes], noise: Callable[..., np.ndarray]
) -> tuple[Path, Path]:
    """10 train, 2 val and 2 test frames."""
    root = tmp_path / "pairs"
    names = [*(f"train/{n:02d}" for n in range(10)), "val/a", "val/b", "test/a", "test/b"]
    for number, name in enumerate(names):
        for kind in ("rgb", "depth"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "rgb" / f"{name}.jpg").write_bytes(picture_bytes(noise(number), "JPEG"))
        (root / "depth" / f"{name}.png").write_bytes(
            picture_bytes(np.full((32, 48), 2000 + number, np.uint16))
        )
    return root / "rgb", root / "depth"


@pytest.fixture
def arguments(folders: tuple[Path, Path], tmp_path: Path) -> list[object]:
    return ["pairs", *folders, "--scale", 0.001, "--size", "40x60", *PER_SHARD, "--out", tmp_path / "set"]


def test_the_result_does_not_depend_on_workers(
    arguments: list[Any], folders: tuple[Path, Path], tmp_path: Path, run_prepare: Run
) -> None:
    (folders[0] / "train/04.jpg").write_bytes(b"")
    for workers in (1, 2):
        more = ["--max-bad", 0.1, "--workers", workers]
        assert run_prepare(*arguments[:-1], tmp_path / str(workers), *more) == 0
    assert content(tmp_path / "1") == content(tmp_path / "2")
    names = {"samples.png", "dataset.json", "train-000003.tar", "train-000003.index.json"}
    assert names <= content(tmp_path / "1").keys()
    keys = ShardDataset(tmp_path / "2", "train").keys
    assert keys == ["00", "01", "02", "03", "05", "06", "07", "08", "09"]


def test_rooms_command(tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for workers in (1, 2):
        out = tmp_path / str(workers)
        assert run_prepare("rooms", "--count", 4, "--size", "32x48", "--workers", workers, "--out", out) == 0
        assert f"{out}: 2 train, 1 val, 1 test\n" in capsys.readouterr().out
    assert content(tmp_path / "1") == content(tmp_path / "2")
    image, depth = ShardDataset(out, "train")[0]
    assert image.shape == (32, 48, 3) and 300 < np.median(depth) < 10000


@pytest.mark.parametrize(("bad", "written"), [((), 200), ((3,), 199), ((3, 150), 198)])
def test_bad_frames_within_the_fraction(tmp_path: Path, bad: tuple[int, ...], written: int) -> None:
    assert prepare(Odd(200, bad), tmp_path / "set", samples_per_shard=50) == {"train": written}
    info = json.loads((tmp_path / "set/dataset.json").read_text())
    assert info.get("skipped", []) == [f"train sample 'f{number}': scratched" for number in bad]


@pytest.mark.parametrize(
    ("source", "size", "says"),
    [
        (Odd(200, (3, 150, 151)), None, r"'f151': scratched \(3 frames cannot be used, --max-bad allows 2\)"),
        (
            Odd(40, tuple(range(40))),
            None,
            r"'f0': scratched \(none of the first 40 train frames can be used\)",
        ),
        (Odd(40), (32, 64), r"--size 32x64 cuts 50% off a picture of 32x32; --size 45x45 keeps it whole"),
        (Odd(5, focal=2), None, r"'f1': focal length 102\.0 px, others 100\.0 px; expected one camera"),
        (Odd(20, metres=0.002), None, r"no valid depth|median depth 0\.002 is not in metres"),
        (Odd(0), None, "the source odd has no train frames"),
    ],
)
def test_a_source_that_cannot_be_used(
    tmp_path: Path, source: Source, size: tuple[int, int] | None, says: str
) -> None:
    with pytest.raises(DatasetError, match=says):
        prepare(source, tmp_path / "set", size)
    assert not list(tmp_path.iterdir())


def test_a_dead_worker_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="a worker process died"):
        prepare(Odd(40, die=True), tmp_path / "set", workers=2)
    assert not list(tmp_path.iterdir())


def test_the_unit_is_judged_in_every_split(
    folders: tuple[Path, Path], tmp_path: Path, picture_bytes: Callable[..., bytes]
) -> None:
    for path in (folders[1] / "val").iterdir():  # centimetres
        path.write_bytes(picture_bytes(np.full((32, 48), 250, np.uint16)))
    with pytest.raises(DatasetError, match=r"^all val frames: median depth 0\.25 .* scale is 0\.01"):
        prepare(Pairs(*folders, 0.001), tmp_path / "set")
    assert not (tmp_path / "set.part").exists(), "what was written is of a wrong unit"


def test_a_finished_set_is_replaced_only_on_request(
    arguments: list[Any], tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    assert run_prepare(*arguments) == 0
    before = content(out)
    assert run_prepare(*arguments) == 2
    assert f"{out} holds a data set already; --overwrite replaces it" in capsys.readouterr().err
    assert content(out) == before
    assert run_prepare(*arguments, "--size", "48x72", "--overwrite") == 0
    assert ShardDataset(out, "train")[0][0].shape == (48, 72, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs", "set"]


def test_folders_of_something_else_are_not_touched(
    tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("thesis", "set.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text("dear")
        out = tmp_path / name.removesuffix(".part")
        assert run_prepare("rooms", "--count", 4, "--out", out, "--overwrite") == 2
        assert "is not empty and holds no data set" in capsys.readouterr().err
        assert (tmp_path / name / "notes").read_text() == "dear"


# Interruptions.


def test_an_interrupted_conversion_goes_on_with_its_last_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode, fail_at = module.encode, {7: KeyboardInterrupt()}

    def broken(source: Source, item: Item, size: Any) -> Any:
        if item.where in fail_at:
            raise fail_at[item.where]
        return encode(source, item, size)

    monkeypatch.setattr(module, "encode", broken)
    with pytest.raises(KeyboardInterrupt):
        prepare(Odd(12), tmp_path / "set", samples_per_shard=3)
    assert "set.part keeps the finished shards; the same command continues" in capsys.readouterr().err
    kept = content(tmp_path / "set.part")
    assert {"train-000000.tar", "train-000001.tar", PROGRESS} <= kept.keys() and "dataset.json" not in kept
    with pytest.raises(DatasetError, match="is unfinished and had another count; --overwrite drops it"):
        prepare(Odd(13), tmp_path / "set", samples_per_shard=3)
    fail_at = {5: AssertionError("a finished frame is not made again")}
    assert prepare(Odd(12), tmp_path / "set", samples_per_shard=3) == {"train": 12}
    assert "has 6 frames of an interrupted conversion; continuing" in capsys.readouterr().err
    monkeypatch.undo()
    prepare(Odd(12), tmp_path / "fresh", samples_per_shard=3)
    assert content(tmp_path / "set") == content(tmp_path / "fresh")
    assert not (tmp_path / "set.part").exists()


def test_too_many_bad_frames_leave_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Odd(12, (7,))
    with pytest.raises(DatasetError, match=r"1 frames cannot be used, --max-bad allows 0"):
        prepare(source, tmp_path / "set", samples_per_shard=3)
    assert prepare(source, tmp_path / "set", samples_per_shard=3, max_bad=0.1) == {"train": 11}
    assert "has 6 frames of an interrupted conversion; continuing" in capsys.readouterr().err


def test_a_full_disk_is_one_line(
    arguments: list[Any], tmp_path: Path, run_prepare: Run, monkeypatch: Any, capsys: Any
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("depthzoo.files.os.fsync", full)
    assert run_prepare(*arguments, "--workers", 1) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'set.part' / 'progress.json'}: No space left on device" in error
    assert not (tmp_path / "set").exists()


def test_a_killed_conversion_goes_on(
    arguments: list[Any], tmp_path: Path, run_prepare: Run, monkeypatch: Any
) -> None:
    write = ShardWriter._write_shard

    def kill_in_the_third(self: ShardWriter) -> None:
        if (self.folder / "train-000001.tar").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        write(self)

    monkeypatch.setattr(ShardWriter, "_write_shard", kill_in_the_third)
    process = multiprocessing.get_context("fork").Process(
        target=run_prepare, args=(*arguments, "--workers", 1)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "set").exists() and (tmp_path / "set.part" / "train-000001.tar").exists()
    monkeypatch.undo()
    assert run_prepare(*arguments) == 0
    assert run_prepare(*arguments[:-1], tmp_path / "fresh") == 0
    assert content(tmp_path / "set") == content(tmp_path / "fresh")
    assert not (tmp_path / "set.part").exists()
